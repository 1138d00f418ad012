"""The session's side of `enclave run` against a command and a vault that break the rules."""

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.session.batch_run import BatchRun
from enclave_kernel.session.supervisor_link import LoadedVault
from enclave_kernel.session_messages import VaultDeath
from enclave_protocol.messages import MessageError
from enclave_protocol.run_messages import (
    PIECE_BYTES,
    BeginRun,
    BodyPiece,
    FromRun,
    InputPiece,
    Interrupt,
    PackageOpened,
    RunEnded,
    RunFailed,
    RunText,
    StartScript,
    Taken,
)
from enclave_protocol.script_messages import ScriptEnded
from enclave_protocol.vault_messages import Text
from tests.support.sealed_package import seal_package

_MANIFEST = """
[package]
name = "app"
version = "1"
[scripts]
run = { file = "run.py" }
"""
_BEGIN = BeginRun("app.encrypted", "run", (), (), (), {}, True, None)


class Peer:
    """The supervisor and a vault: a thread that does what a test says."""

    def __init__(self, vault: Callable[[CallChannel], None]) -> None:
        self._vault = vault
        self.interrupted = threading.Event()
        self.unloaded = threading.Event()
        self.sock: socket.socket | None = None

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        assert file_name == "app.encrypted" and header_raw and unsigned
        ours, theirs = socket.socketpair()
        self.sock = ours
        threading.Thread(target=self._serve, args=(ours,), daemon=True).start()
        return LoadedVault("0" * 16, theirs, True)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._vault(CallChannel(sock))
                self.unloaded.wait(30)
            except (ChannelClosedError, OSError):
                return

    def interrupt(self, vault_id: str) -> None:
        assert vault_id
        self.interrupted.set()

    def unload(self, vault_id: str) -> None:
        assert vault_id
        self.unloaded.set()

    def death(self, vault_id: str) -> VaultDeath:
        return VaultDeath(1, f"vault {vault_id[:1]} ended", 12345)

    def death_reason(self, vault_id: str) -> str:
        return self.death(vault_id).reason or ""


class Command:
    """The command's side."""

    def __init__(self, vault: Callable[[CallChannel], None]) -> None:
        self.peer = Peer(vault)
        self.said: queue.SimpleQueue[FromRun] = queue.SimpleQueue()
        peer: Any = self.peer
        self.run = BatchRun(peer, lambda message, _data=None: self.said.put(message))
        self.run.start()

    def begin(self, header: bytes, begin: BeginRun = _BEGIN) -> None:
        self.run.take(begin, [memoryview(header)])

    def next(self) -> FromRun:
        return self.said.get(timeout=20)


def _header() -> bytes:
    return seal_package({"run.py": "print(1)"}, _MANIFEST).header_raw


def _until_started(channel: CallChannel) -> None:
    # Whatever is sent before the script: body and inputs are none of these tests'.
    channel.receive()


def test_what_a_vault_says_comes_out_clean() -> None:
    def vault(channel: CallChannel) -> None:
        _until_started(channel)
        channel.send(Text(1, "\x1b]52;c;eA==\x07a\x9b2J\u202eb\n", "stderr"))
        channel.send(ScriptEnded(7))

    command = Command(vault)
    command.begin(_header())
    assert command.next() == PackageOpened(True)
    command.run.take(StartScript(), [])
    assert command.next() == RunText("stderr", "ab\n")
    ended = command.next()
    assert isinstance(ended, RunEnded)
    assert (ended.exit_code, ended.how, ended.peak_memory_bytes) == (7, "exit", 12345)
    assert command.peer.unloaded.wait(5)


def test_a_vault_that_breaks_the_protocol_has_died() -> None:
    def vault(channel: CallChannel) -> None:
        _until_started(channel)
        channel.send(ScriptEnded(0), (memoryview(b"x"),))

    command = Command(vault)
    command.begin(_header())
    assert command.next() == PackageOpened(True)
    command.run.take(StartScript(), [])
    ended = command.next()
    assert isinstance(ended, RunEnded) and (ended.exit_code, ended.how) == (None, "died")


def test_interrupts_and_time_reach_the_vault() -> None:
    def vault(channel: CallChannel) -> None:
        _until_started(channel)
        started.set()
        assert peer.interrupted.wait(20)
        channel.send(ScriptEnded(130, "KeyboardInterrupt"))

    for timeout_s, how in ((None, "exit"), (0.05, "timeout")):
        started = threading.Event()
        command = Command(vault)
        peer = command.peer
        begin = BeginRun("app.encrypted", "run", (), (), (), {}, True, timeout_s)
        command.begin(_header(), begin)
        assert command.next() == PackageOpened(True)
        command.run.take(StartScript(), [])
        assert started.wait(20)
        if timeout_s is None:
            command.run.take(Interrupt(), [])
        ended = command.next()
        assert isinstance(ended, RunEnded) and (ended.exit_code, ended.how) == (130, how)
    # Before there is a script, nothing begins.
    command = Command(_until_started)
    command.begin(_header())
    assert command.next() == PackageOpened(True)
    command.run.take(Interrupt(), [])
    ended = command.next()
    assert isinstance(ended, RunEnded) and (ended.exit_code, ended.how) == (None, "interrupt")
    assert command.peer.unloaded.wait(5)


def test_a_command_that_breaks_the_protocol() -> None:
    header = _header()
    command = Command(_until_started)
    for message, buffers in (
        *((BodyPiece(), ()), (Interrupt(), (b"x",)), (StartScript(), (b"x",)), (Taken(), (b"x",))),
        *((_BEGIN, ()), (InputPiece(), (b"x", b"y")), (BodyPiece(), (bytes(PIECE_BYTES + 1),))),
    ):
        with pytest.raises(MessageError):
            command.run.take(message, [memoryview(item) for item in buffers])
    for first, expected in (
        ((StartScript(), ()), "no beginning of a run"),
        ((_BEGIN, (header + b"x",)), "bytes behind its end"),
        ((_BEGIN, (b"no package at all" * 9,)), "app.encrypted: "),
    ):
        command = Command(_until_started)
        command.run.take(first[0], [memoryview(item) for item in first[1]])
        failed = command.next()
        assert isinstance(failed, RunFailed) and expected in failed.message
    command = Command(_until_started)
    command.begin(header)
    assert command.next() == PackageOpened(True)
    command.begin(header)
    failed = command.next()
    assert isinstance(failed, RunFailed) and failed.kind == "MessageError"
    assert command.peer.unloaded.wait(5)
