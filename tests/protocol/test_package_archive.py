import io
import tarfile
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol import package_archive
from enclave_protocol.package_archive import (
    ArchiveEnd,
    ArchiveReader,
    Entry,
    FileData,
    FileEnd,
    FileStart,
    NameTable,
    archive_size,
    check_path,
    encode_archive,
)
from enclave_protocol.package_errors import PackageFormatError, PackageTruncatedError
from tests.support import plain_package as plain

PART = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=40,
).filter(lambda part: part not in (".", ".."))
PATH = st.lists(PART, min_size=1, max_size=4).map(
    lambda parts: unicodedata.normalize("NFC", "/".join(parts))
)


def acceptable(paths: list[str]) -> bool:
    table = NameTable()
    try:
        for path in paths:
            table.add(path)
    except PackageFormatError:
        return False
    return True


FILES = (
    st.dictionaries(PATH, st.tuples(st.binary(max_size=2000), st.booleans()), max_size=6)
    .map(lambda files: {path: files[path] for path in sorted(files, key=str.encode)})
    .filter(lambda files: acceptable(list(files)))
)


def pack(files: dict[str, tuple[bytes, bool]]) -> bytes:
    entries = [Entry(path, len(data), executable) for path, (data, executable) in files.items()]
    archive = b"".join(encode_archive(entries, lambda entry: [files[entry.path][0]]))
    assert len(archive) == archive_size(entries)
    return archive


def unpack(archive: bytes, step: int | None = None) -> dict[str, tuple[bytes, bool]]:
    reader = ArchiveReader(len(archive))
    files: dict[str, tuple[bytes, bool]] = {}
    contents, executable, size = bytearray(), False, 0
    for position in range(0, len(archive), step or len(archive)):
        for event in reader.feed(archive[position : position + (step or len(archive))]):
            if isinstance(event, FileStart):
                contents, executable, size = bytearray(), event.executable, event.size
            elif isinstance(event, FileData):
                contents += event.data
            elif isinstance(event, FileEnd):
                assert len(contents) == size
                files[event.path] = bytes(contents), executable
    assert reader.finish() == ArchiveEnd(len(files), len(archive))
    return files


@given(files=FILES, step=st.integers(1, 1500))
@settings(deadline=None)
def test_round_trip_in_pieces_and_with_tarfile(
    files: dict[str, tuple[bytes, bool]], step: int
) -> None:
    archive = pack(files)
    assert unpack(archive, step) == files
    assert plain.unpack_tar(archive) == files


@given(files=FILES, offset=st.integers(0, 1 << 30), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=300)
def test_one_encoding_per_content(
    files: dict[str, tuple[bytes, bool]], offset: int, flip: int
) -> None:
    archive = bytearray(pack(files))
    archive[offset % len(archive)] ^= flip
    try:
        opened = unpack(bytes(archive))
    except (PackageFormatError, PackageTruncatedError):
        return
    assert pack(opened) == archive  # only contents may differ: then it is their encoding


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("p" * 100, 5),
        ("p" * 101, 5),
        ("ü" * 60, 5),
        ("d/" * 31 + "f", 0),
        ("long/" * 30 + "f", 600),
    ],
)
def test_names_around_the_ustar_limit(path: str, size: int) -> None:
    files = {path: (bytes(size), False)}
    assert unpack(pack(files)) == files
    assert plain.unpack_tar(pack(files)) == files


def test_sizes_over_eight_gibibytes_use_pax() -> None:
    entry = Entry("model.bin", 9 * 2**30)
    header = next(iter(encode_archive([entry], lambda _: [])))
    with tarfile.open(fileobj=io.BytesIO(bytes(header) + bytes(512))) as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == ("model.bin", entry.size)
    (start,) = ArchiveReader().feed(header)
    assert start == FileStart("model.bin", entry.size, executable=False)


