"""A package's data key under another KMS key: the key slot changes, nothing else does.

Source: docs/spec/encrypted_package.md, "Rekeying".
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from enclave_encryption.errors import KmsDeniedError, KmsError, OwnerError
from enclave_encryption.output_file import OutputFile
from enclave_encryption.re_encryption import ReEncryption
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_header import PackageHeader, header_with_slot
from enclave_protocol.package_reader import read_header

__all__ = ["Rekeyed", "check_region", "open_package_file", "rewrap_patiently", "write_rekeyed"]

_COPY_BYTES: Final = 1 << 20
_SETTLING_S: Final = 60.0
"""A changed key policy takes effect within a minute, says KMS; mostly at once."""
_RETRY_S: Final = 2.0


@dataclass(frozen=True)
class Rekeyed:
    """What was written."""

    path: Path
    slot: KeySlot
    size: int


def open_package_file(path: Path) -> tuple[BinaryIO, PackageHeader]:
    """Return an encrypted file, open at its body, and its header.

    Raises:
        OwnerError: It cannot be read.
        PackageError: It is no encrypted package; names the file.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise OwnerError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return stream, read_header(stream, file=str(path))
    except PackageError as error:
        stream.close()
        raise error.with_file(str(path)) from None
    except BaseException:
        stream.close()
        raise


def rewrap_patiently(
    source: ReEncryption,
    wrapped: bytes,
    context: Mapping[str, str],
    destination: str,
    *,
    settling: bool,
) -> bytes:
    """Return `wrapped` under the KMS key `destination`.

    Args:
        source: The KMS key it is wrapped under.
        wrapped: The data key.
        context: The package's encryption context.
        destination: ARN of the other key.
        settling: The policy was changed just now: wait until that has taken effect.

    Raises:
        KmsDeniedError: Not allowed.
        KmsError: KMS did not do it.
    """
    deadline = time.monotonic() + (_SETTLING_S if settling else 0)
    while True:
        try:
            return source.rewrap(wrapped, context, destination)
        except KmsDeniedError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)


def write_rekeyed(
    stream: BinaryIO,
    header: PackageHeader,
    slot: KeySlot,
    output: Path,
    progress: Callable[[int], None],
) -> Rekeyed:
    """Write the package with `slot` in the place of its own, whole or not at all.

    Label, publisher's signature and body stay as they are.

    Args:
        stream: The package, open at its body, which is copied as it is.
        header: Its header.
        slot: The same data key, wrapped anew.
        output: May be the file itself: it is replaced in one step.
        progress: Called with the number of bytes since the last call.

    Raises:
        OutputError: `output` cannot be written.
        PackageFormatError: KMS gave a wrapped key that no header takes.
    """
    new_header = header_with_slot(header.label_bytes, slot, header.signature)
    size = len(new_header)
    with OutputFile(output) as file:
        file.write(new_header)
        while piece := stream.read(_COPY_BYTES):
            file.write(piece)
            size += len(piece)
            progress(len(piece))
    return Rekeyed(output, slot, size)


def check_region(header: PackageHeader, destination: str) -> None:
    """Refuse a KMS key that KMS cannot re-encrypt to.

    Raises:
        KmsError: It is in another region.
    """
    region = destination.split(":")[3]
    if region != header.region:
        raise KmsError(
            f"KMS re-encrypts within one region: the package's key is in {header.region}, the new "
            f"one in {region}; encrypt the package again there, or use a key in {header.region}"
        )
