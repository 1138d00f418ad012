"""A small encrypted package made with the shipped code, for tests that take it apart."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from enclave_encryption.publisher_keys import FileKey
from enclave_protocol.body_digest import BodyDigest
from enclave_protocol.chunked_encryption import BytesLike, Encryptor
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.manifest import parse_manifest
from enclave_protocol.package_archive import Entry, archive_size, encode_archive
from enclave_protocol.package_header import (
    body_context,
    encode_header,
    encryption_context,
)
from enclave_protocol.package_label import Label, encode_label
from enclave_protocol.package_signature import PackageSignature, Signer, signed_message
from tests.support.held_key import HeldKey

KEY_ARN = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"

MANIFEST = """
[package]
name = "{name}"
publisher = "Example Publisher"
version = "1.2.0"
module = "credit_scorer"
[exports]
functions = {{ score = "score(applicants, *, threshold=0.5)" }}
[docs]
score = "Score a table of applicants."
"""

FILES: Mapping[str, bytes] = {
    "credit_scorer.py": b"def score(applicants, *, threshold=0.5):\n    return applicants\n",
    "data/empty": b"",
    "data/weights.bin": bytes(range(256)) * 200,  # 51 200 bytes: over three chunks
    "zz.py": b"last = 1\n",
}


@dataclass(frozen=True)
class ExamplePackage:
    """An encrypted package, the key that unwraps its data key, and what is in it."""

    data: bytes
    header_bytes: int
    label_bytes: int
    held: HeldKey
    data_key: bytes
    files: Mapping[str, bytes]


def make_label(
    files: Mapping[str, bytes],
    name: str = "credit-scorer",
    data_key: bytes = bytes(32),
    signer: Signer | None = None,
) -> Label:
    manifest = parse_manifest(MANIFEST.format(name=name))
    entries = [Entry(path, len(data)) for path, data in files.items()]
    return Label(
        package=manifest.package,
        exports=manifest.exports,
        docs=manifest.docs,
        scripts=manifest.scripts,
        policy=manifest.policy,
        data_key_commitment=commit_data_key(data_key),
        archive_bytes=archive_size(entries),
        file_count=len(entries),
        signer=signer,
    )


def make_example(
    files: Mapping[str, bytes] = FILES,
    *,
    name: str = "credit-scorer",
    held: HeldKey | None = None,
    archive: bytes | None = None,
    announced_files: int | None = None,
    publisher: FileKey | None = None,
) -> ExamplePackage:
    """Encrypt `files`; `archive` replaces their tar, to encrypt what no owner's tool would.

    `announced_files` is put into the label instead of their number; `publisher` signs.
    """
    held = held or HeldKey()
    files = {path: files[path] for path in sorted(files, key=str.encode)}
    data_key = secrets.token_bytes(32)
    label = make_label(files, name, data_key, None if publisher is None else publisher.signer)
    if announced_files is not None:
        label = msgspec.structs.replace(label, file_count=announced_files)
    label_bytes = encode_label(label)
    wrapped = held.wrap(data_key, encryption_context(label, label_bytes))
    encryptor = Encryptor(data_key, body_context(label_bytes))
    body = bytearray()
    if archive is None:
        entries = [Entry(path, len(data)) for path, data in files.items()]
        for piece in encode_archive(entries, lambda entry: [files[entry.path]]):
            body += encryptor.update(piece)
    else:
        body += encryptor.update(archive)
    body += encryptor.finalize()
    signature = None if publisher is None else sign_package(publisher, label_bytes, body)
    header = encode_header(label, KeySlot(KEY_ARN, wrapped), signature)
    data = header + bytes(body)
    return ExamplePackage(data, len(header), len(label_bytes), held, data_key, files)


def sign_package(publisher: FileKey, label_bytes: bytes, body: BytesLike) -> PackageSignature:
    digest = BodyDigest()
    digest.update(body)
    found = digest.finish()
    message = signed_message(publisher.signer, label_bytes, found)
    return PackageSignature(found, publisher.sign(message))
