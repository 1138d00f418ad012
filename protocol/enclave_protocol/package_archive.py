"""The body's plaintext: a deterministic tar of regular files.

A subset of POSIX pax with exactly one encoding per content: entries in byte order of their
paths, no metadata but the executable bit, a pax header only where a field does not fit, two zero
blocks and nothing after. The reader refuses everything else, so any tar program can unpack an
archive, and no archive means two things to two readers.

Source: docs/spec/encrypted_package.md, "Archive".
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from enclave_protocol.chunked_encryption import BytesLike
from enclave_protocol.package_errors import PackageFormatError, PackageTruncatedError
from enclave_protocol.package_label import MAX_ARCHIVE_BYTES, MAX_FILES

__all__ = [
    "BLOCK_BYTES",
    "MAX_COMPONENT_BYTES",
    "MAX_DEPTH",
    "MAX_NAME_BYTES",
    "MAX_PATH_BYTES",
    "ArchiveEnd",
    "ArchiveEvent",
    "ArchiveReader",
    "Entry",
    "FileData",
    "FileEnd",
    "FileStart",
    "NameTable",
    "archive_size",
    "check_path",
    "encode_archive",
]

BLOCK_BYTES: Final = 512
MAX_PATH_BYTES: Final = 1024
"""Below every system's PATH_MAX with room for a prefix."""
MAX_COMPONENT_BYTES: Final = 255
"""NAME_MAX of the file systems packages come from and go to."""
MAX_DEPTH: Final = 32
MAX_NAME_BYTES: Final = 8 * 1024 * 1024
"""Of all files and folders of an archive together: bounds the reader's memory."""

_MAX_USTAR_NAME: Final = 100
_MAX_USTAR_SIZE: Final = 0o77777777777
_MAX_PAX_BYTES: Final = 4 * BLOCK_BYTES
"""Path and size records at their longest are 1063 bytes."""
_END: Final = bytes(2 * BLOCK_BYTES)
_PAX_NAME: Final = b"pax"
_REGULAR: Final = b"0"
_PAX: Final = b"x"
_PAX_RECORD: Final = re.compile(rb"(\d{1,4}) (path|size)=([^\n]*)\n")


@dataclass(frozen=True)
class Entry:
    """One regular file: its path in the package, size in bytes, and executable bit."""

    path: str
    size: int
    executable: bool = False


@dataclass(frozen=True)
class FileStart:
    """A file begins; `size` bytes of it follow."""

    path: str
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class FileData:
    """Some bytes of the current file.

    Attributes:
        data: A view of what was fed, valid until the next call: copy it to where it belongs.
    """

    data: memoryview


@dataclass(frozen=True)
class FileEnd:
    """The current file is complete (the archive need not be)."""

    path: str


@dataclass(frozen=True)
class ArchiveEnd:
    """The archive is complete: `files` files, `archive_bytes` bytes of tar."""

    files: int
    archive_bytes: int


ArchiveEvent = FileStart | FileData | FileEnd | ArchiveEnd


def check_path(path: str) -> None:
    """Check that `path` may name a file in a package.

    Raises:
        PackageFormatError: Absolute, with an empty, `.` or `..` part, a backslash, a control
            character or lone surrogate, not in Unicode NFC, or over a limit.
    """
    shown = ascii(path[:120])
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise PackageFormatError(f"the name {shown} is not valid UTF-8") from None
    parts = path.split("/")
    if len(encoded) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise PackageFormatError(
            f"the name {shown} is too long: at most {MAX_PATH_BYTES} bytes in {MAX_DEPTH} parts"
        )
    if any(part in ("", ".", "..") for part in parts):
        raise PackageFormatError(f"the name {shown} is not a plain path inside the package")
    if any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        raise PackageFormatError(
            f"the name {shown} has a part of more than {MAX_COMPONENT_BYTES} bytes"
        )
    if "\\" in path or any(unicodedata.category(character) == "Cc" for character in path):
        raise PackageFormatError(f"the name {shown} has a backslash or control character")
    if not unicodedata.is_normalized("NFC", path):
        raise PackageFormatError(f"the name {shown} is not in Unicode normal form C")


