"""The supervisor's end of one kernel process's socket. What comes out of it is hostile."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from enclave_kernel import session_messages
from enclave_kernel.session_messages import (
    MAX_SESSION_BYTES,
    About,
    AboutRequest,
    AttestRequest,
    CancelLoad,
    CellsPending,
    FlushWorkspace,
    InterruptVault,
    KernelFailed,
    KernelReady,
    KernelWalled,
    LoadPackage,
    LoadRefused,
    NotebookAttested,
    PackageLoaded,
    StartKernel,
    UnloadVault,
    UsageRequest,
    VaultDeath,
    VaultDeathRequest,
    VaultsUsage,
    WorkspaceFlushed,
)
from enclave_protocol.errors import ProtocolError
from enclave_protocol.frame import FrameDecoder, encode_frame

__all__ = ["FromSession", "SessionChannel", "ToSession"]

_MAX_UNSENT_BYTES = 2 * MAX_SESSION_BYTES

FromSession = (
    KernelReady
    | KernelWalled
    | KernelFailed
    | CellsPending
    | LoadPackage
    | CancelLoad
    | InterruptVault
    | UnloadVault
    | VaultDeathRequest
    | AboutRequest
    | FlushWorkspace
    | AttestRequest
    | UsageRequest
)

ToSession = (
    StartKernel
    | PackageLoaded
    | LoadRefused
    | VaultDeath
    | About
    | NotebookAttested
    | WorkspaceFlushed
    | VaultsUsage
)


class SessionChannel:
    """Reads a kernel process's messages without ever waiting for it.

    Args:
        sock: The supervisor's end; owned by the channel.
        on_message: Called with each message.
        on_end: Called once, when the process closed its end or broke the protocol.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[FromSession], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = FrameDecoder(MAX_SESSION_BYTES)
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    def send(
        self,
        message: ToSession,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """Send one message; what does not fit into the socket's buffer follows when it is read.

        A process that lets more than 2 MiB pile up is not waited for: its channel ends (THREATS
        X-07).
        """
        frame = encode_frame(session_messages.encode(message))
        sent = 0
        if not self._unsent:
            try:
                sent = socket.send_fds(self._sock, [frame], descriptors)
            except BlockingIOError:
                # Descriptors travel with the first byte, and there is no room for it.
                sent = -1 if descriptors else 0
            except OSError:
                sent = -1
        elif descriptors:
            sent = -1
        if sent < 0 or len(self._unsent) + len(frame) - sent > _MAX_UNSENT_BYTES:
            self.close()
        elif sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._sock.fileno(), self._send_rest)

    def _send_rest(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for payload in self._decoder.feed(data):
                self._on_message(session_messages.decode_from_session(payload))
        except ProtocolError:
            self.close()

    def close(self) -> None:
        """End the channel; `on_end` is called the first time."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._on_end()
