"""Encrypting a planned package: the numbered procedure of docs/spec/encrypted_package.md."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclave_encryption.data_key import DataKey, KmsKey
from enclave_encryption.errors import OutputError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.chunked_encryption import BytesLike, Encryptor
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

    def generate_data_key(self, context: Mapping[str, str]) -> DataKey:
        """Return a fresh data key bound to this encryption context."""
        ...


@dataclass(frozen=True)
class EncryptedPackage:
    """What was written."""

    path: Path
    label: Label
    size: int


def make_label(plan: PackagePlan, key_arn: str) -> Label:
    """Return the label of `plan` encrypted under the KMS key `key_arn`."""
    manifest = plan.manifest
    return Label(
        package=manifest.package,
        exports=manifest.exports,
        docs=manifest.docs,
        scripts=manifest.scripts,
        policy=manifest.policy,
        kms_key_arn=key_arn,
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
        KmsError: KMS gave no data key.
        OutputError: `output` cannot be written.

    Source: docs/spec/encrypted_package.md, "Encrypting".
    """
    # 1 and 2, scan and checks, are `plan_package`.
    with OutputFile(output) as file:
        label, size = write_encrypted(plan, key, file.write, progress)
    return EncryptedPackage(output, label, size)  # 10, sync and rename, is `OutputFile`


def write_encrypted(
    plan: PackagePlan,
    key: WrappingKey,
    write: Callable[[BytesLike], None],
    progress: Callable[[int], None],
) -> tuple[Label, int]:
    """Hand the encrypted file of `plan` to `write`, piece by piece; return its label and size.

    Arguments and errors as for `encrypt_package`; the pieces are overwritten after `write` returns.
    """
    label = make_label(plan, key.arn)  # 3
    label_bytes = encode_label(label)
    data_key = key.generate_data_key(encryption_context(label, label_bytes))  # 4
    try:
        header = encode_header(label, data_key.wrapped)  # 5
        encryptor = Encryptor(data_key.plaintext, decode_header(header).context)  # 6
    finally:
        data_key.plaintext[:] = bytes(len(data_key.plaintext))  # 7
    write(header)
    size = len(header)
    sealed = memoryview(bytearray(encryptor.update_size(READ_BYTES)))
    for piece in encode_archive([f.entry for f in plan.tree.files], _reader(plan)):  # 8
        needed = encryptor.update_size(len(piece))
        if needed > len(sealed):
            sealed = memoryview(bytearray(needed))
        written = encryptor.update_into(piece, sealed)
        write(sealed[:written])
        size += written
        progress(len(piece))
    last = encryptor.finalize()  # 9
    write(last)
    return label, size + len(last)


def _reader(plan: PackagePlan) -> Callable[[Entry], Iterator[memoryview]]:
    buffer = memoryview(bytearray(READ_BYTES))
    files = {file.entry.path: file for file in plan.tree.files}
    return lambda entry: plan.tree.read(files[entry.path], buffer)
