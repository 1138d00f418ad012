"""THREATS E.16, Y-06, Y-07, Y-10: sizes, pieces, changes on the way, and deaths in between."""

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from enclave_parent_gateway.sync import remote_tree
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.errors import ProtocolError
from enclave_protocol.workspace.messages import (
    MAX_EVENTS,
    Batch,
    Begin,
    Changed,
    Commit,
    Copy,
    Data,
    End,
    FromEnclave,
    FromParent,
    Listing,
    Put,
    Read,
    Ready,
    Scan,
    WorkspaceError,
    decode_from_enclave,
)
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.tree import Tree, TreeError
from tests.support.hostile_workspace import (
    HostileEnclave,
    bring,
    everything,
    file_entry,
)
from tests.support.workspace_pair import WorkspacePair, serve_workspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


# Y-06: sizes and numbers


@pytest.mark.parametrize("size", [2**63, 2**62, 2**42 + 1, -1])
def test_y06_sizes_that_no_file_has(root: Path, size: int) -> None:
    with pytest.raises((ProtocolError, OverflowError)):
        bring(root, HostileEnclave({"huge": file_entry(size)}))
    assert everything(root) == set()


def test_y06_a_sparse_terabyte(tmp_path: Path) -> None:
    """Larger than what is free: refused before a byte of it travels, on either side."""
    pair = WorkspacePair(tmp_path)
    for folder, name in ((pair.local, "mine"), (pair.remote, "theirs")):
        with (folder / name).open("wb") as file:
            file.truncate(2**40)
    time.sleep(0.03)
    problems = pair.mirror_once()
    assert set(problems) == {"mine", "theirs"}
    assert all("free" in reason for reason in problems.values())
    assert everything(pair.local) == {"mine"} and everything(pair.remote) == {"theirs"}


def test_y06_more_entries_than_there_may_be(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_tree, "MAX_ENTRIES", 10_000)

    def endless(message: FromParent) -> list[FromEnclave]:
        if not isinstance(message, Scan):
            return []
        page = tuple((f"f{number}", file_entry(b"")) for number in range(2000))
        return [Listing(page, (), True)] * 10

    with pytest.raises(TreeError, match="more than 10000"):
        bring(root, HostileEnclave({}, answer=endless))


_BIG = file_entry(1_000_000)
_HOSTILE_PIECES: dict[str, list[FromEnclave]] = {
    "beyond the end": [Data(900_000, memoryview(bytes(200_000)))],
    "out of order": [Data(500_000, memoryview(b"x")), Data(0, memoryview(b"x"))],
    "a copy of nothing": [Copy(0, 1000)],
    "a copy far outside": [Copy(2**41, 2**41)],
    "without an end": [Data(number, memoryview(b"x")) for number in range(1_000_000, 1_000_300)],
    "another file": [Listing((), (), False)],
    "a smaller file": [End()],
}


@pytest.mark.parametrize("name", sorted(_HOSTILE_PIECES))
def test_y06_pieces_that_do_not_fit(root: Path, name: str) -> None:
    def answer(message: FromParent) -> list[FromEnclave]:
        return [Ready(_BIG), *_HOSTILE_PIECES[name]] if isinstance(message, Read) else []

    enclave = HostileEnclave({"big": _BIG}, answer=answer)
    if name == "a smaller file":
        # What was not sent is a hole: the size that was said, and nothing else.
        bring(root, enclave)
        assert (root / "big").read_bytes() == bytes(1_000_000)
        return
    with pytest.raises(ProtocolError):
        bring(root, enclave)
    assert everything(root) == set()


def test_y06_another_file_than_was_asked_for(root: Path) -> None:
    def answer(message: FromParent) -> list[FromEnclave]:
        return [Ready(file_entry(2**41))] if isinstance(message, Read) else []

    with pytest.raises(WorkspaceError):
        bring(root, HostileEnclave({"big": _BIG}, answer=answer))


def test_y06_events_without_end(root: Path) -> None:
    def answer(message: FromParent) -> list[FromEnclave]:
        if not isinstance(message, Scan):
            return []
        return [Changed(number, ("x",)) for number in range(MAX_EVENTS + 1)]

    with pytest.raises(WorkspaceError, match="more changes"):
        bring(root, HostileEnclave({}, answer=answer))


def test_y06_a_hostile_parent_and_pieces(root: Path) -> None:
    entry = file_entry(100)
    bad: list[list[FromParent]] = [
        [Begin("f", entry, None), Data(90, memoryview(bytes(20)))],
        [Begin("f", entry, None), Copy(0, 10)],
        [Begin("f", entry, None), Scan(("",))],
        [Data(0, memoryview(b"x"))],
        [Commit()],
        [Batch((Put("f", entry, None, memoryview(b"short")),))],
    ]
    for messages in bad:
        with serve_workspace(root, "cd" * 16) as sock:
            sock.settimeout(30)
            stream = MessageStream(sock, decode_from_enclave)
            for message in messages:
                stream.send(message)
            with pytest.raises(ProtocolError):
                while True:
                    assert isinstance(stream.receive(), Ready)
        assert everything(root) == set()


# Y-07: changes on the way


def test_y07_a_file_that_is_rewritten_while_it_travels(tmp_path: Path) -> None:
    """What arrives is one state of it, never half of one and half of another."""
    pair = WorkspacePair(tmp_path)
    path = pair.remote / "rewritten.bin"
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with path.open("r+b") if path.exists() else path.open("wb") as file:
                file.write(bytes([number % 256]) * 400_000)
            # Now and then it rests for long enough to be brought.
            stop.wait(0.05 if number % 3 == 0 else 0.001)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        states = set()
        for _ in range(25):
            pair.once()
            if (pair.local / "rewritten.bin").exists():
                data = (pair.local / "rewritten.bin").read_bytes()
                assert len(data) == 400_000 and len(set(data)) == 1
                states.add(data[0])
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    assert states


# Y-10: torn writes


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 20, 40])
def test_y10_an_end_that_is_killed_leaves_the_old_or_the_new_file(
    root: Path, delay_ms: int
) -> None:
    old, new = b"o" * 3_000_000, b"n" * 4_000_000
    (root / "file.bin").write_bytes(old)
    time.sleep(0.03)
    ours, theirs = socket.socketpair()
    control, its_control = socket.socketpair()
    command = [sys.executable, "-I", "-m", "enclave_kernel.workspace.agent", "--root", str(root)]
    command += ["--stream", str(theirs.fileno()), "--control", str(its_control.fileno())]
    agent = subprocess.Popen(
        [*command, "--workspace", "0" * 32], pass_fds=(theirs.fileno(), its_control.fileno())
    )
    theirs.close()
    its_control.close()
    stream = MessageStream(ours, decode_from_enclave)
    try:
        remote = RemoteTree(stream)
        expect = remote.scan([""])[0]["file.bin"]
        timer = threading.Timer(delay_ms / 1000, agent.send_signal, [signal.SIGKILL])
        timer.start()
        with suppress(ProtocolError):
            stream.send(Begin("file.bin", file_entry(new), expect))
            for offset in range(0, len(new), 100_000):
                stream.send(Data(offset, memoryview(new[offset : offset + 100_000])))
                time.sleep(0.0005)
            stream.send(Commit())
            while True:
                stream.receive()
    finally:
        stream.close()
        control.close()
        agent.wait(30)
        timer.join()
    assert (root / "file.bin").read_bytes() in (old, new)
    Tree(root).close()
    assert everything(root) == {"file.bin"}
