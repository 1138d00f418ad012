import gzip
import io
import os
from pathlib import Path

import pytest

from enclave_infra.image.cpio_archive import EPOCH_S, write_cpio
from enclave_infra.image.cpio_reader import read_ramdisk
from enclave_infra.image.errors import ImageError


def _tree(root: Path) -> Path:
    root.mkdir()
    for name in ("etc", "tmp", "root", "dev"):
        (root / name).mkdir(mode=0o777)
    (root / "etc/a").write_bytes(b"abc")
    (root / "etc/a").chmod(0o666)
    (root / "etc/run").write_bytes(b"x" * 70_000)
    (root / "etc/run").chmod(0o6755)
    (root / "etc/link").symlink_to("a")
    return root


def _archive(root: Path, *, console: bool = False) -> bytes:
    target = io.BytesIO()
    assert write_cpio(root, target, console=console) == len(target.getvalue())
    return target.getvalue()


def test_entries(tmp_path: Path) -> None:
    data = _archive(_tree(tmp_path / "r"), console=True)
    found = {
        entry.name: (entry, content)
        for entry, content in read_ramdisk(io.BytesIO(data), len(data), lambda _: True)
    }
    assert {name: f"{entry.mode:o}" for name, (entry, _) in found.items()} == {
        "dev": "40755",
        "dev/console": "20600",
        "etc": "40755",
        "etc/a": "100644",
        "etc/link": "120777",
        "etc/run": "100755",
        "root": "40700",
        "tmp": "41777",
    }
    assert found["etc/a"][1] == b"abc"
    assert found["etc/run"][1] == b"x" * 70_000
    assert found["etc/link"][0].link == "a"
    assert found["dev/console"][0].device == (5, 1)
    assert list(found) == sorted(found)


def test_layout_of_an_entry(tmp_path: Path) -> None:
    """Against the kernel's document: the first entry, byte for byte."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/f").write_bytes(b"hello")
    header = "070701" + "".join(
        f"{field:08X}" for field in (1, 0o100644, 0, 0, 1, EPOCH_S, 5, 0, 0, 0, 0, 2, 0)
    )
    assert _archive(tmp_path / "r").startswith(
        header.encode() + b"f\0" + b"hello" + bytes(3) + b"070701"
    )


def test_same_bytes_of_a_tree_made_elsewhere_in_another_order(tmp_path: Path) -> None:
    one = _tree(tmp_path / "one")
    other = tmp_path / "deep" / "er"
    other.mkdir(parents=True)
    for path in sorted(one.rglob("*"), reverse=True):
        target = other / path.relative_to(one)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_file():
            target.write_bytes(path.read_bytes())
            target.chmod(0o700 if path.name == "run" else 0o600)
            os.utime(target, (1, 1))
        else:
            target.mkdir(exist_ok=True, mode=0o700)
    assert _archive(one) == _archive(other)


def test_packed_in_two_members(tmp_path: Path) -> None:
    data = _archive(_tree(tmp_path / "r"))
    packed = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    names = [entry.name for entry, _ in read_ramdisk(io.BytesIO(packed), len(packed))]
    assert names == [entry.name for entry, _ in read_ramdisk(io.BytesIO(data), len(data))]


def test_special_files_are_refused(tmp_path: Path) -> None:
    root = _tree(tmp_path / "r")
    os.mkfifo(root / "etc/pipe")
    with pytest.raises(ImageError, match="/etc/pipe is neither"):
        _archive(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-200], "ends in the middle"),
        (lambda data: b"070707" + data[6:], "expected a cpio"),
        (lambda data: data[:6] + b"zz" + data[8:], "not hexadecimal"),
        (lambda data: data[:94] + b"FFFFFFFF" + data[102:], "4294967295 bytes"),
        (lambda data: b"\x1f\x8bnonsense" + data, "cannot be unpacked"),
        (lambda data: gzip.compress(data)[:-500], "ends in the middle"),
    ],
)
def test_damaged(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    data = change(_archive(_tree(tmp_path / "r")))
    with pytest.raises(ImageError, match=message):
        list(read_ramdisk(io.BytesIO(data), len(data)))
