"""Opening a package whose data key is known: ciphertext in, archive events out.

The steps are those of docs/spec/encrypted_package.md, "Opening". No I/O beyond the readable
that a caller hands in; what becomes of the files is the caller's.
"""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from enclave_protocol.body_digest import BodyDigest
from enclave_protocol.chunked_encryption import (
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    BytesLike,
    Decryptor,
    sealed_size,
)
from enclave_protocol.data_key_commitment import check_data_key
from enclave_protocol.package_archive import (
    ArchiveEnd,
    ArchiveEvent,
    ArchiveReader,
    FileData,
    FileStart,
)
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from enclave_protocol.package_header import (
    PREAMBLE_BYTES,
    PackageHeader,
    decode_header,
    header_size,
)
from enclave_protocol.package_signature import PackageSignatureError

__all__ = ["READ_BYTES", "PackageReader", "Place", "Readable", "read_header", "read_package"]

_STAGE_CHUNKS: Final = 16
READ_BYTES: Final = 32 * SEALED_CHUNK_BYTES
"""Whole chunks, so that none is copied, and few enough to stay in a core's cache."""


class Readable(Protocol):
    """A binary stream, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` from its start; return how many bytes, 0 at the end."""
        ...


Place = Callable[[FileStart], bytearray | memoryview | None]
"""Returns where a file's contents go, writable and of its size; None to get them as events."""


class PackageReader:
    """Decrypts and reads a package's body.

    Events and contents come from verified chunks, but mean nothing before `finish` returned:
    place files as they come, use none. After an error everything placed is to be thrown away.
    Of a signed package the signature is verified first, and the body's digest at the end.

    Args:
        header: The file's header.
        data_key: 32 bytes, the one the label commits to; the caller wipes it.
        place: Where contents go, asked at every file's start: whole chunks are then decrypted
            right there, and there is no `FileData`. Without it contents come as events.
        file: The file's name, for errors.

    Raises:
        PackageSignatureError: The publisher's signature is not of this label.
        PackageFormatError: The data key has another size, or the public key is none.
    """

    def __init__(
        self,
        header: PackageHeader,
        data_key: BytesLike,
        *,
        place: Place | None = None,
        file: str | None = None,
    ) -> None:
        self._file = file
        self._place = place
        self._label = header.label
        self._body_bytes = sealed_size(header.label.archive_bytes)
        self._fed = 0
        try:
            header.verify_signature()  # 3
            check_data_key(data_key, header.label.data_key_commitment)  # 5
            self._decryptor = Decryptor(data_key, header.context)
        except PackageError as error:
            raise error.with_file(file) from None
        signature = header.signature
        self._signed_digest = None if signature is None else signature.body_digest
        self._digest = None if signature is None else BodyDigest()
        self._archive = ArchiveReader(header.label.archive_bytes)
        self._stage = memoryview(bytearray(_STAGE_CHUNKS * CHUNK_BYTES))
        self._destination: memoryview | None = None  # what the current file still lacks

    def feed(self, data: BytesLike, *, kept: bool = False) -> Iterator[ArchiveEvent]:
        """Yield the events that `data`, ciphertext of any length, completes.

        Exhaust it before feeding more: its views are into a buffer that is used again. Pieces
        of `READ_BYTES` are fastest.

        Args:
            data: The body's next bytes.
            kept: The caller promises that `data` stays as it is until the next `feed` is
                exhausted, or `finish` or `close` returned: then the caller can get the next piece,
                into another buffer, while this one is hashed.

        Raises:
            PackageTamperedError: Wrong key, or altered, or longer than announced.
            PackageFormatError: The owner's archive breaks a rule.
        """
        view = memoryview(data).cast("B")
        if self._digest is not None:
            self._digest.begin(view)  # beside the decryption
        try:
            yield from self._feed(view)
        except PackageError as error:
            self.close()
            raise error.with_file(self._file) from None
        finally:
            if self._digest is not None and not kept:
                self._digest.join()

    def finish(self) -> Iterator[ArchiveEvent]:
        """Yield the last events; `ArchiveEnd` comes last, and says that everything verified.

        Raises:
            PackageTruncatedError: The body is shorter than announced.
            PackageTamperedError: The last chunk is altered.
            PackageSignatureError: Another body than the publisher signed.
            PackageFormatError: The archive is not what the label announced.
        """
        try:
            yield from self._finish()
        except PackageError as error:
            raise error.with_file(self._file) from None
        finally:
            self.close()

    def close(self) -> None:
        """End what hashes; only needed when it is given up before `finish`."""
        if self._digest is not None:
            self._digest.close()

    def _feed(self, data: memoryview) -> Iterator[ArchiveEvent]:
        self._fed += len(data)
        decryptor, archive = self._decryptor, self._archive
        while data:
            direct = self._destination
            chunks = archive.contents_ahead // CHUNK_BYTES if direct is not None else 0
            if direct is not None and chunks:
                piece = data[: decryptor.input_size(chunks)]
                written = decryptor.update_into(piece, direct)  # 6
                self._destination = direct[written:]
                yield from archive.take_contents(written)
            else:
                piece = data[: decryptor.input_size(_STAGE_CHUNKS)]
                written = decryptor.update_into(piece, self._stage)  # 6
                yield from self._deliver(self._stage[:written])
            data = data[len(piece) :]
        if self._fed > self._body_bytes:  # 7
            raise PackageTamperedError(
                f"the body is longer than the {self._body_bytes} bytes the label announces: "
                "get the file again from its publisher"
            )

    def _deliver(self, plain: BytesLike) -> Iterator[ArchiveEvent]:
        """Yield the archive's events for `plain`; contents that have a place go there."""
        for event in self._archive.feed(plain):
            if isinstance(event, FileData) and self._destination is not None:
                count = len(event.data)
                self._destination[:count] = event.data
                self._destination = self._destination[count:]
                continue
            if isinstance(event, FileStart):
                self._destination = self._ask_place(event)
            yield event

    def _ask_place(self, start: FileStart) -> memoryview | None:
        buffer = None if self._place is None else self._place(start)
        if buffer is None:
            return None
        view = memoryview(buffer).cast("B")
        if len(view) != start.size:
            raise PackageError(f"a place of {len(view)} bytes for {start.size} bytes of contents")
        return view

    def _finish(self) -> Iterator[ArchiveEvent]:
        if self._fed < self._body_bytes:  # 8
            raise PackageTruncatedError(
                f"the body ends after {self._fed} of {self._body_bytes} bytes: "
                "copy the file again, whole"
            )
        yield from self._deliver(self._decryptor.finalize())
        end: ArchiveEnd = self._archive.finish()
        if end.files != self._label.file_count:
            raise PackageFormatError(
                f"the archive has {end.files} files, the label announced {self._label.file_count}"
            )
        if self._digest is not None and self._digest.finish() != self._signed_digest:  # 9
            raise PackageSignatureError(
                "the body is not the one that the publisher signed: get the file again from its "
                "publisher"
            )
        yield end  # 10: only now may anything be used