class NameTable:
    """The names of one archive, to refuse what two file systems would take differently."""

    def __init__(self) -> None:
        self._spelling: dict[str, str] = {}
        self._files = 0
        self._name_bytes = 0
        self._folder = ""
        self._previous = b""

    @property
    def files(self) -> int:
        """How many files were added."""
        return self._files

    def add(self, path: str) -> None:
        """Add a file.

        Raises:
            PackageFormatError: A bad, repeated, case-colliding or unsorted name, one that is
                both file and folder, or too many.
        """
        check_path(path)
        encoded = path.encode()
        if encoded <= self._previous:
            raise PackageFormatError(f"the name {path!r} is repeated or not in order")
        self._previous = encoded
        self._files += 1
        if self._files > MAX_FILES:
            raise PackageFormatError(f"more than {MAX_FILES} files: put small ones into one")
        folder = path.rpartition("/")[0]
        if folder != self._folder:
            parts = folder.split("/") if folder else []
            for depth in range(1, len(parts) + 1):
                self._claim("/".join(parts[:depth]) + "/", path)
            self._folder = folder
        self._claim(path, path)

    def _claim(self, name: str, path: str) -> None:
        # Folders end in "/": the key without it makes file "a" and folder "a/" collide, too.
        key = unicodedata.normalize("NFC", name.rstrip("/").casefold())
        known = self._spelling.get(key)
        if known == name and name.endswith("/"):
            return
        if known is not None:
            raise PackageFormatError(
                f"the names {known!r} and {path!r} are one on some systems: rename one"
            )
        self._name_bytes += len(name.encode())
        if self._name_bytes > MAX_NAME_BYTES:
            raise PackageFormatError(f"names of more than {MAX_NAME_BYTES} bytes together")
        self._spelling[key] = name


def archive_size(entries: Iterable[Entry]) -> int:
    """Return the size in bytes of the archive `encode_archive` makes of `entries`."""
    total = len(_END)
    for entry in entries:
        total += len(_encode_entry(entry)) + entry.size + _padding(entry.size)
    return total


def encode_archive(
    entries: Sequence[Entry], read: Callable[[Entry], Iterable[BytesLike]]
) -> Iterator[BytesLike]:
    """Yield the archive of `entries` piece by piece.

    Args:
        entries: Sorted by the UTF-8 bytes of their paths.
        read: Called once per entry, in order, for its contents in pieces of any size; a piece
            is done with when the next one is asked for.

    Raises:
        PackageFormatError: A bad name, names out of order, or contents of another size than
            the entry says.
    """
    names = NameTable()
    for entry in entries:
        names.add(entry.path)
        yield _encode_entry(entry)
        remaining = entry.size
        for piece in read(entry):
            remaining -= len(piece)
            if remaining < 0:
                break
            yield piece
        if remaining:
            raise PackageFormatError(f"{entry.path!r} changed its size while it was packed")
        if _padding(entry.size):
            yield bytes(_padding(entry.size))
    yield _END


class ArchiveReader:
    """Reads an archive from pieces of any size, holding no more than one header of it.

    Args:
        archive_bytes: The archive's size as announced; None if not known.
    """

    def __init__(self, archive_bytes: int | None = None) -> None:
        self._limit = MAX_ARCHIVE_BYTES if archive_bytes is None else archive_bytes
        self._announced = archive_bytes
        self._names = NameTable()
        self._held = bytearray()  # part of an entry's header blocks
        self._needed = BLOCK_BYTES
        self._current: FileStart | None = None
        self._remaining = 0  # of the current file's contents
        self._padding = 0  # still to come after them
        self._fed = 0
        self._used = 0  # by the entries so far, contents still to come included
        self._ended = False

    def feed(self, data: BytesLike) -> Iterator[ArchiveEvent]:
        """Yield the events that `data` completes: exhaust it before feeding more.

        Raises:
            PackageFormatError: Anything but the one encoding of a set of regular files.
        """
        view = memoryview(data).cast("B")
        position = 0
        self._fed += len(view)
        if self._fed > self._limit:
            raise PackageFormatError(f"the archive is longer than the {self._limit} bytes allowed")
        while position < len(view):
            if self._remaining:
                piece = view[position : position + self._remaining]
                position += len(piece)
                self._remaining -= len(piece)
                yield FileData(piece)
                if not self._remaining and self._current is not None:
                    yield FileEnd(self._current.path)
            elif self._padding:
                piece = view[position : position + self._padding]
                if any(piece):
                    raise PackageFormatError("the padding after a file is not zero")
                position += len(piece)
                self._padding -= len(piece)
            elif self._ended:
                raise PackageFormatError("data after the archive's end")
            else:
                count = min(self._needed - len(self._held), len(view) - position)
                self._held += view[position : position + count]
                position += count
                if len(self._held) == self._needed:
                    yield from self._header()

    @property
    def contents_ahead(self) -> int:
        """How many bytes the current file still lacks: the next that are to be fed."""
        return self._remaining

    def take_contents(self, count: int) -> Iterator[ArchiveEvent]:
        """Account for `count` bytes of contents that the caller put in place itself.

        Args:
            count: At most `contents_ahead`.

        Raises:
            PackageFormatError: More than the current file lacks.
        """
        if count > self._remaining:
            raise PackageFormatError(f"{count} bytes of contents, the file has {self._remaining}")
        self._fed += count
        self._remaining -= count
        if count and not self._remaining and self._current is not None:
            yield FileEnd(self._current.path)

    def finish(self) -> ArchiveEnd:
        """Return the end of the archive; call it when there is nothing more to feed.

        Raises:
            PackageTruncatedError: The archive is not complete.
            PackageFormatError: Its size is not the announced one.
        """
        if not self._ended:
            raise PackageTruncatedError("the archive ends too early")
        if self._announced is not None and self._fed != self._announced:
            raise PackageFormatError(
                f"the archive has {self._fed} bytes, the label announced {self._announced}"
            )
        return ArchiveEnd(files=self._names.files, archive_bytes=self._fed)

    def _header(self) -> Iterator[ArchiveEvent]:
        raw = bytes(self._held)
        first = raw[:BLOCK_BYTES]
        if not any(first):
            if len(raw) == BLOCK_BYTES:
                self._needed = len(_END)
                return
            if raw != _END:
                raise PackageFormatError("the archive's end is not two zero blocks")
            self._ended = True
            return
        if len(raw) == BLOCK_BYTES and first[156:157] == _PAX:
            # Pax header, its records, and the file's own header follow; all are held at once.
            size = _octal(first[124:135])
            if not 0 < size <= _MAX_PAX_BYTES:
                raise PackageFormatError(f"a pax header of {size} bytes")
            self._needed += size + _padding(size) + BLOCK_BYTES
            return
        entry = _decode_entry(raw)
        self._names.add(entry.path)
        # More than announced is refused before anybody allocates for it.
        self._used += len(raw) + entry.size + _padding(entry.size)
        if self._used + len(_END) > self._limit:
            raise PackageFormatError(
                f"{entry.path!r} announces {entry.size} bytes, more than the archive has"
            )
        self._held.clear()
        self._needed = BLOCK_BYTES
        self._remaining = entry.size
        self._padding = _padding(entry.size)
        self._current = FileStart(entry.path, entry.size, entry.executable)
        yield self._current
        if not entry.size:
            yield FileEnd(entry.path)


