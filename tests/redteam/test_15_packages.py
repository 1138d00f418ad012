"""THREATS E.15: files that claim to be packages, in a real vault. See also test_tampering.py."""

import _ctypes
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import FileKey
from enclave_kernel.session.package_loading import load_package
from enclave_kernel.session_messages import LoadPackage
from enclave_protocol.chunked_encryption import Encryptor
from enclave_protocol.package_errors import PackageError, PackageFormatError, PackageTamperedError
from enclave_protocol.package_header import decode_header
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.canaries import MANIFEST
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import achieved
from tests.support.example_package import ExamplePackage, make_example
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

PUBLISHER = FileKey(Ed25519PrivateKey.generate())
_SOURCE = "def score(applicants, *, threshold=0.5):\n    return applicants\n"


def load(package: ExamplePackage | bytes, key: bytes, folder: Path) -> Any:
    """Load the file with a key that fits its header; a real vault opens it."""
    data = package if isinstance(package, bytes) else package.data
    path = folder / "given.encrypted"
    path.write_bytes(data)
    header = decode_header(data)
    with VaultLink(SealedPackage(data, header.raw, key)) as link:
        loaded = load_package(str(path), link, lambda _stage, _share: None)
        return loaded.proxy.score([1])


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """Return a tar of (name, type, contents), written as the format wants it otherwise."""
    out = b""
    for name, kind, contents in members:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(contents), 0o644
        info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        out += info.tobuf(tarfile.USTAR_FORMAT) + contents + bytes(-len(contents) % 512)
    return out + bytes(1024)


def load_archive(folder: Path, name: str, kind: bytes) -> Any:
    """Load a package with one more member, whose label announces just this size and count."""
    contents = b"" if kind != b"0" else b"x"
    code = _SOURCE.encode()
    members = [("credit_scorer.py", b"0", code), (name, kind, contents)]
    members.sort(key=lambda entry: entry[0].encode())
    files = {"credit_scorer.py": code, "x": contents}
    example = make_example(files, archive=archive(*members), announced_files=2)
    return load(example, example.data_key, folder)


def test_a_package_as_it_is_made_opens(tmp_path: Path) -> None:
    """The control."""
    example = make_example()
    assert load(example, example.data_key, tmp_path) == [1]


@pytest.mark.parametrize("signed", [False, True])
def test_z01_labels_that_were_changed(tmp_path: Path, signed: bool) -> None:
    """The KMS key's ARN is not in the label: see test_a14 for one that was changed."""
    example = make_example(publisher=PUBLISHER if signed else None)
    for old, new in (
        (b'"score(applicants, *, threshold=0.5)"', b'"score(applicants, *, threshold=0.9)"'),
        (b'"max_calls":0', b'"max_calls":9'),
        (b"1.2.0", b"1.2.1"),
        (b'"production"', b'"Production"'),
        *([(b'"ed25519"', b'"ed25510"'), (b'"signer":{', b'"signor":{')] if signed else []),
    ):
        assert example.data.count(old) >= 1
        with pytest.raises(PackageError):
            load(example.data.replace(old, new), example.data_key, tmp_path)


@pytest.mark.parametrize("change", ["swap", "drop", "repeat", "cut", "append"])
def test_z02_chunks(tmp_path: Path, change: str) -> None:
    example = make_example()
    start, step = example.header_bytes + 56, 16400
    head, body = example.data[:start], example.data[start:]
    chunks = [body[i : i + step] for i in range(0, len(body), step)]
    assert len(chunks) > 3
    changed = {
        "swap": [chunks[1], chunks[0], *chunks[2:]],
        "drop": [chunks[0], *chunks[2:]],
        "repeat": [chunks[0], chunks[0], *chunks[1:]],
        "cut": chunks[:-1],
        "append": [*chunks, chunks[0]],
    }[change]
    with pytest.raises(PackageError):
        load(head + b"".join(changed), example.data_key, tmp_path)


def test_z03_one_algorithm_and_fresh_keys(tmp_path: Path) -> None:
    first, second = make_example(), make_example()
    assert first.data_key != second.data_key
    salt = slice(first.header_bytes, first.header_bytes + 24)
    assert first.data[salt] != second.data[salt]
    assert len({make_example().data_key for _ in range(8)}) == 8
    for version in (0, 2, 0xFFFF):
        changed = bytearray(first.data)
        changed[8:10] = version.to_bytes(2, "big")
        with pytest.raises(PackageError):
            load(bytes(changed), first.data_key, tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        *(("../x", b"0"), ("/etc/x", b"0"), ("a/../../x", b"0"), ("./x", b"0"), ("a//x", b"0")),
        *(("x", tarfile.SYMTYPE), ("x", tarfile.LNKTYPE), ("x", tarfile.CHRTYPE)),
        *(("x", tarfile.FIFOTYPE), ("x", tarfile.DIRTYPE), ("e\u0301.txt", b"0")),
        *(("a\\b", b"0"), ("x\n", b"0"), ("CREDIT_SCORER.PY", b"0")),
    ],
    ids=repr,
)
def test_z04_names_that_lead_elsewhere(tmp_path: Path, member: tuple[str, bytes]) -> None:
    assert load_archive(tmp_path, "x", b"0") == [1]  # the control: this one opens
    with pytest.raises(PackageError):
        load_archive(tmp_path, *member)
    assert not (tmp_path.parent / "x").exists()


