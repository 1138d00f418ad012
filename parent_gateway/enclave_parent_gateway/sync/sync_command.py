"""What `enclave sync` does: connect, mirror, say how it goes, and connect again."""

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_parent_gateway.errors import EnclaveNotRunningError, GatewayError
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.sync.session import MirrorSession, Progress
from enclave_parent_gateway.sync.sync_state import SyncState, read_sync_state, write_sync_state
from enclave_protocol.workspace.messages import FromEnclave, decode_from_enclave
from enclave_protocol.workspace.names import TEMPORARY_FOLDER
from enclave_protocol.workspace.stream import MessageStream, StreamEndedError

__all__ = ["SyncCommand", "SyncReport"]

_STATE_INTERVAL_S: Final = 0.5
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 1.0
_SILENCE_TIMEOUT_S: Final = 300.0
"""The enclave's end hashes a large file before it answers; nothing takes longer than that."""


@dataclass(frozen=True)
class SyncReport:
    """What a mirror that ended has done."""

    seconds: float
    brought: int
    entries: int
    bytes_to_enclave: int
    bytes_from_enclave: int
    problems: dict[str, str]


class SyncCommand:
    """Mirrors one folder until it is told to stop.

    Args:
        paths: Of the enclave.
        directory: The folder.
        show: Told the phase and how far it is, often.

    Raises:
        GatewayError: It is no folder that can be mirrored.
    """

    def __init__(
        self, paths: EnclavePaths, directory: Path, show: Callable[[str, Progress], None]
    ) -> None:
        self._paths = paths
        self._show = show
        self._folder = _checked_folder(paths, directory)
        self._stopping = False
        self._phase = "starting"
        self._progress = Progress()
        self._stream: MessageStream[FromEnclave] | None = None
        self._bytes = (0, 0)
        self._brought = 0
        self._written_at = 0.0

    def run(self, *, once: bool) -> SyncReport:
        """Mirror: one pass, or until SIGTERM or SIGINT comes.

        Raises:
            EnclaveError: No enclave is up (`once`), its workspace has another folder's files, or
                it broke the protocol.
            KeyboardInterrupt: SIGINT came.
        """
        lock = self._paths.sync_lock()
        if not lock.try_acquire():
            raise GatewayError(_already(self._paths))
        began = time.monotonic()
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._check_folder_of_enclave()
            self._connect_and_mirror(once=once)
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._enter("ended")
            lock.release()
        to_enclave, from_enclave = self._bytes
        return SyncReport(
            seconds=round(time.monotonic() - began, 3),
            brought=self._brought,
            entries=self._progress.entries,
            bytes_to_enclave=to_enclave,
            bytes_from_enclave=from_enclave,
            problems=dict(sorted(self._progress.problems.items())),
        )

    def _check_folder_of_enclave(self) -> None:
        state = read_sync_state(self._paths.sync_file)
        if state is not None and state.directory != str(self._folder):
            raise GatewayError(
                f"this enclave's workspace has the files of {state.directory}; mirror that, or "
                "type: enclave down && enclave up"
            )

    def _connect_and_mirror(self, *, once: bool) -> None:
        delay = _FIRST_RETRY_S
        while True:
            try:
                stream = self._connect()
                delay = _FIRST_RETRY_S
                self._mirror(stream, once=once)
                return
            except (StreamEndedError, EnclaveNotRunningError):
                if once:
                    raise
            self._enter("waiting for the enclave")
            time.sleep(delay)
            delay = min(delay * 1.5, _LAST_RETRY_S)
            # An enclave that was brought down and up has room for any folder.
            self._check_folder_of_enclave()

    def _connect(self) -> MessageStream[FromEnclave]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_SILENCE_TIMEOUT_S)
            sock.connect(str(self._paths.workspace_socket))
        except OSError as error:
            sock.close()
            raise EnclaveNotRunningError(
                "no enclave is up that could take the files; type: enclave up"
            ) from error
        return MessageStream(sock, decode_from_enclave)

    def _mirror(self, stream: MessageStream[FromEnclave], *, once: bool) -> None:
        self._stream = stream
        sent, received = self._bytes
        try:
            session = MirrorSession(
                self._folder,
                self._journal(),
                stream,
                self._advanced,
            )
            try:
                self._progress = session.progress
                self._enter("first pass")
                session.first_pass()
                if once:
                    return
                self._enter("live")
                session.follow()
            finally:
                self._brought += session.progress.brought
                session.progress.brought = 0
                session.close()
        finally:
            self._bytes = (sent + stream.sent_bytes, received + stream.received_bytes)
            self._stream = None
            stream.close()

    def _journal(self) -> Path:
        folder = self._paths.make_durable() / "sync"
        folder.mkdir(mode=0o700, exist_ok=True)
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
        return folder / f"{name}.journal"

    # What others see of it

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._written_at = 0.0
        self._advanced(self._progress)

    def _advanced(self, progress: Progress) -> None:
        self._show(self._phase, progress)
        now = time.monotonic()
        if now - self._written_at < _STATE_INTERVAL_S:
            return
        self._written_at = now
        sent, received = self._bytes
        if self._stream is not None:
            sent += self._stream.sent_bytes
            received += self._stream.received_bytes
        state = SyncState(
            directory=str(self._folder),
            process=ProcessIdentity.of(os.getpid()),
            phase=self._phase,
            entries=progress.entries,
            brought=self._brought + progress.brought,
            problems=len(progress.problems),
            bytes_to_enclave=sent,
            bytes_from_enclave=received,
            updated=time.time(),
        )
        with suppress(OSError):
            # Without an enclave, nothing says any more whose files its workspace has.
            if self._stream is not None or self._paths.sync_file.exists():
                write_sync_state(self._paths.sync_file, state)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _already(paths: EnclavePaths) -> str:
    state = read_sync_state(paths.sync_file)
    if state is None:
        return "another process mirrors this enclave's workspace"
    return f"process {state.process.pid} mirrors {state.directory} already; end it first"


def _checked_folder(paths: EnclavePaths, directory: Path) -> Path:
    folder = Path(os.path.realpath(directory))
    if not folder.is_dir():
        raise GatewayError(f"{directory} is no folder; make it first")
    if folder == Path("/"):
        raise GatewayError("the root folder cannot be mirrored; choose one with your project in it")
    own = [Path(os.path.realpath(path)) for path in (paths.runtime, paths.durable)]
    if any(path.is_relative_to(folder) or folder.is_relative_to(path) for path in own):
        raise GatewayError(
            f"{folder} holds files of the enclave itself; choose a folder without {own[0]} and "
            f"{own[1]}"
        )
    if TEMPORARY_FOLDER in folder.parts:
        raise GatewayError(f"{folder} belongs to a mirror; choose the folder it is in")
    return folder
