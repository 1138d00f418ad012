"""One run of `enclave run`, from the session's side: a pipe between the command and a vault.

Files are neither kept nor looked at here: the command sends the package's body and the workspace's
files, the vault takes them; what the script wrote goes the other way. A thread of its own follows
the vault, so the main thread goes on hearing the command.

Source: docs/spec/run.md.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.package_failures import VaultDiedError
from enclave_kernel.session.package_loading import request_vault, vault_failure
from enclave_kernel.session.proxy_parts import shown_name
from enclave_kernel.session.script_client import ScriptClient
from enclave_kernel.session.script_run import script_failure
from enclave_kernel.session.supervisor_link import SupervisorLink
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import MessageError
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.output_text import output_text
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_header import PackageHeader, decode_header
from enclave_protocol.package_label import check_label
from enclave_protocol.run_messages import (
    CREDIT,
    PIECE_BYTES,
    BeginRun,
    BodyPiece,
    FromRun,
    HowEnded,
    InputPiece,
    Interrupt,
    OutputPiece,
    PackageOpened,
    RunBar,
    RunEnded,
    RunFailed,
    RunText,
    StartScript,
    Taken,
    ToRun,
)
from enclave_protocol.script_messages import InputChunk, RunScript, ScriptEnded
from enclave_protocol.vault_messages import BodyChunk, LoadFailed, Progress, Text

__all__ = ["BatchRun"]

_REQUEST_ID: Final = 1
_MAX_REASON_CHARS: Final = 4000

Send = Callable[..., None]
"""Sends a `FromRun` to the command, and bytes if it announces them. For any thread."""


class _InterruptedEarlyError(EnclaveError):
    """Ctrl-C before the script began."""


class BatchRun:
    """Runs one script.

    Args:
        link: The way to the supervisor.
        send: As `Send`.
    """

    def __init__(self, link: SupervisorLink, send: Send) -> None:
        self._link = link
        self._send = send
        self._messages: queue.SimpleQueue[tuple[ToRun, memoryview | None]] = queue.SimpleQueue()
        self._credit = threading.Semaphore(CREDIT)
        self._interrupted = False
        self._timed_out = False
        self._watch: CallInterrupt | None = None
        self._lock = threading.Lock()

    def start(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Follow the command's messages from here on, in a thread.

        Args:
            on_end: Called there when everything was sent.
        """
        threading.Thread(target=self._run, args=(on_end,), name="batch-run", daemon=True).start()

    def take(self, message: ToRun, buffers: Sequence[memoryview]) -> None:
        """Take one message of the command; never waits.

        Raises:
            MessageError: It comes with bytes that it should not have, or without.
        """
        has_data = isinstance(message, BeginRun | BodyPiece | InputPiece)
        if len(buffers) != has_data or any(item.nbytes > PIECE_BYTES for item in buffers):
            raise MessageError(f"{type(message).__name__} came with other bytes than it has")
        if isinstance(message, Taken):
            self._credit.release()
            return
        if isinstance(message, Interrupt):
            with self._lock:
                self._interrupted = True
                if self._watch is not None:
                    self._watch.press()
                    return
        self._messages.put((message, buffers[0].cast("B") if buffers else None))

    def _run(self, on_end: Callable[[], None]) -> None:
        try:
            self._send(self._serve())
        except (EnclaveError, OSError) as error:
            text = str(error) if isinstance(error, EnclaveError) else error.strerror or "I/O failed"
            self._send(RunFailed(type(error).__name__, text[:_MAX_REASON_CHARS]))
        except Exception as error:
            # Of ours: the command must not wait for ever.
            kind = type(error).__name__
            self._send(RunFailed(kind, "the session in the enclave failed; please report this"))
        on_end()

    def _serve(self) -> FromRun:
        begin, data = self._messages.get()
        if not isinstance(begin, BeginRun) or data is None:
            raise MessageError("the command's first message is no beginning of a run")
        header = _header(begin, bytes(data))
        vault = request_vault(begin.file_name, header, self._link, unsigned=begin.unsigned)
        client = ScriptClient(vault, shown_name(header.label), self._link)
        try:
            self._send(PackageOpened(vault.new_publisher))
            self._fill(client)
            ended = self._follow(client, begin, shown_name(header.label))
        except _InterruptedEarlyError:
            return RunEnded(None, "interrupt", "", 0.0, None)
        finally:
            client.close()
        death = self._link.death(client.vault_id)
        return RunEnded(*ended, None if death is None else death.peak_memory_bytes)

    def _fill(self, client: ScriptClient) -> None:
        """Hand on body and inputs; a vault that refuses them says so when the script is started."""
        refused = False
        while True:
            message, data = self._messages.get()
            if isinstance(message, StartScript):
                return
            if isinstance(message, Interrupt):
                raise _InterruptedEarlyError("interrupted")
            if data is None or isinstance(message, BeginRun):
                raise MessageError("the command sent something else than body and inputs")
            piece = BodyChunk() if isinstance(message, BodyPiece) else InputChunk()
            refused = refused or not client.send_piece(piece, data)
            self._send(Taken())

    def _follow(
        self, client: ScriptClient, begin: BeginRun, package: str
    ) -> tuple[int | None, HowEnded, str, float]:
        """Return exit code, how it ended, why, and the seconds it took."""
        watch = client.new_watch()
        with self._lock:
            if self._interrupted:
                raise _InterruptedEarlyError("interrupted")
            self._watch = watch
        clock = _RunClock(begin.timeout_s, self._time_out)
        request = RunScript(
            *(_REQUEST_ID, begin.script, begin.arguments),
            *(begin.folders, begin.outputs, begin.environ),
            patient=True,
        )
        display = _Display(self._send, self._credit)
        files = _Outputs(begin.outputs, self._send, self._credit, clock)
        code: int | None = None
        how: HowEnded
        reason = ""
        try:
            ended = client.follow(request, watch, display, files)
        except VaultDiedError as error:
            how, reason = "died", str(error)
        else:
            if isinstance(ended, LoadFailed):
                raise vault_failure(ended, begin.file_name)
            how, code, reason = "exit", ended.exit_code, _reason(ended, package)
        finally:
            clock.stop()
        if self._timed_out:
            how = "timeout"
        elif self._interrupted and how == "died":
            how = "interrupt"
        return code, how, reason[:_MAX_REASON_CHARS], round(clock.seconds, 3)

    def _time_out(self) -> None:
        with self._lock:
            self._timed_out = True
            if self._watch is not None:
                self._watch.press()


