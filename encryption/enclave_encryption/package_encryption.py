"""Encrypting a planned package: the numbered procedure of docs/spec/encrypted_package.md."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from enclave_encryption.data_key import KmsKey
from enclave_encryption.errors import OutputError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.publisher_keys import PublisherKey
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.body_digest import BodyDigest
from enclave_protocol.chunked_encryption import KEY_BYTES, Encryptor
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

__all__ = ["EncryptedPackage", "check_output", "encrypt_package", "make_label"]


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
    key: KmsKey,
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
        data_key = bytearray(secrets.token_bytes(KEY_BYTES))  # 3
        try:
            label = make_label(plan, data_key, None if publisher is None else publisher.signer)  # 4
            label_bytes = encode_label(label)
            context = encryption_context(label, label_bytes)
            slot = KeySlot(key.arn, key.wrap(data_key, context))  # 5
            encryptor = Encryptor(data_key, body_context(label_bytes))  # 6
        finally:
            data_key[:] = bytes(len(data_key))  # 7
        header = encode_header(label, slot, _no_signature(label))  # 8
        file.write(header)
        if publisher is None:
            size = _write_body(file, encryptor, plan, progress, None)  # 9, 10
        else:
            with closing(BodyDigest()) as digest:
                size = _write_body(file, encryptor, plan, progress, digest)  # 9, 10
                signature = _sign(publisher, label_bytes, digest.finish())  # 11
            file.overwrite(0, encode_header(label, slot, signature))
    size += len(header)
    return EncryptedPackage(output, label, key.arn, size)  # 12, sync and rename, is `OutputFile`


def _no_signature(label: Label) -> PackageSignature | None:
    """Return zeros of a signature's size: the body is not known yet, its place in the file is."""
    if label.signer is None:
        return None
    return PackageSignature(bytes(32), bytes(SIGNATURE_BYTES[label.signer.algorithm]))


def _sign(publisher: PublisherKey, label_bytes: bytes, digest: bytes) -> PackageSignature:
    value = publisher.sign(signed_message(publisher.signer, label_bytes, digest))
    signature = PackageSignature(digest, value)
    verify_signature(publisher.signer, label_bytes, signature)
    return signature


def _write_body(
    file: OutputFile,
    encryptor: Encryptor,
    plan: PackagePlan,
    progress: Callable[[int], None],
    digest: BodyDigest | None,
) -> int:
    """Write the encrypted archive; return its size in bytes."""
    size = 0
    sealed = memoryview(bytearray(encryptor.update_size(READ_BYTES)))
    for piece in encode_archive([f.entry for f in plan.tree.files], _reader(plan)):  # 9
        needed = encryptor.update_size(len(piece))
        if needed > len(sealed):
            sealed = memoryview(bytearray(needed))
        written = encryptor.update_into(piece, sealed)
        if digest is not None:
            digest.begin(sealed[:written])  # beside the writing
        file.write(sealed[:written])
        if digest is not None:
            digest.join()
        size += written
        progress(len(piece))
    last = encryptor.finalize()  # 10
    if digest is not None:
        digest.update(last)
    file.write(last)
    return size + len(last)


def _reader(plan: PackagePlan) -> Callable[[Entry], Iterator[memoryview]]:
    buffer = memoryview(bytearray(READ_BYTES))
    files = {file.entry.path: file for file in plan.tree.files}
    return lambda entry: plan.tree.read(files[entry.path], buffer)
