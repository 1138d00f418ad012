"""Enclave image files (EIF version 4): read with limits, and measured as Nitro does it.

No I/O beyond the stream that a caller hands in; memory stays constant, whatever the file's size.
Source: FACTS, "EIF version 4" and "Attestation document".
"""

import hashlib
import struct
import zlib
from typing import Any, Final, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from enclave_protocol.attestation_verify import CERTIFICATE_ERRORS
from enclave_protocol.errors import EnclaveError
from enclave_protocol.strict_cbor import StrictCborError, decode_item

__all__ = ["Eif", "EifError", "EifSection", "EifStream", "measure_eif", "pcr_of", "read_eif"]

VERSION: Final = 4
KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
_MAGIC: Final = b".eif"
_MAX_SECTIONS: Final = 32
_HEADER = struct.Struct(f">4sHHQQHH{_MAX_SECTIONS}Q{_MAX_SECTIONS}QII")
"""548 bytes: magic, version, flags, memory, CPUs, reserved, number of sections, offsets, sizes,
reserved, CRC-32."""
_SECTION = struct.Struct(">HHQ")
_ARM64: Final = 1
_CRC_BYTES: Final = 4
_PIECE_BYTES: Final = 1 << 20
_MAX_IMAGE_BYTES: Final = 64 << 30
_MAX_SIGNATURE_BYTES: Final = 64 * 1024
_ZERO: Final = bytes(48)


class EifError(EnclaveError):
    """The bytes are not a whole enclave image of version 4."""


