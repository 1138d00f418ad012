"""Workspace messages over a connected, blocking stream socket, without copying what they carry.

With `relay` and `tree` the only I/O of this package (docs/decisions/
workspace_tree_in_protocol.md). Whatever secures the stream ends before this socket.
"""

import socket
import struct
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from enclave_protocol.frame import FrameError
from enclave_protocol.workspace.messages import (
    MAX_MESSAGE_BYTES,
    FromEnclave,
    FromParent,
    encode_into,
)

__all__ = ["MessageStream", "StreamEndedError"]

_LENGTH: Final = struct.Struct(">I")
_BUFFER_BYTES: Final = 2 * (MAX_MESSAGE_BYTES + _LENGTH.size)
_SOCKET_BUFFER_BYTES: Final = 1024 * 1024

_In = TypeVar("_In")


class StreamEndedError(FrameError):
    """The other end closed the stream, or the connection broke."""


class MessageStream(Generic[_In]):
    """One end of a stream: one thread may send while another receives.

    Args:
        sock: Connected and blocking; owned by this object.
        decode: Makes a message of a frame's payload.
        early: Bytes that were read from the socket before.
    """

    def __init__(
        self, sock: socket.socket, decode: Callable[[memoryview], _In], early: bytes = b""
    ) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._sock = sock
        self._decode = decode
        self._out = bytearray()
        self._in = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0
        self._end = len(early)
        self._in[: len(early)] = early
        self.sent_bytes = 0
        self.received_bytes = 0

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on."""
        return self._sock.fileno()

    def send(self, message: FromParent | FromEnclave) -> None:
        """Send one message.

        Raises:
            StreamEndedError: Nobody takes it.
            FrameError: It is longer than a message may be.
        """
        encode_into(message, self._out, _LENGTH.size)
        size = len(self._out) - _LENGTH.size
        if size > MAX_MESSAGE_BYTES:
            raise FrameError(f"a message of {size} bytes was to be sent")
        _LENGTH.pack_into(self._out, 0, size)
        try:
            self._sock.sendall(self._out)
        except OSError as error:
            raise StreamEndedError(f"the workspace stream broke: {error}") from error
        self.sent_bytes += len(self._out)

    def next(self) -> _In | None:
        """Return the next message that was read whole; bytes in it are good until `fill`.

        Raises:
            FrameError: A longer one is announced than may be.
            WorkspaceError: It is none.
        """
        have = self._end - self._start
        if have < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._in, self._start)
        # Refuse before anything is kept for it: the peer is not trusted.
        if size > MAX_MESSAGE_BYTES:
            raise FrameError(f"a message of {size} bytes was announced")
        if have < _LENGTH.size + size:
            return None
        first = self._start + _LENGTH.size
        self._start = first + size
        return self._decode(self._in[first : self._start])

    def fill(self) -> None:
        """Read once, what there is; waits until there is something.

        Raises:
            StreamEndedError: The stream ended.
        """
        if self._start:
            # A frame always fits behind what is left of the one before.
            rest = self._end - self._start
            if rest == 0 or len(self._in) - self._end < MAX_MESSAGE_BYTES:
                self._in[:rest] = bytes(self._in[self._start : self._end])
                self._start, self._end = 0, rest
        try:
            count = self._sock.recv_into(self._in[self._end :])
        except OSError as error:
            raise StreamEndedError(f"the workspace stream broke: {error}") from error
        if count == 0:
            raise StreamEndedError("the other end closed the workspace stream")
        self._end += count
        self.received_bytes += count

    def receive(self) -> _In:
        """Return the next message, waiting for it.

        Raises:
            FrameError: As `next` and `fill`.
            WorkspaceError: As `next`.
        """
        while (message := self.next()) is None:
            self.fill()
        return message

    def shut(self) -> None:
        """Wake whoever reads or writes, on both ends, from any thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