def _padding(size: int) -> int:
    return -size % BLOCK_BYTES


def _octal(field: bytes) -> int:
    if not re.fullmatch(rb"[0-7]{7,11}", field):
        raise PackageFormatError("a header field is not an octal number")
    return int(field, 8)


def _encode_entry(entry: Entry) -> bytes:
    """Return the header blocks of `entry`: the one encoding there is of it."""
    path = entry.path.encode()
    records = b""
    if len(path) > _MAX_USTAR_NAME:
        records += _pax_record(b"path", path)
        path = _PAX_NAME
    size = entry.size
    if size > _MAX_USTAR_SIZE:
        records += _pax_record(b"size", str(size).encode())
        size = 0
    block = _ustar(path, size, _REGULAR, 0o755 if entry.executable else 0o644)
    if not records:
        return block
    pax = _ustar(_PAX_NAME, len(records), _PAX, 0o644)
    return pax + records + bytes(_padding(len(records))) + block


def _ustar(name: bytes, size: int, kind: bytes, mode: int) -> bytes:
    fields = (
        name.ljust(100, b"\x00")
        + b"%07o\x00" % mode
        + b"0000000\x00" * 2  # uid, gid
        + b"%011o\x00" % size
        + b"00000000000\x00"  # mtime
    )
    rest = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    checksum = sum(fields) + sum(rest) + 8 * 0x20
    return fields + b"%06o\x00 " % checksum + rest


def _pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def _decode_entry(raw: bytes) -> Entry:
    """Return the entry whose header blocks are `raw`.

    Fields are read leniently, then the entry is encoded again: any deviation, from a link's
    type flag to an unusual checksum, shows as a difference.
    """
    block = raw[-BLOCK_BYTES:]
    if block[156:157] != _REGULAR:
        raise PackageFormatError(
            f"an entry of type {block[156:157]!r}: packages hold regular files only"
        )
    path = block[:100].rstrip(b"\x00")
    size = _octal(block[124:135])
    if len(raw) > BLOCK_BYTES:
        records = raw[BLOCK_BYTES : BLOCK_BYTES + _octal(raw[124:135])]
        for match in _PAX_RECORD.finditer(records):
            if match[2] == b"path":
                path = match[3]
            elif re.fullmatch(rb"[1-9]\d{9,18}", match[3]):
                size = int(match[3])
    try:
        entry = Entry(path.decode(), size, executable=_octal(block[100:107]) == 0o755)
    except UnicodeDecodeError:
        raise PackageFormatError(f"the name {path[:120]!r} is not valid UTF-8") from None
    if size > MAX_ARCHIVE_BYTES or _encode_entry(entry) != raw:
        raise PackageFormatError(f"the header of {path[:120]!r} is not in canonical form")
    return entry
