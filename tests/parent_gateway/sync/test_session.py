"""The live mirror, both ends in this process: times, logs, holes, room, rules, permissions."""

import ctypes
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.sync.session import MirrorSession
from enclave_protocol.workspace.messages import decode_from_enclave
from enclave_protocol.workspace.stream import MessageStream
from tests.support.enclave_home import wait_until
from tests.support.workspace_pair import WorkspacePair, serve_workspace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


@pytest.fixture
def pair(tmp_path: Path) -> WorkspacePair:
    return WorkspacePair(tmp_path)


@contextmanager
def live(pair: WorkspacePair) -> Iterator[MirrorSession]:
    """Mirror until the end of the block."""
    failures: list[BaseException] = []
    stop = threading.Event()
    with serve_workspace(pair.remote, pair.workspace) as sock:
        stream = MessageStream(sock, decode_from_enclave)
        session = MirrorSession(pair.local, pair.journal, stream, lambda _progress: None)

        def follow() -> None:
            try:
                session.first_pass()
                session.follow(stop.is_set)
            except Exception as error:
                if not stop.is_set():
                    failures.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield session
        finally:
            stop.set()
            sock.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            session.close()
    assert not failures


def has(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def test_both_ways_live(pair: WorkspacePair) -> None:
    (pair.local / "early.txt").write_bytes(b"early")
    with live(pair):
        assert wait_until(lambda: has(pair.remote / "early.txt", b"early"), 5)
        for number, (source, target) in enumerate(
            [(pair.local, pair.remote), (pair.remote, pair.local)] * 3
        ):
            name = f"{number} ü.txt"
            (source / name).write_bytes(b"1")
            assert wait_until(lambda path=target / name: has(path, b"1"), 5)
            (source / name).write_bytes(b"2")
            assert wait_until(lambda path=target / name: has(path, b"2"), 5)
            (source / name).unlink()
            assert wait_until(lambda path=target / name: not path.exists(), 5)


def test_a_whole_tree_is_renamed(pair: WorkspacePair) -> None:
    for number in range(30):
        place = pair.local / "old" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.bin").write_bytes(bytes([number]) * 20_000)
    with live(pair) as session:
        assert wait_until(lambda: len(list(pair.remote.rglob("*.bin"))) == 30, 10)
        sent = session._remote.stream.sent_bytes
        inodes = {path.name: path.stat().st_ino for path in pair.remote.rglob("*.bin")}
        (pair.local / "old").rename(pair.local / "new")
        assert wait_until(lambda: not (pair.remote / "old").exists(), 10)
        assert {p.name: p.stat().st_ino for p in (pair.remote / "new").rglob("*.bin")} == inodes
        # The files were renamed there too, and did not travel again.
        assert session._remote.stream.sent_bytes - sent < 100_000


def test_a_log_that_is_written_to_all_the_time_follows(pair: WorkspacePair) -> None:
    stop = threading.Event()

    def write() -> None:
        with (pair.remote / "train.log").open("ab", buffering=0) as file:
            while not stop.wait(0.004):
                file.write(b"another line of the log\n")

    thread = threading.Thread(target=write)
    with live(pair):
        thread.start()
        try:
            log = pair.local / "train.log"
            assert wait_until(log.exists, 10)
            size = log.stat().st_size
            assert wait_until(lambda: log.stat().st_size > size, 10)
        finally:
            stop.set()
            thread.join()
        assert wait_until(
            lambda: log.stat().st_size == (pair.remote / "train.log").stat().st_size, 10
        )
        assert log.read_bytes() == (pair.remote / "train.log").read_bytes()


def test_holes_stay_holes_and_only_changed_blocks_travel(pair: WorkspacePair) -> None:
    path = pair.local / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"island")
    with live(pair) as session:
        target = pair.remote / "sparse.bin"
        assert wait_until(target.exists, 20)
        assert target.stat().st_size == 1 << 30 and target.stat().st_blocks * 512 < 4 << 20
        with target.open("rb") as file:
            file.seek(1 << 29)
            assert file.read(6) == b"island"
        assert session._remote.stream.sent_bytes < 4 << 20


