"""Encrypted packages for tests, made with the real format and a data key at hand."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from enclave_encryption.publisher_keys import FileKey
from enclave_protocol.chunked_encryption import Encryptor
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.manifest import parse_manifest
from enclave_protocol.package_archive import Entry, archive_size, encode_archive
from enclave_protocol.package_header import body_context, encode_header
from enclave_protocol.package_label import Label, encode_label
from tests.support.example_package import sign_package

KEY_ARN = "arn:aws:kms:eu-west-1:111122223333:key/12345678-1234-1234-1234-123456789012"


@dataclass(frozen=True)
class SealedPackage:
    """An encrypted file's bytes and what opens it."""

    data: bytes
    header_raw: bytes
    key: bytes

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


def seal_package(
    files: Mapping[str, str | bytes],
    manifest: str,
    *,
    file_count: int | None = None,
    publisher: FileKey | None = None,
) -> SealedPackage:
    """Return an encrypted package with these files and this `enclave.toml`.

    `file_count` is put into the label instead of their number, as no owner's tool would.
    """
    contents = {
        path: data.encode() if isinstance(data, str) else data for path, data in files.items()
    }
    entries = [Entry(path, len(contents[path])) for path in sorted(contents, key=str.encode)]
    parsed = parse_manifest(manifest)
    key = secrets.token_bytes(32)
    label = Label(
        package=parsed.package,
        exports=parsed.exports,
        docs=parsed.docs,
        scripts=parsed.scripts,
        policy=parsed.policy,
        data_key_commitment=commit_data_key(key),
        archive_bytes=archive_size(entries),
        file_count=len(entries) if file_count is None else file_count,
        signer=None if publisher is None else publisher.signer,
    )
    label_bytes = encode_label(label)

    def read(entry: Entry) -> Iterator[bytes]:
        yield contents[entry.path]

    encryptor = Encryptor(key, body_context(label_bytes))
    body = b"".join(bytes(encryptor.update(piece)) for piece in encode_archive(entries, read))
    body += encryptor.finalize()
    signature = None if publisher is None else sign_package(publisher, label_bytes, body)
    header_raw = encode_header(label, KeySlot(KEY_ARN, secrets.token_bytes(184)), signature)
    return SealedPackage(header_raw + body, header_raw, key)
