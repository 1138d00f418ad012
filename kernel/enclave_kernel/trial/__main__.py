"""The user's side of `enclave-owner try`: `python -I -m enclave_kernel.trial DESCRIPTOR FOLDER`."""

import os
import queue
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.trial_messages import (
    CannotTry,
    Ended,
    OpenForUser,
    RunCell,
    RunTrialScript,
    TrialMessageError,
    TrialReply,
    TrialRequest,
    decode_trial_request,
    encode_trial,
)

if TYPE_CHECKING:
    from enclave_kernel.trial.user_side import UserSide

__all__ = ["main"]

_READ_BYTES = 64 * 1024


def main(arguments: list[str]) -> int:
    """Answer requests until the other end closes; return the exit status.

    Args:
        arguments: The descriptor of the socket to `try`; its folder, which is removed in the end,
            whatever became of `try`.
    """
    sock = socket.socket(fileno=int(arguments[0]))
    # What a cell starts must not hold the socket open.
    sock.set_inheritable(False)
    os.umask(0o077)
    # Between requests an interrupt has nothing to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(arguments[1])
    requests: queue.SimpleQueue[TrialRequest] = queue.SimpleQueue()
    reader = _Reader(sock, folder, requests)
    reading = threading.Thread(target=reader.run, daemon=True)
    reading.start()
    opening = requests.get()
    if not isinstance(opening, OpenForUser):
        raise TrialMessageError("`try` did not begin with the package")
    try:
        side = _make_side(opening, folder)
    except ModuleNotFoundError as error:
        _send(sock, CannotTry(f"there is no module {error.name}"))
        return 1
    reader.side = side
    try:
        _send(sock, _interruptible(side.load))
        while True:
            _send(sock, _answer(side, requests.get()))
    except (BrokenPipeError, ConnectionResetError):
        # The reader is at it: it ends this process when nothing is left.
        reading.join()
    return 0


def _make_side(opening: OpenForUser, folder: Path) -> "UserSide":
    # Late: what is missing is to be told.
    from enclave_kernel.trial.user_side import UserSide

    return UserSide(opening, folder)


def _answer(side: "UserSide", request: TrialRequest) -> TrialReply:
    if isinstance(request, RunCell):
        return _interruptible(lambda: side.run_cell(request))
    if isinstance(request, RunTrialScript):
        return _interruptible(lambda: side.run_script(request))
    raise TrialMessageError("`try` asked the user's side for something else than code to run")


class _Reader:
    """Hands on requests; when `try` is gone, it ends this process, the vaults and the folder."""

    def __init__(
        self, sock: socket.socket, folder: Path, requests: "queue.SimpleQueue[TrialRequest]"
    ) -> None:
        self.side: UserSide | None = None
        self._sock = sock
        self._folder = folder
        self._requests = requests

    def run(self) -> None:
        """Read until the end, in a thread: the main thread may be in a call."""
        decoder = FrameDecoder()
        try:
            while data := self._sock.recv(_READ_BYTES):
                for frame in decoder.feed(data):
                    self._requests.put(decode_trial_request(frame))
        except (OSError, EnclaveError):
            # Nothing that comes after it can be understood.
            return
        finally:
            # A vault that is on its way dies with the thread that makes it.
            if self.side is not None:
                self.side.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(0)


def _interruptible(work: Callable[[], Ended]) -> Ended:
    """Return what `work` returns; SIGINT reaches it as in a notebook, and nothing else."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work()
    except KeyboardInterrupt:
        return Ended(error="KeyboardInterrupt")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _send(sock: socket.socket, reply: TrialReply) -> None:
    sock.sendall(encode_frame(encode_trial(reply)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
