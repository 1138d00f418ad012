"""Encrypting a planned package: the numbered procedure of docs/spec/encrypted_package.md."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclave_encryption.data_key import KmsKey
from enclave_encryption.errors import OutputError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.chunked_encryption import KEY_BYTES, BytesLike, Encryptor
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_archive import Entry, archive_size, encode_archive
from enclave_protocol.package_header import decode_header, encode_header, encryption_context
from enclave_protocol.package_label import Label, encode_label

__all__ = [
    "EncryptedPackage",
    "WrappingKey",
    "check_output",
    "encrypt_package",
    "make_label",
    "write_encrypted",
]


class WrappingKey(Protocol):
    """What data keys are wrapped with: `KmsKey`, or one that opens nothing else."""

    arn: str

    def wrap(self, data_key: bytes | bytearray, context: Mapping[str, str]) -> bytes:
        """Return the data key wrapped, bound to this encryption context."""
        ...


@dataclass(frozen=True)
class EncryptedPackage:
    """What was written."""

    path: Path
    label: Label
    kms_key_arn: str
    size: int


def make_label(plan: PackagePlan, data_key: bytes | bytearray) -> Label:
    """Return the label of `plan` encrypted under `data_key`."""
    manifest = plan.manifest
    return Label(
        package=manifest.package,
        exports=manifest.exports,
        docs=manifest.docs,
        scripts=manifest.scripts,
        policy=manifest.policy,
        data_key_commitment=commit_data_key(data_key),
        archive_bytes=archive_size(file.entry for file in plan.tree.files),
        file_count=len(plan.tree.files),
    )


def check_output(output: Path, directory: Path) -> None:
    """Refuse an output file that could become part of the next package.

    Raises:
        OutputError: `output` is inside `directory`, or its directory is missing.
    """
    parent = output.parent.resolve()
    if not parent.is_dir():
        raise OutputError(f"{output.parent}: no such directory for the encrypted file")
    if parent.is_relative_to(directory.resolve()):
        raise OutputError(
            f"{output}: is inside the directory to be encrypted; give -o a place outside of it"
        )


def encrypt_package(
    plan: PackagePlan, key: KmsKey, output: Path, progress: Callable[[int], None]
) -> EncryptedPackage:
    """Write the encrypted file of `plan` to `output`, whole or not at all.

    Args:
        plan: Checked already; its files are read again now.
        key: The KMS key to wrap the data key with.
        output: Replaced if it exists.
        progress: Called with the number of plaintext bytes since the last call.

    Raises:
        SourceTreeError: A file changed or cannot be read any more.
        KmsError: KMS did not wrap the data key.
        OutputError: `output` cannot be written.

    Source: docs/spec/encrypted_package.md, "Encrypting".
    """
    # 1 and 2, scan and checks, are `plan_package`.
    with OutputFile(output) as file:
        label, size = write_encrypted(plan, key, file.write, progress)
    return EncryptedPackage(output, label, key.arn, size)  # 11, sync and rename, is `OutputFile`


def write_encrypted(
    plan: PackagePlan,
    key: WrappingKey,
    write: Callable[[BytesLike], None],
    progress: Callable[[int], None],
) -> tuple[Label, int]:
    """Hand the encrypted file of `plan` to `write`, piece by piece; return its label and size.

    Arguments and errors as for `encrypt_package`; the pieces are overwritten after `write` returns.
    """
    data_key = bytearray(secrets.token_bytes(KEY_BYTES))  # 3
    try:
        label = make_label(plan, data_key)  # 4
        context = encryption_context(label, encode_label(label))
        slot = KeySlot(key.arn, key.wrap(data_key, context))  # 5
        header = encode_header(label, slot)  # 6
        encryptor = Encryptor(data_key, decode_header(header).context)  # 7
    finally:
        data_key[:] = bytes(len(data_key))  # 8
    write(header)
    size = len(header)
    sealed = memoryview(bytearray(encryptor.update_size(READ_BYTES)))
    for piece in encode_archive([f.entry for f in plan.tree.files], _reader(plan)):  # 9
        needed = encryptor.update_size(len(piece))
        if needed > len(sealed):
            sealed = memoryview(bytearray(needed))
        written = encryptor.update_into(piece, sealed)
        write(sealed[:written])
        size += written
        progress(len(piece))
    last = encryptor.finalize()  # 10
    write(last)
    return label, size + len(last)


def _reader(plan: PackagePlan) -> Callable[[Entry], Iterator[memoryview]]:
    buffer = memoryview(bytearray(READ_BYTES))
    files = {file.entry.path: file for file in plan.tree.files}
    return lambda entry: plan.tree.read(files[entry.path], buffer)