BAD_PATHS = [
    "", "/etc/passwd", "../x", "a/../b", "a/./b", "./a", "a//b", "a/", "a\\b", "a\x00b", "a\nb",
    "a\x1bb", "a\x85b", "u\u0308", "x" * 256, "d/" * 32 + "f", "y" * 200 + "/" + "é" * 500,
    "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS, ids=ascii)
def test_bad_names_are_refused(path: str) -> None:
    with pytest.raises(PackageFormatError):
        check_path(path)


@pytest.mark.parametrize(
    "path", [path for path in BAD_PATHS if path not in ("", "\udcff")], ids=ascii
)
def test_bad_names_are_refused_in_archives(path: str) -> None:
    archive = package_archive._encode_entry(Entry(path, 0)) + bytes(1024)
    with pytest.raises(PackageFormatError):
        unpack(archive)


@pytest.mark.parametrize(
    "paths",
    [("a", "a"), ("b", "a"), ("A", "a"), ("a", "a/b"), ("A/x", "a/y"), ("STRASSE", "straße")],
)
def test_colliding_names_are_refused(paths: tuple[str, str]) -> None:
    archive = b"".join(package_archive._encode_entry(Entry(path, 0)) for path in paths)
    with pytest.raises(PackageFormatError):
        unpack(archive + bytes(1024))
    with pytest.raises(PackageFormatError):
        list(encode_archive([Entry(path, 0) for path in paths], lambda _: []))


@pytest.mark.parametrize(
    "kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"g", b"L", b"S", b"\0"]
)
def test_everything_but_regular_files_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("entry")
    info.type, info.linkname, info.mode = kind, "target" if kind in b"12" else "", 0o644
    with pytest.raises(PackageFormatError):
        unpack(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


@pytest.mark.parametrize(
    "change",
    [{"mode": 0o600}, {"mode": 0o4755}, {"uid": 1}, {"gid": 1}, {"mtime": 1}, {"uname": "root"}],
)
def test_metadata_is_refused(change: dict[str, int | str]) -> None:
    info = tarfile.TarInfo("entry")
    info.mode = 0o644
    assert unpack(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)) == {"entry": (b"", False)}
    for name, value in change.items():
        setattr(info, name, value)
    with pytest.raises(PackageFormatError, match="canonical"):
        unpack(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


def test_pax_where_none_is_needed_is_refused() -> None:
    info = tarfile.TarInfo("x" * 90)
    info.mode, info.pax_headers = 0o644, {"path": "y"}
    with pytest.raises(PackageFormatError):
        unpack(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


def test_end_and_what_follows() -> None:
    archive = pack({"a": (b"x" * 600, False)})
    for bad in (archive + bytes(512), archive + b"x", archive[:-1024] + bytes(512) + b"x" * 512):
        reader = ArchiveReader()
        with pytest.raises(PackageFormatError):
            list(reader.feed(bad))
    for size in range(0, len(archive), 100):
        reader = ArchiveReader()
        list(reader.feed(archive[:size]))
        with pytest.raises(PackageTruncatedError):
            reader.finish()


def test_padding_is_zero() -> None:
    archive = bytearray(pack({"a": (b"x", False)}))
    archive[1023] = 1
    with pytest.raises(PackageFormatError, match="padding"):
        unpack(bytes(archive))


def test_announced_sizes_bound_what_is_asked_for() -> None:
    huge = package_archive._encode_entry(Entry("a", 2**39))
    with pytest.raises(PackageFormatError, match="announces"):
        list(ArchiveReader(4096).feed(huge))
    with pytest.raises(PackageFormatError, match="longer"):
        list(ArchiveReader(1024).feed(bytes(1025)))
    reader = ArchiveReader(2048)
    list(reader.feed(bytes(1024)))
    with pytest.raises(PackageFormatError, match="announced"):
        reader.finish()


def test_number_and_length_of_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_archive, "MAX_FILES", 2)
    table = NameTable()
    table.add("a")
    table.add("b")
    with pytest.raises(PackageFormatError, match="2 files"):
        table.add("c")
    monkeypatch.setattr(package_archive, "MAX_NAME_BYTES", 10)
    with pytest.raises(PackageFormatError, match="10 bytes"):
        NameTable().add("folder/name")


@pytest.mark.parametrize("contents", [b"", b"xx", b"x" * 400])
def test_contents_of_another_size_are_refused(contents: bytes) -> None:
    with pytest.raises(PackageFormatError, match="changed its size"):
        list(encode_archive([Entry("a", 3)], lambda _: [contents]))
