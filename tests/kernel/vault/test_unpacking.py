"""Altered files, whole: a typed error that names the file, and nothing of it ever ran."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_kernel.session.package_loading import load_package
from enclave_kernel.session.supervisor_link import LoadedVault
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_errors import PackageError, PackageFormatError
from enclave_protocol.package_header import PREAMBLE_BYTES, decode_header
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink

MANIFEST = """
[package]
name = "witness"
version = "1"
module = "witness"
[exports]
functions = { f = "f()" }
"""


RAN = 77


def witness(exit_code: int) -> SealedPackage:
    """A package that tells when any of its code runs: a vault leaves nothing but how it ended."""
    source = f"import os\nos._exit({exit_code})\ndef f():\n    return 1\n"
    return seal_package({"weights.bin": bytes(40_000), "witness.py": source}, MANIFEST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("witness")


def header_label(package: SealedPackage) -> bytes:
    return decode_header(package.header_raw).label_bytes


class AnyKeyLink(VaultLink):
    """Gives the package's key to every header: the vault alone has to notice."""

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        key = next(iter(self._keys.values()))
        self._keys[header_raw] = key
        return super().load(file_name, header_raw, unsigned=unsigned)


@pytest.fixture(scope="module")
def package() -> SealedPackage:
    return witness(RAN)


@pytest.fixture(scope="module")
def link(package: SealedPackage) -> Iterator[VaultLink]:
    with AnyKeyLink(package) as link:
        yield link


def refuse(data: bytes, folder: Path, link: VaultLink) -> EnclaveError:
    path = folder / "altered.encrypted"
    path.write_bytes(data)
    with pytest.raises(EnclaveError) as caught:
        load_package(str(path), link, lambda _stage, _share: None)
    assert RAN not in link.returncodes()
    assert isinstance(caught.value, PackageError) or "altered.encrypted" in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return caught.value


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_byte_is_refused(
    data: st.DataObject, folder: Path, package: SealedPackage, link: VaultLink
) -> None:
    # The key slot is KMS's to judge: this vault is given the right key whatever is in it.
    slot = range(PREAMBLE_BYTES + len(header_label(package)), len(package.header_raw))
    positions = st.integers(0, len(package.data) - 1).filter(lambda n: n not in slot)
    position = data.draw(positions)
    altered = bytearray(package.data)
    altered[position] ^= data.draw(st.integers(1, 255))
    refuse(bytes(altered), folder, link)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_cut_is_refused(
    data: st.DataObject, folder: Path, package: SealedPackage, link: VaultLink
) -> None:
    refuse(package.data[: data.draw(st.integers(0, len(package.data) - 1))], folder, link)


def test_more_and_spliced_is_refused(folder: Path, package: SealedPackage, link: VaultLink) -> None:
    other = witness(RAN)
    header = len(package.header_raw)
    for data in (
        package.data + b"\0",
        package.data + package.data,
        package.header_raw + other.data[len(other.header_raw) :],
        other.header_raw + package.data[header:],
        package.data[: header + 56 + 16_400] + other.data[len(other.header_raw) + 56 + 16_400 :],
    ):
        refuse(data, folder, link)


@pytest.mark.parametrize("announced", [1, 3])
def test_another_number_of_files_than_announced_is_refused(
    folder: Path, package: SealedPackage, link: VaultLink, announced: int
) -> None:
    """Also when the owner's own tool wrote it: the label is what the user was shown."""
    other = seal_package(
        {"weights.bin": bytes(40_000), "witness.py": f"import os\nos._exit({RAN})\n"},
        MANIFEST,
        file_count=announced,
    )
    with VaultLink(other) as own_link:
        error = refuse(other.data, folder, own_link)
    assert isinstance(error, PackageFormatError)
    assert f"has 2 files, the label announced {announced}" in str(error)


def test_the_witness_would_have_testified(
    folder: Path, package: SealedPackage, link: VaultLink
) -> None:
    path = package.write(folder / "whole.encrypted")
    with pytest.raises(EnclaveError):
        load_package(str(path), link, lambda _stage, _share: None)
    assert RAN in link.returncodes()
