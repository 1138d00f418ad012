"""The vectors in tests/vectors/package, which the second implementation made."""

import hashlib
import importlib.util
import io
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from enclave_protocol import package_errors
from enclave_protocol.chunked_encryption import Decryptor, Encryptor, sealed_size
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.package_archive import ArchiveEnd, FileData, FileEnd, FileStart
from enclave_protocol.package_header import decode_header, encode_header
from enclave_protocol.package_reader import read_package
from tests.support import plain_package as plain
from tests.support.example_package import make_example

VECTORS = Path(__file__).parents[1] / "vectors"
CHUNKED: dict[str, Any] = json.loads((VECTORS / "package/chunked_encryption.json").read_text())
PACKAGE: dict[str, Any] = json.loads((VECTORS / "package/package.json").read_text())
PACKAGE_DATA = (VECTORS / "package" / PACKAGE["file"]).read_bytes()


def message(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["name"] for case in cases]


def edited(data: bytes, case: dict[str, Any]) -> bytes:
    end = case["offset"] + case["removed"]
    return data[: case["offset"]] + bytes.fromhex(case["inserted"]) + data[end:]


def test_vectors_are_what_their_script_writes(tmp_path: Path) -> None:
    script = VECTORS / "make_package_vectors.py"
    spec = importlib.util.spec_from_file_location("make_package_vectors", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (VECTORS / "package" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("case", CHUNKED["valid"], ids=names(CHUNKED["valid"]))
def test_chunked_vector(case: dict[str, Any]) -> None:
    key, context = bytes.fromhex(case["key"]), bytes.fromhex(case["context"])
    encryptor = Encryptor(key, context, bytes.fromhex(case["salt"]))
    plaintext = message(case["message_bytes"])
    sealed = bytes(encryptor.update(plaintext)) + encryptor.finalize()
    assert sealed[:56].hex() == case["prefix"]
    assert sealed[-16:].hex() == case["last_chunk_tail"]
    assert len(sealed) == case["ciphertext_bytes"] == sealed_size(len(plaintext))
    assert hashlib.sha256(sealed).hexdigest() == case["ciphertext_sha256"]
    decryptor = Decryptor(key, context)
    assert bytes(decryptor.update(sealed)) + decryptor.finalize() == plaintext


@pytest.mark.parametrize("case", CHUNKED["invalid"], ids=names(CHUNKED["invalid"]))
def test_invalid_chunked_vector(case: dict[str, Any]) -> None:
    (valid,) = (entry for entry in CHUNKED["valid"] if entry["name"] == case["of"])
    key, context = bytes.fromhex(valid["key"]), bytes.fromhex(valid["context"])
    whole = plain.seal(key, context, bytes.fromhex(valid["salt"]), message(valid["message_bytes"]))
    decryptor = Decryptor(key, context)
    with pytest.raises(package_errors.PackageError) as caught:
        decryptor.update(edited(whole, case))
        decryptor.finalize()
    assert type(caught.value).__name__ == case["error"]


def read_vector(data: bytes) -> dict[str, tuple[bytes, bool]]:
    files: dict[str, tuple[bytes, bool]] = {}
    contents = bytearray()
    started = FileStart("", 0, False)
    last: object = None
    key = bytearray(bytes.fromhex(PACKAGE["data_key"]))
    for last in read_package(io.BytesIO(data), lambda _: key, file="vector"):
        if isinstance(last, FileStart):
            started, contents = last, bytearray()
        elif isinstance(last, FileData):
            contents += last.data
        elif isinstance(last, FileEnd):
            files[last.path] = bytes(contents), started.executable
    assert isinstance(last, ArchiveEnd)
    return files


def test_package_vector() -> None:
    header = decode_header(PACKAGE_DATA)
    assert len(header.raw) == PACKAGE["header_bytes"]
    assert header.wrapped_key.hex() == PACKAGE["wrapped_key"]
    assert header.context.hex() == PACKAGE["context"]
    assert header.encryption_context == {
        "package": "vector",
        "version": "1.0",
        "label-sha256": PACKAGE["label_sha256"],
    }
    assert header.label.package.description == "Grüße"
    assert header.kms_key_arn == PACKAGE["kms_key_arn"]
    assert header.label.data_key_commitment == PACKAGE["data_key_commitment"]
    assert commit_data_key(bytes.fromhex(PACKAGE["data_key"])) == PACKAGE["data_key_commitment"]
    assert encode_header(header.label, header.slot) == header.raw
    check_files(read_vector(PACKAGE_DATA))


def check_files(files: dict[str, tuple[bytes, bool]]) -> None:
    assert files.keys() == PACKAGE["files"].keys()
    for path, expected in PACKAGE["files"].items():
        data, executable = files[path]
        assert len(data) == expected["bytes"]
        assert hashlib.sha256(data).hexdigest() == expected["sha256"]
        assert executable == expected["executable"]


@pytest.mark.parametrize("case", PACKAGE["rekeyed"], ids=names(PACKAGE["rekeyed"]))
def test_rekeyed_package_vector(case: dict[str, Any]) -> None:
    rekeyed = edited(PACKAGE_DATA, case)
    header = decode_header(rekeyed)
    assert header.slot != decode_header(PACKAGE_DATA).slot
    assert header.context.hex() == PACKAGE["context"]
    check_files(read_vector(rekeyed))


@pytest.mark.parametrize("case", PACKAGE["invalid"], ids=names(PACKAGE["invalid"]))
def test_invalid_package_vector(case: dict[str, Any]) -> None:
    with pytest.raises(package_errors.PackageError) as caught:
        read_vector(edited(PACKAGE_DATA, case))
    assert type(caught.value).__name__ == case["error"]
    assert str(caught.value).startswith("vector: ")


def test_second_implementation_opens_what_ours_wrote() -> None:
    files = {"credit_scorer.py": b"x = 1\n", "w/" + "long" * 40: secrets.token_bytes(40_000)}
    package = make_example(files)
    label, opened = plain.open_package(package.data, package.data_key)
    assert label["package"]["name"] == "credit-scorer"
    assert {path: data for path, (data, _) in opened.items()} == files
