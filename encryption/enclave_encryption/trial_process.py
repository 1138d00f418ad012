"""A process that `try` starts and asks: one request, one reply, in frames over a socket pair."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from enclave_encryption.errors import OwnerError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.trial_messages import (
    CannotTry,
    TrialReply,
    TrialRequest,
    decode_trial_reply,
    encode_trial,
)

__all__ = ["TrialProcess", "TrialProcessEndedError"]

_READ_BYTES: Final = 64 * 1024
_STATUS_WAIT_S: Final = 20.0
_POLL_S: Final = 0.01
_MAX_OUTPUT_BYTES: Final = 256 * 1024


class TrialProcessEndedError(OwnerError):
    """The process is gone, because the code that it ran ended it."""


class TrialProcess:
    """The process, for a `with` block: nothing of it is left behind the block.

    Args:
        module: What it runs, as `python -m` takes it.
        arguments: Behind the socket's descriptor.
        descriptors: That it inherits besides.
        end_wait_s: How long it may take to end what it started; then it is killed.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        descriptors: Sequence[int] = (),
        end_wait_s: float = 0.0,
    ) -> None:
        self._end_wait_s = end_wait_s
        self._sock, theirs = socket.socketpair()
        self._outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
        self._positions = [0, 0]
        self._decoder = FrameDecoder()
        self._frames: list[bytes] = []
        descriptor = theirs.fileno()
        try:
            # No bytecode: nothing is to be left in the owner's directory.
            command = [sys.executable, "-I", "-B", "-m", module, str(descriptor), *arguments]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._outputs[0],
                stderr=self._outputs[1],
                pass_fds=(descriptor, *descriptors),
                # Ctrl-C is for `try`, which knows what to do with it.
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It ends itself, and what it started, when nobody is at the other end; unless C code of
        # a cell's holds Python's lock.
        self._sock.close()
        try:
            self._has_ended(self._end_wait_s)
        finally:
            # Not reaped yet, so that the group is still its own: also what its code left running.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._close()

    def send(self, request: TrialRequest) -> None:
        """Ask; a process that is gone is found when its reply is awaited."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(encode_frame(encode_trial(request)))

    def receive(self) -> TrialReply:
        """Return the next reply. An exception that breaks in loses nothing of it.

        Raises:
            TrialProcessEndedError: The process is gone.
            OwnerError: It cannot do its part.
        """
        while not self._frames:
            try:
                data = self._sock.recv(_READ_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise TrialProcessEndedError(self._how_it_ended())
            self._frames += self._decoder.feed(data)
        reply = decode_trial_reply(self._frames.pop(0))
        if isinstance(reply, CannotTry):
            raise OwnerError(
                "`try` needs what an enclave has installed, and here "
                f"{reply.message}: pip install 'enclave-kernel[owner,enclave]'"
            )
        return reply

    def interrupt(self) -> None:
        """Do what Ctrl-C does to a program."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    def take_output(self) -> tuple[str, str]:
        """Return what it wrote to stdout and to stderr since this was called last."""
        texts = []
        for number, descriptor in enumerate(self._outputs):
            start, end = self._positions[number], os.fstat(descriptor).st_size
            self._positions[number] = end
            # The end tells more than the beginning.
            data = os.pread(descriptor, _MAX_OUTPUT_BYTES, max(start, end - _MAX_OUTPUT_BYTES))
            texts.append(data.decode("utf-8", "replace"))
        return texts[0], texts[1]

    def _how_it_ended(self) -> str:
        status = self._has_ended(_STATUS_WAIT_S)
        if status is None:
            return "the process does not answer any more"
        if status.si_code == os.CLD_EXITED:
            return f"the process ended by itself with exit code {status.si_status}"
        return f"the process was ended by {signal.Signals(status.si_status).name}"

    def _has_ended(self, timeout_s: float) -> "os.waitid_result | None":
        """Return how it ended, at the latest after `timeout_s`; it is not reaped."""
        deadline = time.monotonic() + timeout_s
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while True:
            status = os.waitid(os.P_PID, self._process.pid, options)
            if status is not None or time.monotonic() > deadline:
                return status
            time.sleep(_POLL_S)

    def _close(self) -> None:
        self._sock.close()
        for descriptor in self._outputs:
            os.close(descriptor)