class _RunClock:
    """Measures the script, from here until its first output file or its end, and ends its time."""

    def __init__(self, timeout_s: float | None, on_timeout: Callable[[], None]) -> None:
        self.seconds = 0.0
        self._began = time.monotonic()
        self._stopped = False
        self._timer: threading.Timer | None = None
        if timeout_s is not None:
            # A longer one than threads can wait for is none.
            self._timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), on_timeout)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Stop; again does nothing."""
        if not self._stopped:
            self._stopped = True
            self.seconds = time.monotonic() - self._began
            if self._timer is not None:
                self._timer.cancel()


class _Display:
    """Sends on what the script says, as fast as the command takes it.

    Cleaned again, for a package may have taken its vault over.
    """

    def __init__(self, send: Send, credit: threading.Semaphore) -> None:
        self._send = send
        self._credit = credit

    def show(self, message: Progress | Text) -> None:
        """Send one on; text waits until the command has room for it."""
        if isinstance(message, Progress):
            self._send(RunBar(message.bar, message.done, message.total, message.state))
            return
        text = output_text(message.text)
        if text:
            self._credit.acquire()
            self._send(RunText(message.stream, text))


class _Outputs:
    """Sends on the archive of what the script wrote, as fast as the command takes it."""

    def __init__(
        self,
        outputs: tuple[str, ...],
        send: Send,
        credit: threading.Semaphore,
        clock: _RunClock,
    ) -> None:
        self.outputs = outputs
        self._send = send
        self._credit = credit
        self._clock = clock

    def feed(self, data: memoryview) -> None:
        """Send the next part of the archive, in pieces; waits until there is room for each."""
        # What comes now is sent by the vault itself: the script has ended.
        self._clock.stop()
        for start in range(0, data.nbytes, PIECE_BYTES):
            self._credit.acquire()
            self._send(OutputPiece(), bytes(data[start : start + PIECE_BYTES]))


def _header(begin: BeginRun, raw: bytes) -> PackageHeader:
    try:
        header = decode_header(raw)
        if len(header.raw) != len(raw):
            raise MessageError("the header that the command sent has bytes behind its end")
        check_label(header.label)
    except PackageError as error:
        raise error.with_file(begin.file_name) from None
    script = header.label.scripts.get(begin.script)
    if script is None or script.file.endswith(NOTEBOOK_SUFFIX):
        raise MessageError("the command asked for a script that the package does not have")
    return header


def _reason(ended: ScriptEnded, package: str) -> str:
    failure = script_failure(ended, package)
    return "" if failure is None else f"{type(failure).__name__}: {failure}"
