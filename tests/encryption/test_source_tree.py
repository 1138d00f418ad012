import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_encryption.errors import SourceTreeError
from enclave_encryption.source_tree import SourceFile, SourceTree, scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b/c/data").write_bytes(b"0123456789")
    (tmp_path / "b-").write_bytes(b"")
    return tmp_path


def only(tree: SourceTree, path: str) -> SourceFile:
    (file,) = (file for file in tree.files if file.entry.path == path)
    return file


def contents(tree: SourceTree, path: str, buffer_bytes: int = 4) -> bytes:
    buffer = memoryview(bytearray(buffer_bytes))
    return b"".join(bytes(piece) for piece in tree.read(only(tree, path), buffer))


def test_files_in_byte_order_and_their_contents(folder: Path) -> None:
    tree = scan(folder)
    assert [file.entry.path for file in tree.files] == ["a.py", "b-", "b/c/data"]
    assert contents(tree, "b/c/data") == b"0123456789"
    assert contents(tree, "b-") == b""
    assert tree.text("a.py", 100) == "x = 1\n"
    assert tree.text("none.py", 100) is None


def test_skipped_names_at_any_depth(folder: Path) -> None:
    for name in ("__pycache__", ".git"):
        (folder / "b" / name).mkdir()
        (folder / "b" / name / "x").write_text("")
        (folder / "b" / name / "link").symlink_to("x")
    (folder / "b/.DS_Store").write_text("")
    assert len(scan(folder).files) == 3


def test_a_link_to_the_directory_itself_is_followed(folder: Path, tmp_path: Path) -> None:
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(folder)
    assert len(scan(link).files) == 3


@pytest.mark.parametrize("content", [b"0123456789+", b"012345678", b"9876543210"])
def test_a_file_that_changes_is_an_error(folder: Path, content: bytes) -> None:
    tree = scan(folder)
    (folder / "b/c/data").write_bytes(content)
    with pytest.raises(SourceTreeError, match="b/c/data: changed while"):
        contents(tree, "b/c/data")


def test_a_file_that_grows_while_read_is_an_error(folder: Path) -> None:
    tree = scan(folder)
    pieces = tree.read(only(tree, "b/c/data"), memoryview(bytearray(4)))
    next(pieces)
    with (folder / "b/c/data").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceTreeError, match="changed while"):
        list(pieces)


def test_what_takes_a_files_place_is_not_read(folder: Path, tmp_path: Path) -> None:
    tree = scan(folder)
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(b"0123456789")
    (folder / "b/c/data").unlink()
    (folder / "b/c/data").symlink_to(secret)
    with pytest.raises(SourceTreeError, match="b/c/data: cannot be read"):
        contents(tree, "b/c/data")
    (folder / "b/c/data").unlink()
    os.mkfifo(folder / "b/c/data")
    with pytest.raises(SourceTreeError, match="changed while"):
        contents(tree, "b/c/data")
    shutil.rmtree(folder / "b/c")
    (folder / "b/c").symlink_to(tmp_path)
    with pytest.raises(SourceTreeError, match="cannot be read"):
        contents(tree, "b/c/data")


@pytest.mark.parametrize(
    "name", ["back\\slash", "new\nline", unicodedata.normalize("NFD", "ü"), "\udcff"], ids=ascii
)
def test_names_a_package_cannot_have(folder: Path, name: str) -> None:
    (folder / name).write_text("")
    with pytest.raises(SourceTreeError) as caught:
        scan(folder)
    (problem,) = caught.value.problems
    assert problem.isprintable()


def test_names_that_collide_on_other_systems(folder: Path) -> None:
    (folder / "A.py").write_text("")
    (folder / "B").write_text("")
    with pytest.raises(SourceTreeError) as caught:
        scan(folder)
    assert len(caught.value.problems) == 2


def test_empty_or_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceTreeError, match="holds no file"):
        scan(tmp_path)
    with pytest.raises(SourceTreeError, match="no such directory"):
        scan(tmp_path / "none")


def test_text_has_limits(folder: Path) -> None:
    (folder / "bad.py").write_bytes(b"\xff")
    tree = scan(folder)
    with pytest.raises(SourceTreeError, match="at most 5"):
        tree.text("a.py", 5)
    with pytest.raises(SourceTreeError, match="not UTF-8"):
        tree.text("bad.py", 5)


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder an ordinary user reaches, for root passes every permission check."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_unreadable_files_and_folders_are_named(nobodys_folder: Path) -> None:
    (nobodys_folder / "open").write_text("")
    (nobodys_folder / "secret").write_text("")
    (nobodys_folder / "secret").chmod(0)
    (nobodys_folder / "closed").mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(SourceTreeError) as caught:
            scan(nobodys_folder)
    finally:
        if root:
            os.seteuid(0)
        (nobodys_folder / "closed").chmod(0o700)
    assert caught.value.problems == (
        "closed: cannot be read: Permission denied",
        "secret: cannot be read: Permission denied",
    )