def test_an_append_moves_little(pair: WorkspacePair) -> None:
    (pair.local / "grows.bin").write_bytes(os.urandom(20 << 20))
    pair.mirror_once()
    for source, target in ((pair.local, pair.remote), (pair.remote, pair.local)):
        with (source / "grows.bin").open("ab") as file:
            file.write(os.urandom(1 << 20))
        time.sleep(0.03)
        with pair.open() as (mirror, remote):
            mirror.run([""])
            moved = remote.stream.sent_bytes + remote.stream.received_bytes
        assert has(target / "grows.bin", (source / "grows.bin").read_bytes())
        assert moved < 3 << 20


@contextmanager
def small_file_system(folder: Path, mib: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={mib}m".encode()
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0
    try:
        yield
    finally:
        assert libc.umount2(os.fsencode(folder), 2) == 0


@needs_root
@pytest.mark.parametrize("full", ["enclave", "parent"])
def test_no_room(pair: WorkspacePair, full: str) -> None:
    """What fits is brought, what does not is named, nothing is there half; later it comes."""
    source, target = (pair.local, pair.remote) if full == "enclave" else (pair.remote, pair.local)
    with small_file_system(target, 16):
        (source / "large.bin").write_bytes(os.urandom(20 << 20))
        (source / "small.txt").write_bytes(b"small")
        for number in range(100):
            (source / f"many-{number:03}").write_bytes(bytes(120_000))
        time.sleep(0.03)
        problems = pair.mirror_once()
        assert "large.bin" in problems and "MiB" in problems["large.bin"]
        assert has(target / "small.txt", b"small") and not (target / "large.bin").exists()
        for path in target.glob("many-*"):
            assert path.stat().st_size == 120_000
        assert {path.name for path in source.iterdir()} == {
            *(path.name for path in target.iterdir()),
            *problems,
        }
        (source / "large.bin").unlink()
        for path in source.glob("many-*"):
            path.unlink()
        assert pair.mirror_once() == {}
        assert {path.name for path in target.iterdir()} == {"small.txt"}


@needs_root
def test_what_a_memory_map_wrote(pair: WorkspacePair) -> None:
    """np.memmap does this; on a tmpfs, as the workspace is, no time of the file tells of it."""
    with small_file_system(pair.remote, 16), live(pair):
        path = pair.remote / "array.bin"
        with path.open("w+b") as file:
            file.truncate(100_000)
            mapped = mmap.mmap(file.fileno(), 0)
        mapped[50_000:50_005] = b"early"
        early = bytes(50_000) + b"early" + bytes(49_995)
        assert wait_until(lambda: has(pair.local / "array.bin", early), 5)
        before = path.stat().st_mtime_ns
        mapped[50_000:50_005] = b"later"
        assert path.stat().st_mtime_ns == before
        mapped.close()
        later = bytes(50_000) + b"later" + bytes(49_995)
        assert wait_until(lambda: has(pair.local / "array.bin", later), 5)


def test_an_unreadable_folder_is_no_empty_one(
    pair: WorkspacePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop root, so the system call says no in its place."""
    (pair.local / "closed").mkdir()
    (pair.local / "closed" / "kept.txt").write_bytes(b"kept")
    time.sleep(0.03)
    pair.mirror_once()
    scandir = os.scandir

    def refusing(path: int) -> object:
        if os.readlink(f"/proc/self/fd/{path}") == str(pair.local / "closed"):  # noqa: PTH115
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    problems = pair.mirror_once()
    assert list(problems) == ["closed"]
    assert has(pair.remote / "closed" / "kept.txt", b"kept")


def test_what_is_ignored_stays_on_its_side(pair: WorkspacePair) -> None:
    for folder in (".git", "__pycache__", "data", "out", "only/__pycache__"):
        (pair.local / folder).mkdir(parents=True)
        (pair.local / folder / "file.txt").write_bytes(b"x")
    (pair.local / "data" / "keep.csv").write_bytes(b"x")
    (pair.local / ".enclaveignore").write_text("/out\n*.txt\n!data/file.txt\n# comment\n")
    time.sleep(0.03)
    assert pair.mirror_once() == {}
    brought = {str(path.relative_to(pair.remote)) for path in pair.remote.rglob("*")}
    assert brought == {".enclaveignore", "data", "data/keep.csv", "data/file.txt"}
    # It is not the enclave that says what of the parent it gets.
    (pair.remote / ".enclaveignore").write_text("")
    time.sleep(0.03)
    pair.mirror_once()
    assert not (pair.remote / "out").exists()
    assert "/out" in (pair.remote / ".enclaveignore").read_text()


def test_new_rules_count_at_once(pair: WorkspacePair) -> None:
    (pair.local / "a.txt").write_bytes(b"a")
    with live(pair):
        assert wait_until((pair.remote / "a.txt").exists, 5)
        (pair.local / ".enclaveignore").write_text("*.log\n")
        assert wait_until((pair.remote / ".enclaveignore").exists, 5)
        (pair.local / "b.log").write_bytes(b"b")
        (pair.local / "c.txt").write_bytes(b"c")
        assert wait_until((pair.remote / "c.txt").exists, 5)
        assert not (pair.remote / "b.log").exists()
    (pair.local / ".enclaveignore").write_text("a\0b[")
    (pair.local / ".enclaveignore").write_bytes(b"\xff\xfe")
    with serve_workspace(pair.remote, pair.workspace) as sock, pytest.raises(GatewayError):
        stream = MessageStream(sock, decode_from_enclave)
        MirrorSession(pair.local, pair.journal, stream, lambda _progress: None)


def test_another_workspace_is_no_deletion(pair: WorkspacePair) -> None:
    """An enclave that died and came again is empty: the parent's folder is the truth."""
    (pair.local / "a.txt").write_bytes(b"a")
    time.sleep(0.03)
    pair.mirror_once()
    (pair.remote / "a.txt").unlink()
    pair.workspace = os.urandom(16).hex()
    pair.mirror_once()
    assert has(pair.local / "a.txt", b"a") and has(pair.remote / "a.txt", b"a")


def test_a_push_whose_answer_was_lost_is_known(pair: WorkspacePair) -> None:
    """Killed between writing there and noting it here: the next change is no conflict."""
    path = pair.local / "a.txt"
    for number, cut in enumerate(range(2, 12)):
        path.write_bytes(bytes([65 + number]))
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
        try:
            pair.mirror_once(cut)
        except Exception as error:
            assert "cut by the test" in str(error) or "stream" in str(error)
    path.write_bytes(b"last")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert pair.mirror_once() == {}
    assert [item.name for item in pair.remote.iterdir()] == ["a.txt"]
    assert has(pair.remote / "a.txt", b"last") and has(path, b"last")


def test_open_modes(tmp_path: Path) -> None:
    """Where notebooks are strangers in the workspace, only what the owner may do is mirrored."""
    pair = WorkspacePair(tmp_path, open_modes=True)
    for name, mode in (("plain", 0o640), ("run", 0o750), ("closed", 0o400)):
        (pair.local / name).write_bytes(b"x")
        (pair.local / name).chmod(mode)
    (pair.local / "dir").mkdir(mode=0o750)
    time.sleep(0.03)
    assert pair.mirror_once() == {}
    modes = {path.name: path.stat().st_mode & 0o777 for path in pair.remote.iterdir()}
    assert modes == {"plain": 0o666, "run": 0o777, "closed": 0o444, "dir": 0o777}
    (pair.remote / "plain").write_bytes(b"changed")
    (pair.remote / "new").write_bytes(b"new")
    (pair.remote / "new").chmod(0o666)
    time.sleep(0.03)
    assert pair.mirror_once() == {}
    assert pair.mirror_once() == {}
    modes = {path.name: path.stat().st_mode & 0o777 for path in pair.local.iterdir()}
    assert modes.pop("new") in (0o644, 0o600)
    assert modes["plain"] == 0o640 and modes["run"] == 0o750 and modes["closed"] == 0o400
    assert has(pair.local / "plain", b"changed")
