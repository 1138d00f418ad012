"""The exchange with a session that runs a script: sends what it needs, takes what comes back."""

import signal
from collections.abc import Iterator
from typing import Final

import zmq

from enclave_parent_gateway.run.output_files import OutputFiles
from enclave_parent_gateway.run.run_display import RunDisplay
from enclave_parent_gateway.run.run_errors import INTERRUPTED, RunFailedError, RunStoppedError
from enclave_parent_gateway.run.run_plan import RunPlan
from enclave_parent_gateway.run.run_session import RunSession
from enclave_parent_gateway.run.stop_signals import StopSignals
from enclave_protocol.messages import MessageError
from enclave_protocol.publisher_line import publisher_line
from enclave_protocol.run_messages import (
    CREDIT,
    PIECE_BYTES,
    BodyPiece,
    FromRun,
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
from enclave_protocol.workspace.script_inputs import read_inputs

__all__ = ["RunExchange"]

_POLL_MS: Final = 1000


class RunExchange:
    """One run over one session.

    Args:
        session: Ready.
        plan: What to run.
        files: Takes what the script wrote.
        display: Shows what it says.
        signals: Entered.

    Attributes:
        new_publisher: The publisher's key was pinned with this run; None: it did not get that far.
    """

    def __init__(
        self,
        session: RunSession,
        plan: RunPlan,
        files: OutputFiles,
        display: RunDisplay,
        signals: StopSignals,
    ) -> None:
        self.new_publisher: bool | None = None
        self._session = session
        self._plan = plan
        self._files = files
        self._display = display
        self._signals = signals
        self._credit = 0
        self._sent = 0
        self._pieces: Iterator[tuple[ToRun, bytes]] | None = None
        self._running = False
        self._interrupts = 0

    def run(self) -> RunEnded:
        """Run the script to its end and return how it ended; its files are written.

        Raises:
            RunFailedError: The enclave did not run it, or does not give its files away.
            RunStoppedError: The user stopped it.
            SessionLostError: The session is gone.
            ProtocolError: The session broke the protocol.
            PackageError: What came of its files is incomplete.
            OutputPlaceError: Its files cannot be written.
            WorkspaceFileError: A file of the user's cannot be read.
            BrokenPipeError: Nobody reads its output.
        """
        self._session.open(self._plan.begin, self._plan.header.raw)
        poller = zmq.Poller()
        poller.register(self._session.iopub, zmq.POLLIN)
        for descriptor in (self._session.hold, self._session.ended, self._signals.wakeup):
            poller.register(descriptor, zmq.POLLIN)
        while True:
            # Sockets of ZeroMQ tell of new messages once: take all of them before waiting again.
            while (received := self._session.receive()) is not None:
                ended = self._take(*received)
                if ended is not None:
                    self._files.finish()
                    return ended
                self._check_signals()
            self._check_signals()
            self._fill()
            ready = dict(poller.poll(_POLL_MS))
            for sock in (self._session.hold, self._session.ended):
                if sock.fileno() in ready and not self._session.iopub.poll(0):
                    raise self._session.why_it_ended()

    def _take(self, message: FromRun, data: memoryview | None) -> RunEnded | None:
        if isinstance(message, OutputPiece) != (data is not None):
            raise MessageError("the enclave sent bytes that it did not announce")
        if data is not None:
            self._files.feed(data)
            self._session.send(Taken())
        elif isinstance(message, RunText):
            self._display.text(message)
            self._session.send(Taken())
        elif isinstance(message, RunBar):
            self._display.bar(message)
        elif isinstance(message, Taken):
            self._credit += 1
        elif isinstance(message, PackageOpened):
            self._opened(message)
        elif isinstance(message, RunFailed):
            raise RunFailedError(message.kind, message.message)
        elif isinstance(message, RunEnded):
            return message
        return None

    def _opened(self, message: PackageOpened) -> None:
        if self._pieces is not None:
            raise MessageError("the enclave opened the package twice")
        self.new_publisher = message.new_publisher
        label = self._plan.header.label
        if message.new_publisher or label.signer is None:
            for line in publisher_line(label, is_new=message.new_publisher).splitlines():
                self._display.say(line)
        self._credit = CREDIT
        self._pieces = self._all_pieces()

    def _fill(self) -> None:
        """Send as much as the session can hold, and start the script behind it."""
        while self._pieces is not None and not self._running and self._credit > 0:
            found = next(self._pieces, None)
            if found is None:
                self._running = True
                self._session.send(StartScript())
                return
            message, data = found
            self._credit -= 1
            self._sent += len(data)
            self._session.send(message, data)
            self._display.sending(self._sent, self._plan.size)

    def _all_pieces(self) -> Iterator[tuple[ToRun, bytes]]:
        while data := self._plan.stream.read(PIECE_BYTES):
            yield BodyPiece(), data
        if not self._plan.inputs.entries:
            return
        buffer = bytearray()
        for piece in read_inputs(self._plan.workspace, self._plan.inputs, lambda _done: None):
            buffer += piece
            while len(buffer) >= PIECE_BYTES:
                yield InputPiece(), bytes(buffer[:PIECE_BYTES])
                del buffer[:PIECE_BYTES]
        if buffer:
            yield InputPiece(), bytes(buffer)

    def _check_signals(self) -> None:
        """Pass the first Ctrl-C on to the script; any other signal has stopped the run already."""
        self._signals.drain()
        if self._signals.interrupts == self._interrupts:
            return
        self._interrupts = self._signals.interrupts
        if not self._running:
            raise RunStoppedError(INTERRUPTED)
        self._session.send(Interrupt())
        name = signal.Signals(signal.SIGINT).name
        self._display.say(
            f"{name} is sent to the script, which has 5 s to end; again: it is stopped at once"
        )