class EifStream(Protocol):
    """A binary stream, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


class EifSection(msgspec.Struct, frozen=True):
    """One section: its type (1 kernel, 2 command line, 3 ramdisk, 4 signature, 5 metadata)."""

    kind: int
    size_bytes: int


class Eif(msgspec.Struct, frozen=True):
    """An image, read to its end.

    `pcrs` holds PCR0, PCR1, PCR2, and PCR8 where the image is signed; 48 bytes each.
    """

    arm64: bool
    memory_bytes: int
    cpus: int
    sections: tuple[EifSection, ...]
    pcrs: dict[int, bytes]


def pcr_of(content_digest: bytes) -> bytes:
    """Return the value of a PCR that was extended once, with this SHA-384 of its content."""
    return hashlib.sha384(_ZERO + content_digest).digest()


def measure_eif(stream: EifStream) -> dict[int, bytes]:
    """Return the PCRs an enclave of this image will have; see `Eif.pcrs`.

    Raises:
        EifError: As `read_eif`.
    """
    return read_eif(stream).pcrs


def read_eif(stream: EifStream) -> Eif:
    """Read an image from its first byte to its last.

    The sections must be one kernel, one command line and a ramdisk or more, then signature and
    metadata in any order, each at most once, without gaps, up to the end of the stream.

    Args:
        stream: Untrusted; at most 64 GiB are read.

    Raises:
        EifError: It is no such image, or its CRC-32 is another.
    """
    return _Reader(stream).read()


class _Reader:
    def __init__(self, stream: EifStream) -> None:
        self._stream = stream
        self._position = 0
        self._crc = 0
        self._image = hashlib.sha384()
        self._boot = hashlib.sha384()
        self._application = hashlib.sha384()
        self._signature = b""

    def read(self) -> Eif:
        """Read the image to its end, measuring what goes by."""
        raw = self._exactly(_HEADER.size)
        magic, version, flags, memory, cpus, _, count, *numbers, _, crc = _HEADER.unpack(raw)
        if magic != _MAGIC or version != VERSION:
            raise EifError(f"it begins with {raw[:6].hex()}, expected an EIF of version {VERSION}")
        if not 0 < count <= _MAX_SECTIONS or sum(numbers[_MAX_SECTIONS:]) > _MAX_IMAGE_BYTES:
            raise EifError(f"it has {count} sections, expected 3 to {_MAX_SECTIONS} within 64 GiB")
        self._crc = zlib.crc32(raw[:-_CRC_BYTES])
        sections: list[EifSection] = []
        for offset, size in zip(numbers[:count], numbers[_MAX_SECTIONS:][:count], strict=True):
            sections.append(self._section(sections, offset, size))
        if self._stream.read(1):
            raise EifError("bytes follow its last section")
        if any(numbers[count:_MAX_SECTIONS]) or any(numbers[_MAX_SECTIONS + count :]):
            raise EifError("its header describes more sections than it counts")
        if [section.kind for section in sections[:3]] != [KERNEL, CMDLINE, RAMDISK]:
            raise EifError("it does not begin with kernel, command line and ramdisk")
        if self._crc != crc:
            raise EifError("its CRC-32 is another: the file is damaged; copy or build it again")
        return Eif(bool(flags & _ARM64), memory, cpus, tuple(sections), self._pcrs())

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._stream.read(size - len(data))
            if not piece:
                raise EifError(f"it ends after {self._position + len(data)} bytes, in the middle")
            data += piece
        self._position += size
        return data

    def _section(self, before: list[EifSection], offset: int, size: int) -> EifSection:
        if offset != self._position:
            raise EifError(f"a section is at {offset}, expected {self._position}, without a gap")
        raw = self._exactly(_SECTION.size)
        self._crc = zlib.crc32(raw, self._crc)
        kind, _, announced = _SECTION.unpack(raw)
        if announced != size:
            raise EifError(f"a section has {announced} bytes, the header says {size}")
        known = [section.kind for section in before]
        in_order = {KERNEL: known == [], CMDLINE: known == [KERNEL]}
        in_order[RAMDISK] = len(known) > 1 and not {SIGNATURE, METADATA} & set(known)
        in_order[SIGNATURE] = RAMDISK in known and SIGNATURE not in known
        in_order[METADATA] = RAMDISK in known and METADATA not in known
        if not in_order.get(kind, False):
            raise EifError(f"a section of type {kind} comes after those of types {known}")
        if kind == SIGNATURE and size > _MAX_SIGNATURE_BYTES:
            raise EifError(f"its signature has {size} bytes, at most {_MAX_SIGNATURE_BYTES} fit")
        self._take(kind, size, first_ramdisk=RAMDISK not in known)
        return EifSection(kind, size)

    def _take(self, kind: int, size: int, *, first_ramdisk: bool) -> None:
        left = size
        while left:
            data = self._exactly(min(left, _PIECE_BYTES))
            left -= len(data)
            self._crc = zlib.crc32(data, self._crc)
            if kind in (KERNEL, CMDLINE, RAMDISK):
                self._image.update(data)
                boots = kind != RAMDISK or first_ramdisk
                (self._boot if boots else self._application).update(data)
            elif kind == SIGNATURE:
                self._signature += data

    def _pcrs(self) -> dict[int, bytes]:
        pcrs = {
            0: pcr_of(self._image.digest()),
            1: pcr_of(self._boot.digest()),
            2: pcr_of(self._application.digest()),
        }
        if self._signature:
            pcrs[8] = pcr_of(hashlib.sha384(_signing_certificate(self._signature)).digest())
        return pcrs


def _signing_certificate(section: bytes) -> bytes:
    """Return the DER of the certificate in a signature section.

    That is a list of one map, whose `signing_certificate` is PEM, written as a list of numbers
    (serde's form of `Vec<u8>`) or as bytes. The signature itself is Nitro's to verify.
    """
    try:
        signatures: Any = decode_item(section)
        pem = bytes(signatures[0]["signing_certificate"])
        certificate = x509.load_pem_x509_certificate(pem)
        return certificate.public_bytes(serialization.Encoding.DER)
    except (StrictCborError, *CERTIFICATE_ERRORS) as error:
        raise EifError("its signature section cannot be read") from error
