"""Results against hostile archives and hostile folders: nothing is written but where it may be."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from enclave_parent_gateway.run.output_files import OutputFiles, OutputPlace, choose_place
from enclave_parent_gateway.run.run_errors import OutputPlaceError
from enclave_parent_gateway.run.shared_tree import SharedTree
from enclave_parent_gateway.runtime_dir import FileLock
from enclave_protocol.package_archive import Entry, encode_archive
from enclave_protocol.package_errors import PackageError
from enclave_protocol.workspace.names import TEMPORARY_FOLDER


def _archive(files: Mapping[str, bytes]) -> memoryview:
    entries = [Entry(name, len(data), True) for name, data in sorted(files.items())]
    pieces = encode_archive(entries, lambda entry: [files[entry.path]])
    return memoryview(b"".join(bytes(piece) for piece in pieces))


class Desk:
    """A workspace, and what is beside it."""

    def __init__(self, root: Path) -> None:
        self.workspace = root / "workspace"
        self.workspace.mkdir()
        self.outside = root / "outside"
        self.outside.mkdir()
        self.lock = FileLock(root / "sync.lock")

    def files(self, place: OutputPlace, outputs: tuple[str, ...] = ("output",)) -> OutputFiles:
        return OutputFiles(place, outputs, lambda root: SharedTree(root, self.lock))

    def take(self, files: OutputFiles, archive: memoryview) -> None:
        try:
            # In pieces, as it comes.
            for start in range(0, len(archive), 700):
                files.feed(archive[start : start + 700])
            files.finish()
        finally:
            files.close()

    def found(self) -> set[str]:
        paths = self.workspace.rglob("*")
        return {str(path.relative_to(self.workspace)) for path in paths if not path.is_dir()}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    assert list(desk.outside.iterdir()) == []
    assert not (desk.workspace / TEMPORARY_FOLDER).exists()


def _place(desk: Desk) -> OutputPlace:
    return choose_place(desk.workspace, None, None, ("output",))


def test_names_and_places_that_are_not_taken(desk: Desk) -> None:
    files = desk.files(_place(desk))
    names = (
        *("output/.ssh/authorized_keys", "output/.BASHRC", "output/a/conftest.py", "elsewhere"),
        *("output/x.pth", "outputs/a", "output/sub/.git/hooks/pre-commit", "output/\u202etxt"),
    )
    desk.take(
        files, _archive({"output/good": b"1", "output/deep/er": b"2"} | dict.fromkeys(names, b"x"))
    )
    assert desk.found() == {"output/good", "output/deep/er"}
    assert set(files.problems) == set(names)
    assert sorted(files.written) == ["output/deep/er", "output/good"]
    assert (desk.workspace / "output" / "good").stat().st_mode & 0o111 == 0


def test_links_in_the_way_are_not_followed(desk: Desk) -> None:
    output = desk.workspace / "output"
    output.mkdir()
    (output / "folder").symlink_to(desk.outside)
    (output / "file").symlink_to(desk.outside / "file")
    os.mkfifo(output / "pipe")
    (output / "taken").mkdir()
    (output / "plain").write_text("in the way of a folder")
    files = desk.files(_place(desk))
    names = ("folder/a", "file", "pipe", "taken", "plain/a")
    desk.take(files, _archive({f"output/{name}": b"x" for name in (*names, "good")}))
    assert set(files.problems) == {f"output/{name}" for name in names}
    assert files.written == ["output/good"]
    (output / "pipe").unlink()
    # The output folder itself, swapped after it was checked.
    place = _place(desk)
    output.rename(desk.workspace / "was")
    output.symlink_to(desk.outside)
    files = desk.files(place)
    desk.take(files, _archive({"output/a": b"x"}))
    assert files.written == [] and set(files.problems) == {"output/a"}
    with pytest.raises(OutputPlaceError, match="is a link"):
        _place(desk)


@pytest.mark.parametrize("cut", [1, 600, 1500])
def test_what_is_no_whole_archive_leaves_no_half_file(desk: Desk, cut: int) -> None:
    files = desk.files(_place(desk))
    archive = _archive({"output/a": b"x" * 900, "output/b": b"y" * 900})
    with pytest.raises(PackageError):
        desk.take(files, archive[:-cut])
    for name in files.written:
        assert len((desk.workspace / name).read_bytes()) == 900
    with pytest.raises(PackageError):
        desk.take(desk.files(_place(desk)), memoryview(b"\xff" * 2048))


def test_another_folder(desk: Desk, tmp_path: Path) -> None:
    chosen = tmp_path / "new" / "results"
    archive = _archive({"output/deep/a": b"1"})
    desk.take(desk.files(choose_place(desk.workspace, chosen, None, ("output",))), archive)
    assert (chosen / "deep" / "a").read_bytes() == b"1"
    two = ("output", "more")
    desk.take(
        desk.files(choose_place(desk.workspace, chosen, None, two), two),
        _archive({"output/a": b"1", "more/a": b"2"}),
    )
    assert (chosen / "output" / "a").read_bytes() + (chosen / "more" / "a").read_bytes() == b"12"
    # In the folder that is mirrored, unfinished files are where the mirror leaves them alone.
    inside = desk.workspace / "results"
    place = choose_place(desk.workspace, inside, desk.workspace, ("output",))
    assert (place.root, place.prefix) == (desk.workspace, "results/")
    desk.take(desk.files(place), archive)
    assert (inside / "deep" / "a").read_bytes() == b"1"
    (tmp_path / "file").touch()
    with pytest.raises(OutputPlaceError, match="choose another with -o"):
        choose_place(desk.workspace, tmp_path / "file", None, ("output",))


def test_several_trees_at_once_and_a_mirror(desk: Desk) -> None:
    first, second = (SharedTree(desk.workspace, desk.lock) for _ in range(2))
    staged = first.stage()
    second.close()
    os.fstat(staged.descriptor)
    assert list((desk.workspace / TEMPORARY_FOLDER).rglob(staged.name))
    # A mirror runs: the folder that it works in stays.
    mirror = FileLock(desk.lock._path)
    assert mirror.try_acquire()
    first.abandon(staged)
    first.close()
    assert list((desk.workspace / TEMPORARY_FOLDER).iterdir()) == []
    mirror.release()
    SharedTree(desk.workspace, desk.lock).close()
    assert not (desk.workspace / TEMPORARY_FOLDER).exists()
