"""Encrypting a planned package: the numbered procedure of docs/spec/encrypted_package.md."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from enclave_encryption.data_key import KmsKey
from enclave_encryption.errors import OutputError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.publisher_keys import PublisherKey
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.body_digest import BodyDigest
from enclave_protocol.chunked_encryption import Encryptor
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


def make_label(plan: PackagePlan, signer: Signer | None = None) -> Label:
    """Return the label of `plan`, signed by `signer` if there is one."""
    manifest = plan.manifest
    return Label(
        package=manifest.package,
        exports=manifest.exports,
        docs=manifest.docs,
        scripts=manifest.scripts,
        policy=manifest.policy,
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
        KmsError: KMS gave no data key, or no signature.
        OutputError: `output` cannot be written.

    Source: docs/spec/encrypted_package.md, "Encrypting".
    """
    # 1 and 2, scan and checks, are `plan_package`.
    label = make_label(plan, None if publisher is None else publisher.signer)  # 3
    label_bytes = encode_label(label)
    unsigned = publisher is None
    digest = None if unsigned else BodyDigest()
    try:
        with OutputFile(output) as file:
            data_key = key.generate_data_key(encryption_context(label, label_bytes))  # 4
            try:
                encryptor = Encryptor(data_key.plaintext, body_context(label_bytes))  # 5
            finally:
                data_key.plaintext[:] = bytes(len(data_key.plaintext))  # 6

            def header(value: bytes, body_digest: bytes) -> bytes:
                signature = None if unsigned else PackageSignature(body_digest, value)
                return encode_header(
                    label, data_key.wrapped, kms_key_arn=key.arn, signature=signature
                )

            placeholder = header(*_no_signature(label))  # 7
            file.write(placeholder)
            size = len(placeholder) + _write_body(file, encryptor, plan, progress, digest)  # 8, 9
            if publisher is not None and digest is not None:  # 10
                found = digest.finish()
                value = publisher.sign(signed_message(publisher.signer, label_bytes, found))
                verify_signature(publisher.signer, label_bytes, PackageSignature(found, value))
                file.overwrite(0, header(value, found))
    finally:
        if digest is not None:
            digest.close()
    return EncryptedPackage(output, label, key.arn, size)  # 11, sync and rename, is `OutputFile`


def _no_signature(label: Label) -> tuple[bytes, bytes]:
    """Return zeros of a signature's size: the body is not known yet, its place in the file is."""
    size = 0 if label.signer is None else SIGNATURE_BYTES[label.signer.algorithm]
    return bytes(size), bytes(32)


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
    for piece in encode_archive([f.entry for f in plan.tree.files], _reader(plan)):  # 8
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
    last = encryptor.finalize()  # 9
    if digest is not None:
        digest.update(last)
    file.write(last)
    return size + len(last)


def _reader(plan: PackagePlan) -> Callable[[Entry], Iterator[memoryview]]:
    buffer = memoryview(bytearray(READ_BYTES))
    files = {file.entry.path: file for file in plan.tree.files}
    return lambda entry: plan.tree.read(files[entry.path], buffer)