def test_z04_path_files_do_nothing(tmp_path: Path) -> None:
    """A vault has no `site`: what an interpreter elsewhere would run is a data file here."""
    files: dict[str, str | bytes] = {
        "plain.py": "import sys\ndef modules():\n    return sorted(sys.modules)\n",
        "evil.pth": "import antigravity_not_there, os; os._exit(66)\n",
        "sitecustomize/evil.pth": "import os; os._exit(66)\n",
    }
    manifest = '[package]\nname = "plain"\nversion = "1"\nmodule = "plain"\n'
    manifest += '[exports.functions]\nmodules = "modules()"\n'
    with VaultLink() as link:
        plain: Any = load_sealed(link, seal_package(files, manifest), tmp_path).proxy
        assert not {"site", "sitecustomize", "usercustomize"} & set(plain.modules())


def test_z05_more_than_was_announced(tmp_path: Path) -> None:
    """Nothing is compressed, so what comes out is what came in; and no more than announced."""
    files = {"credit_scorer.py": _SOURCE.encode(), "x": b"x"}
    large = archive(("credit_scorer.py", b"0", _SOURCE.encode()), ("x", b"0", bytes(2**24)))
    for announced in (1, 2, 65_536):
        example = make_example(files, archive=large, announced_files=announced)
        with pytest.raises(PackageError):
            load(example, example.data_key, tmp_path)


@pytest.mark.parametrize(
    "path",
    ["numpy/__init__.py", "json.py", "encodings/evil.py", "codecs.py", "msgspec.py", "os.py"],
)
def test_z06_names_of_other_modules(tmp_path: Path, modern: Arena, path: str) -> None:
    files = {**modern.marked.files, path: "raise RuntimeError"}
    with VaultLink() as link, pytest.raises(PackageError, match="already installed"):
        load_sealed(link, seal_package(files, MANIFEST), tmp_path)


def test_z01_a_signed_label_with_another_body(tmp_path: Path) -> None:
    """Even somebody who has the data key cannot put another body under the publisher's label."""
    example = make_example(publisher=PUBLISHER)
    header = decode_header(example.data)
    code = archive(("credit_scorer.py", b"0", b"import os; os._exit(66)\n"))
    encryptor = Encryptor(example.data_key, header.context)
    sealed = bytes(encryptor.update(code)) + encryptor.finalize()
    with pytest.raises(PackageError):
        load(header.raw + sealed, example.data_key, tmp_path)
    stripped = header.raw.replace(b'"signer":{', b'"signer":null,"x":{')
    with pytest.raises(PackageError):
        load(stripped + example.data[len(header.raw) :], example.data_key, tmp_path)
    assert load(example, example.data_key, tmp_path) == [1]


@pytest.mark.parametrize("path", ["lib/evil.so", "evil.pyd", "data.bin"])
def test_z08_undeclared_native_code(tmp_path: Path, modern: Arena, path: str) -> None:
    files = {**modern.marked.files, path: Path(_ctypes.__file__).read_bytes()}
    with VaultLink() as link, pytest.raises(PackageError, match="native = true"):
        load_sealed(link, seal_package(files, MANIFEST), tmp_path)


@pytest.mark.parametrize("position", [0, -1], ids=["first-byte", "last-byte"])
def test_z07_verified_before_it_is_parsed(tmp_path: Path, position: int) -> None:
    """An archive that does not parse, and one byte changed: the byte is what it fails for.

    The root process is sent the header and nothing else of a file.
    """
    files = {"credit_scorer.py": _SOURCE.encode(), "x": b"x"}
    broken = archive(("../x", b"0", b"x"), ("credit_scorer.py", b"0", _SOURCE.encode()))
    example = make_example(files, archive=broken, announced_files=2)
    with pytest.raises(PackageFormatError):
        load(example, example.data_key, tmp_path)
    changed = bytearray(example.data)
    first = example.header_bytes + 56  # behind salt and commitment
    changed[first if position == 0 else -1] ^= 1
    with pytest.raises(PackageTamperedError):
        load(bytes(changed), example.data_key, tmp_path)
    assert {field.name for field in msgspec.structs.fields(LoadPackage)} == {
        *("request_id", "file_name", "header", "unsigned")
    }


@needs_root
def test_z08_native_code_in_files(arena: Arena) -> None:
    """A library written to a file does not load. From memory it does: see the threat model."""
    library = _ctypes.__file__
    assert achieved(arena.plain().run(attacks.load_library, library)) >= {"file"}
    assert "file" not in achieved(arena.vault.run(attacks.load_library, library))


def test_z09_nothing_is_installed(notebook: HostileNotebook) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'list'])"
    assert notebook.cell(f"m.run({code!r})").error == "EncryptedPackageError"
    code = "import socket; socket.create_connection(('example.org', 443), timeout=5)"
    assert notebook.cell(f"m.run({code!r})").error == "EncryptedPackageError"


def test_z09_what_the_image_lacks_is_not_looked_for(tmp_path: Path, modern: Arena) -> None:
    wanted = MANIFEST.replace("[package]", '[package]\nrequirements = ["numpyy>=1"]', 1)
    with VaultLink() as link, pytest.raises(PackageError, match=r"numpyy>=1 \(not installed\)"):
        load_sealed(link, seal_package(modern.marked.files, wanted), tmp_path)


def test_z10_what_the_encrypted_file_shows(notebook: HostileNotebook) -> None:
    """Names, sizes, metadata: nothing of the package but the label is in the file."""
    path = notebook.folder / "marked.encrypted"
    assert notebook.marked.found_in_bytes(path.read_bytes()) == set()
    assert notebook.marked.found_in_files([notebook.folder]) == set()


def test_z11_bodies_of_two_packages(tmp_path: Path) -> None:
    first, second = make_example(), make_example()
    mixed = first.data[: first.header_bytes] + second.data[second.header_bytes :]
    for key in (first.data_key, second.data_key):
        with pytest.raises(PackageError):
            load(mixed, key, tmp_path)