def read_header(stream: Readable, *, file: str | None = None) -> PackageHeader:
    """Return the header at the start of `stream`, reading nothing behind it.

    Raises:
        PackageFormatError: Not an encrypted package, or its header breaks a rule or limit.
        PackageTruncatedError: `stream` ends within the header.
    """
    try:
        preamble = _read_up_to(stream, PREAMBLE_BYTES)  # 1
        size = header_size(preamble)
        # 2
        return decode_header(preamble + _read_up_to(stream, size - PREAMBLE_BYTES))
    except PackageError as error:
        raise error.with_file(file) from None


def read_package(
    stream: Readable,
    unwrap: Callable[[PackageHeader], bytearray],
    *,
    place: Place | None = None,
    file: str | None = None,
) -> Iterator[ArchiveEvent]:
    """Yield the events of the package in `stream`; it is complete only with `ArchiveEnd`.

    Args:
        stream: The encrypted file, at its start.
        unwrap: Returns the data key; it is wiped here.
        place: As in `PackageReader`.
        file: The file's name, for errors.

    Raises:
        PackageError: As `read_header` and `PackageReader`; it names the file.
    """
    header = read_header(stream, file=file)
    data_key = unwrap(header)  # 4
    try:
        reader = PackageReader(header, data_key, place=place, file=file)
    finally:
        data_key[:] = bytes(len(data_key))  # 5
    buffers = [memoryview(bytearray(READ_BYTES)) for _ in range(2)]
    while count := stream.readinto(buffers[0]):
        yield from reader.feed(buffers[0][:count], kept=True)
        buffers.reverse()
    yield from reader.finish()


def _read_up_to(stream: Readable, size: int) -> bytes:
    """Return `size` bytes, fewer only at the end; a raw stream may need several reads."""
    data = b""
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    return data
