"""The supervisor's handle on the zygote: fork a kernel, signal it, hear of its end."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Callable

from enclave_kernel import session_messages
from enclave_kernel.session_messages import (
    MAX_SESSION_BYTES,
    ForkKernel,
    KernelExited,
    KernelForked,
    SignalChild,
)
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame

__all__ = ["ZygoteError", "ZygoteProcess"]

_log = logging.getLogger(__name__)
# Frozen modules off as for the stock ipykernel: its debugger needs it.
_PYTHON = (sys.executable, "-I", "-X", "frozen_modules=off")
_FORK_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


class ZygoteError(EnclaveError):
    """The zygote is gone or does not answer."""


class ZygoteProcess:
    """A running zygote.

    Args:
        environ: Its whole environment.
        on_exit: Called with every kernel process that ended.
        on_gone: Called once when the zygote itself ended without being told to.
    """

    def __init__(
        self,
        environ: dict[str, str],
        *,
        on_exit: Callable[[KernelExited], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._on_exit = on_exit
        self._on_gone = on_gone
        self._forks: dict[str, asyncio.Future[int]] = {}
        self._decoder = FrameDecoder(MAX_SESSION_BYTES)
        ours, theirs = socket.socketpair()
        with theirs:
            # Spawned from the main thread: the zygote dies with the thread that made it.
            self._process = subprocess.Popen(
                [*_PYTHON, "-m", "enclave_kernel.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                # What a kernel writes to its own descriptors is the user's: never in our log.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._sock = ours
        # Writes block: the zygote reads at once, and a frame fits into the socket's buffer.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours.fileno(), self._read)

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    async def fork(self, name: str, descriptors: list[int]) -> int:
        """Fork a kernel process that holds copies of these descriptors; return its pid.

        Args:
            name: 16 hexadecimal digits, not in use by a living process.
            descriptors: Five listeners and the session socket.

        Raises:
            ZygoteError: The zygote is gone or did not answer within 30 s.
        """
        answer: asyncio.Future[int] = self._loop.create_future()
        self._forks[name] = answer
        frame = encode_frame(session_messages.encode(ForkKernel(name=name)))
        try:
            socket.send_fds(self._sock, [frame], descriptors)
            return await asyncio.wait_for(answer, _FORK_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise ZygoteError("the zygote does not fork; see: enclave logs") from error
        finally:
            self._forks.pop(name, None)

    def signal(self, name: str, signum: int) -> None:
        """Signal a kernel's process group; one that ended already is fine."""
        message = SignalChild(name=name, signum=signum)
        with contextlib.suppress(OSError):
            self._sock.sendall(encode_frame(session_messages.encode(message)))

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        for payload in self._decoder.feed(data):
            message = session_messages.decode_from_zygote(payload)
            if isinstance(message, KernelForked):
                answer = self._forks.get(message.name)
                if answer is not None and not answer.done():
                    answer.set_result(message.pid)
            else:
                self._on_exit(message)

    def _gone(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for answer in self._forks.values():
            if not answer.done():
                answer.set_exception(ZygoteError("the zygote ended; start the kernel again"))
        code = self._process.wait()
        _log.warning("the zygote ended with status %d", code)
        self._on_gone()

    def stop(self) -> None:
        """End the zygote and with it every kernel it made; return when it is gone."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
