"""Whatever is done to an encrypted file: a typed error that names it, and no complete package."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol.chunked_encryption import CHUNK_BYTES, PREFIX_BYTES, SEALED_CHUNK_BYTES
from enclave_protocol.package_archive import ArchiveEnd, FileData, FileStart
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_reader import read_package
from tests.support.example_package import FILES, KEY_ARN, ExamplePackage, make_example
from tests.support.held_key import HeldKey

HELD = HeldKey()
PACKAGE = make_example(held=HELD)
# Same files, same owner's key, another label and data key: what a splice would take from.
OTHER = make_example(name="other-scorer", held=HELD)
SIZE = len(PACKAGE.data)
CHUNK_ENDS = range(PACKAGE.header_bytes + PREFIX_BYTES, SIZE, SEALED_CHUNK_BYTES)


class Opened:
    """What a reader of a possibly bad file had in hand when it stopped."""

    def __init__(self, package: ExamplePackage, data: bytes, *, placed: bool) -> None:
        self.complete = False
        self.contents: dict[str, bytearray] = {}
        self.error: PackageError | None = None
        path = ""

        def unwrap(header: PackageHeader) -> bytearray:
            if header.kms_key_arn != KEY_ARN:  # as KMS: no other key opens it
                raise PackageTamperedError("another KMS key")
            return package.held.unwrap(header.wrapped_key, header.encryption_context)

        def place(start: FileStart) -> bytearray | None:
            if not placed:
                return None
            return self.contents.setdefault(start.path, bytearray(start.size))

        try:
            for event in read_package(io.BytesIO(data), unwrap, place=place, file="f.encrypted"):
                if isinstance(event, FileStart):
                    path = event.path
                    self.contents.setdefault(path, bytearray())
                elif isinstance(event, FileData):
                    self.contents[path] += event.data
                self.complete = isinstance(event, ArchiveEnd)
        except PackageError as error:
            self.error = error.with_file("f.encrypted")


def refuse(data: bytes, *, placed: bool) -> PackageError:
    opened = Opened(PACKAGE, data, placed=placed)
    assert opened.error is not None
    assert not opened.complete
    assert str(opened.error).startswith("f.encrypted: ")
    assert "\n" not in str(opened.error)
    for path, contents in opened.contents.items():
        # Every byte seen is the owner's at that place, or zero where none was put yet.
        original = FILES[path]
        for start in range(0, len(contents), 512):
            block = bytes(contents[start : start + 512])
            assert block in (original[start : start + 512], bytes(len(block)))
    return opened.error


@pytest.mark.parametrize("placed", [False, True])
def test_untouched_file_opens(placed: bool) -> None:
    opened = Opened(PACKAGE, PACKAGE.data, placed=placed)
    assert opened.complete and opened.error is None
    assert {path: bytes(data) for path, data in opened.contents.items()} == FILES


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("announced", [len(FILES) - 1, len(FILES) + 1])
def test_the_number_of_files_is_the_labels(announced: int, placed: bool) -> None:
    package = make_example(announced_files=announced)
    opened = Opened(package, package.data, placed=placed)
    assert isinstance(opened.error, PackageFormatError) and not opened.complete
    assert f"has {len(FILES)} files, the label announced {announced}" in str(opened.error)


# Any offset, with the short regions before the body as likely as the body.
OFFSETS = st.one_of(
    st.integers(0, 17),
    st.integers(18, PACKAGE.header_bytes - 1),
    st.integers(PACKAGE.header_bytes - len(HELD.wrap(bytes(32), {})), PACKAGE.header_bytes - 1),
    st.integers(PACKAGE.header_bytes, PACKAGE.header_bytes + PREFIX_BYTES),
    st.integers(PACKAGE.header_bytes, SIZE - 1),
)


@given(offset=OFFSETS, flip=st.integers(1, 255), placed=st.booleans())
@settings(max_examples=1500, deadline=None)
def test_any_altered_byte_is_refused(offset: int, flip: int, placed: bool) -> None:
    data = bytearray(PACKAGE.data)
    data[offset] ^= flip
    refuse(bytes(data), placed=placed)


def test_every_byte_before_the_first_chunk_is_covered() -> None:
    for offset in range(PACKAGE.header_bytes + PREFIX_BYTES):
        data = bytearray(PACKAGE.data)
        data[offset] ^= 1 << (offset % 8)
        refuse(bytes(data), placed=True)


@given(size=st.integers(0, SIZE - 1), placed=st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_truncation_is_refused(size: int, placed: bool) -> None:
    assert isinstance(refuse(PACKAGE.data[:size], placed=placed), PackageTruncatedError)


@pytest.mark.parametrize("near", [-17, -16, -1, 0, 1, 15, 16])
def test_truncation_at_every_chunk_is_seen(near: int) -> None:
    assert len(CHUNK_ENDS) == 4
    for end in CHUNK_ENDS:
        error = refuse(PACKAGE.data[: end + near], placed=True)
        assert isinstance(error, PackageTruncatedError)


@given(extra=st.binary(min_size=1, max_size=3 * CHUNK_BYTES), placed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_appended_bytes_are_refused(extra: bytes, placed: bool) -> None:
    refuse(PACKAGE.data + extra, placed=placed)


@given(cut=st.integers(1, SIZE - 1), resume=st.integers(1, SIZE - 1), placed=st.booleans())
@settings(max_examples=500, deadline=None)
def test_spliced_files_are_refused(cut: int, resume: int, placed: bool) -> None:
    if (spliced := PACKAGE.data[:cut] + OTHER.data[resume:]) not in (PACKAGE.data, OTHER.data):
        refuse(spliced, placed=placed)


def test_parts_of_two_files_do_not_mix() -> None:
    def parts(package: ExamplePackage) -> tuple[bytes, bytes, bytes]:
        label_end = 18 + package.label_bytes
        data = package.data
        return (
            data[:label_end],
            data[label_end : package.header_bytes],
            data[package.header_bytes :],
        )

    twin = make_example(held=HELD)  # even the label is the same
    for other in (OTHER, twin):
        ours, theirs = parts(PACKAGE), parts(other)
        for mask in range(1, 7):
            mixed = [theirs[i] if mask >> i & 1 else ours[i] for i in range(3)]
            if b"".join(mixed) not in (PACKAGE.data, other.data):
                refuse(b"".join(mixed), placed=True)


def test_chunks_neither_move_nor_repeat() -> None:
    start = PACKAGE.header_bytes + PREFIX_BYTES
    body = PACKAGE.data[start:]
    chunks = [body[i : i + SEALED_CHUNK_BYTES] for i in range(0, len(body), SEALED_CHUNK_BYTES)]
    head = PACKAGE.data[:start]
    swapped = [chunks[1], chunks[0], *chunks[2:]]
    repeated = [chunks[0], chunks[0], *chunks[2:]]
    dropped = [chunks[0], *chunks[2:]]
    for bad in (swapped, repeated, dropped):
        refuse(head + b"".join(bad), placed=True)
