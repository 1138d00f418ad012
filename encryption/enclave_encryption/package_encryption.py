"""Encrypting a planned package: the numbered procedure of docs/spec/encrypted_package.md."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclave_encryption.errors import OutputError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.publisher_keys import PublisherKey
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.body_digest import BodyDigest
from enclave_protocol.chunked_encryption import KEY_BYTES, BytesLike, Encryptor
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_archive import Entry, archive_size, encode_archive
from enclave_protocol.package_header import body_context, encode_header, encryption_context
from enclave_protocol.package_label import Label, encode_label
from enclave_protocol.package_signature import (
    SIGNATURE_BYTES,
    PackageSignature,
    Signer,
    signed_message,
    verify_signature,
)

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


def make_label(
    plan: PackagePlan, data_key: bytes | bytearray, signer: Signer | None = None
) -> Label:
    """Return the label of `plan` encrypted under `data_key` and signed by `signer`."""
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
        signer=signer,
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
    plan: PackagePlan,
    key: WrappingKey,
    output: Path,
    progress: Callable[[int], None],
    publisher: PublisherKey | None = None,
) -> EncryptedPackage:
    """Write the encrypted file of `plan` to `output`, whole or not at all.

    Args:
        plan: Checked already; its files are read again now.
        key: The KMS key to wrap the data key with.
        output: Replaced if it exists.
        progress: Called with the number of plaintext bytes since the last call.
        publisher: Signs the package; None leaves it unsigned.

    Raises:
        SourceTreeError: A file changed or cannot be read any more.
        KmsError: KMS did not wrap the data key, or did not sign.
        OutputError: `output` cannot be written.

    Source: docs/spec/encrypted_package.md, "Encrypting".
    """
    # 1 and 2, scan and checks, are `plan_package`.
    with OutputFile(output) as file:
        if publisher is None:
            label, size = write_encrypted(plan, key, file.write, progress)
        else:
            label, size = _write_signed(plan, key, file, progress, publisher)
    return EncryptedPackage(output, label, key.arn, size)  # 12, sync and rename, is `OutputFile`


def write_encrypted(
    plan: PackagePlan,
    key: WrappingKey,
    write: Callable[[BytesLike], None],
    progress: Callable[[int], None],
) -> tuple[Label, int]:
    """Hand the encrypted, unsigned file of `plan` to `write`; return its label and size.

    Arguments and errors as for `encrypt_package`; the pieces are overwritten after `write` returns.
    """
    label, slot, encryptor = _begin(plan, key, None)
    header = encode_header(label, slot)  # 8
    write(header)
    return label, len(header) + _write_body(write, encryptor, plan, progress)


def _write_signed(
    plan: PackagePlan,
    key: WrappingKey,
    file: OutputFile,
    progress: Callable[[int], None],
    publisher: PublisherKey,
) -> tuple[Label, int]:
    """The same for a publisher who signs: the signature, of the whole body, comes last."""
    label, slot, encryptor = _begin(plan, key, publisher.signer)
    unknown = PackageSignature(bytes(32), bytes(SIGNATURE_BYTES[publisher.signer.algorithm]))
    header = encode_header(label, slot, unknown)  # 8, zeros where the signature will be
    file.write(header)
    with closing(BodyDigest()) as digest:

        def write(data: BytesLike) -> None:
            digest.begin(data)  # beside the writing
            file.write(data)
            digest.join()

        size = len(header) + _write_body(write, encryptor, plan, progress)
        signature = _sign(publisher, encode_label(label), digest.finish())  # 11
    file.overwrite(0, encode_header(label, slot, signature))
    return label, size


def _begin(
    plan: PackagePlan, key: WrappingKey, signer: Signer | None
) -> tuple[Label, KeySlot, Encryptor]:
    """Make a data key, have it wrapped, and wipe it; return what needs it no more."""
    data_key = bytearray(secrets.token_bytes(KEY_BYTES))  # 3
    try:
        label = make_label(plan, data_key, signer)  # 4
        label_bytes = encode_label(label)
        slot = KeySlot(key.arn, key.wrap(data_key, encryption_context(label, label_bytes)))  # 5
        return label, slot, Encryptor(data_key, body_context(label_bytes))  # 6
    finally:
        data_key[:] = bytes(len(data_key))  # 7


def _sign(publisher: PublisherKey, label_bytes: bytes, digest: bytes) -> PackageSignature:
    value = publisher.sign(signed_message(publisher.signer, label_bytes, digest))
    signature = PackageSignature(digest, value)
    verify_signature(publisher.signer, label_bytes, signature)
    return signature


def _write_body(
    write: Callable[[BytesLike], None],
    encryptor: Encryptor,
    plan: PackagePlan,
    progress: Callable[[int], None],
) -> int:
    """Write the encrypted archive; return its size in bytes."""
    size = 0
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
    return size + len(last)


def _reader(plan: PackagePlan) -> Callable[[Entry], Iterator[memoryview]]:
    buffer = memoryview(bytearray(READ_BYTES))
    files = {file.entry.path: file for file in plan.tree.files}
    return lambda entry: plan.tree.read(files[entry.path], buffer)
