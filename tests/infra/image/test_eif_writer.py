import hashlib
from pathlib import Path

import pytest

from enclave_infra.image.eif_writer import EifParts, write_eif
from enclave_infra.image.errors import ImageError
from tests.support.eif_files import eif

_EMPTY_PCR2 = (  # FACTS, "EIF version 4": of an image with a single ramdisk
    "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"
    "10edb30948c90ba67310f7b964fc500a"
)


def _parts(folder: Path, ramdisks: list[bytes], *, arm64: bool = False) -> EifParts:
    (folder / "kernel").write_bytes(b"K" * 5000)
    paths = []
    for number, content in enumerate(ramdisks):
        paths.append(folder / f"ramdisk-{number}")
        paths[-1].write_bytes(content)
    return EifParts(folder / "kernel", "console=ttyS0", paths, b"{}", arm64, 1 << 30, 2)


def _pcr(*contents: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).digest()


def test_measured_as_the_facts_say(tmp_path: Path) -> None:
    image = write_eif(_parts(tmp_path, [b"one", b"two", b"three"]), tmp_path / "x.eif")
    kernel, cmdline = b"K" * 5000, b"console=ttyS0"
    assert image.pcrs[0] == _pcr(kernel, cmdline, b"one", b"two", b"three")
    assert image.pcrs[1] == _pcr(kernel, cmdline, b"one")
    assert image.pcrs[2] == _pcr(b"two", b"three")


def test_known_answer(tmp_path: Path) -> None:
    image = write_eif(_parts(tmp_path, [b"one"]), tmp_path / "x.eif")
    assert image.pcrs[2].hex() == _EMPTY_PCR2


@pytest.mark.parametrize("arm64", [False, True])
def test_bytes_are_those_of_another_writer(tmp_path: Path, arm64: bool) -> None:
    write_eif(_parts(tmp_path, [b"one", b"two"], arm64=arm64), tmp_path / "x.eif")
    sections = [(1, b"K" * 5000), (2, b"console=ttyS0"), (3, b"one"), (3, b"two"), (5, b"{}")]
    assert (tmp_path / "x.eif").read_bytes() == eif(sections, flags=int(arm64))


@pytest.mark.parametrize("count", [0, 30])
def test_number_of_ramdisks(tmp_path: Path, count: int) -> None:
    with pytest.raises(ImageError, match="1 to 29 ramdisks"):
        write_eif(_parts(tmp_path, [b"x"] * count), tmp_path / "x.eif")
    assert not list(tmp_path.glob("*.eif*"))
