"""Call frames over a connected stream socket: the same blocking I/O in notebook and vault.

Knows frames, not what is in them. No asyncio here: a call's price is two system calls a side.
"""

import array
import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from enclave_kernel.sealed_memory import read_sealed, write_sealed
from enclave_protocol.errors import ProtocolError
from enclave_protocol.script_messages import (
    CellEnded,
    CellOutput,
    InputChunk,
    OutputChunk,
    RunScript,
    ScriptEnded,
)
from enclave_protocol.value_limits import DEFAULT_LIMITS
from enclave_protocol.vault_messages import (
    CALL_PREFIX_BYTES,
    BodyChunk,
    SessionMessage,
    VaultMessage,
    VaultMessageError,
    decode_call_prefix,
    decode_call_sizes,
    encode_call_head,
)

__all__ = ["SEALED_BYTES", "CallChannel", "ChannelClosedError", "FileCutError"]

ChannelMessage = (
    SessionMessage
    | VaultMessage
    | InputChunk
    | RunScript
    | CellOutput
    | CellEnded
    | OutputChunk
    | ScriptEnded
)

_WINDOW_BYTES: Final = 64 * 1024
_STREAMED: Final = (BodyChunk, InputChunk, OutputChunk)
_SOCKET_BUFFER_BYTES: Final = 1024 * 1024
SEALED_BYTES = 2 * 1024 * 1024 * 1024
"""Buffers of so many bytes together travel in a memfd, for which the receiver needs no memory of
its own. Below, the stream is faster, on one core as on two: its receiver has huge pages."""
_LOOK_NS: Final = 50_000
"""How long to look for the next frame before sleeping until it comes: the other process answers a
short call within it, and waking on an idle core takes longer than that call."""
_TAKEN_NS: Final = 10_000
"""Who gave the core away and comes back later than that shares it: sleeping is faster then."""
_MIN_BLIND: Final = 8
_MAX_BLIND: Final = 1024
# Plain numbers: the flags' own `&` takes longer than all else around a read.
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_CTRUNC)
# CMSG_SPACE would be padded, and the kernel would put a second descriptor into the padding.
_ONE_DESCRIPTOR: Final = socket.CMSG_LEN(array.array("i", [0]).itemsize)


class ChannelClosedError(ProtocolError):
    """The other process closed the socket, or died."""


class FileCutError(ProtocolError):
    """A file became shorter while it was sent."""


class _NoMemfdError(ProtocolError):
    """A memfd cannot be made or sent; the stream is untouched, and takes the buffers instead."""


class CallChannel:
    """One end of the socket between a notebook's process and a vault.

    Not for several threads at once; an exception from `send` or `receive` leaves the stream at an
    unknown place, and the channel is to be closed.

    Args:
        sock: Connected, blocking, of type SOCK_STREAM; owned by this object from now on.
        max_bulk_bytes: The most that the buffers of one received frame may have together.
    """

    def __init__(
        self, sock: socket.socket, *, max_bulk_bytes: int = DEFAULT_LIMITS.bulk_bytes
    ) -> None:
        self._sock = sock
        self._max_bulk_bytes = max_bulk_bytes
        self._window = memoryview(bytearray(_WINDOW_BYTES))
        self._start = 0
        self._end = 0
        self._descriptor: int | None = None
        self._blind = 0
        self._next_blind = _MIN_BLIND
        self._ready = select.poll()
        self._ready.register(sock, select.POLLIN)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 when closed."""
        return self._sock.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Return whether something of the next frame is here, at the latest after `timeout_s`."""
        if self._start != self._end:
            return True
        return bool(select.select([self._sock], [], [], max(0.0, timeout_s))[0])

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        self._sock.close()
        self._drop_descriptor()

    def send(self, message: ChannelMessage, buffers: tuple[memoryview, ...] = ()) -> None:
        """Send one frame.

        Args:
            message: The frame's message.
            buffers: Contiguous; not copied.

        Raises:
            ChannelClosedError: The other process is gone.
        """
        if not isinstance(message, _STREAMED) and sum(map(len, buffers)) >= SEALED_BYTES:
            with contextlib.suppress(_NoMemfdError):
                self._send_sealed(message, buffers)
                return
        try:
            self._sock.sendall(encode_call_head(message, buffers))
            for buffer in buffers:
                self._sock.sendall(buffer)
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosedError("the other process closed the connection") from None

    def _send_sealed(self, message: ChannelMessage, buffers: tuple[memoryview, ...]) -> None:
        head = encode_call_head(message, buffers, sealed=True)
        try:
            descriptor = write_sealed(buffers)
        except OSError:
            raise _NoMemfdError("no memfd can be had") from None
        try:
            rights = array.array("i", [descriptor])
            try:
                sent = self._sock.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except OSError as error:
                # Too many descriptors are on their way in other sockets; this one sent nothing.
                if error.errno == errno.ETOOMANYREFS:
                    raise _NoMemfdError("no descriptor can be sent") from None
                raise
            if sent < len(head):
                self._sock.sendall(head[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosedError("the other process closed the connection") from None
        finally:
            os.close(descriptor)

    def send_file(self, message: ChannelMessage, descriptor: int, size: int) -> None:
        """Send one frame whose one buffer is in a file, without reading it here.

        Args:
            message: The frame's message.
            descriptor: Of a regular file; read from where it is, and on.
            size: Of the buffer, in bytes.

        Raises:
            ChannelClosedError: The other process is gone.
            FileCutError: The file has fewer bytes.
        """
        try:
            self._sock.sendall(encode_call_head(message, file_bytes=size))
            left = size
            while left:
                sent = self._send_part(descriptor, left)
                if not sent:
                    raise FileCutError("the file became shorter while it was read")
                left -= sent
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosedError("the other process closed the connection") from None

    def _send_part(self, descriptor: int, size: int) -> int:
        try:
            return os.sendfile(self._sock.fileno(), descriptor, None, size)
        except OSError as error:
            # A file system that cannot do this; nothing was sent.
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        data = os.read(descriptor, size)
        self._sock.sendall(data)
        return len(data)

    def send_now(self, message: SessionMessage) -> bool:
        """Send a short message if that needs no waiting; return whether it was sent.

        For finalizers, which may run anywhere. The message goes in one piece or not at all: the
        kernel splits none that is this short.
        """
        head = encode_call_head(message)
        try:
            return self._sock.send(head, socket.MSG_DONTWAIT) == len(head)
        except OSError:
            return False

    def receive(self, into: memoryview | None = None) -> tuple[memoryview, tuple[memoryview, ...]]:
        """Return the next frame's message, undecoded, and its buffers.

        Args:
            into: Memory to reuse for a frame with one buffer that fits; the buffer returned is
                then a part of it. Without it every buffer has memory of its own.

        Returns:
            The message, valid until the next call, and writable buffers.

        Raises:
            ChannelClosedError: The other process is gone.
            VaultMessageError: The frame announces more than fits, or comes with a descriptor that
                is not exactly one sealed memfd; nothing was allocated, no descriptor is kept.
        """
        self._fill(CALL_PREFIX_BYTES)
        length, count, sealed = decode_call_prefix(self._window[self._start : self._end])
        self._start += CALL_PREFIX_BYTES
        if not count:
            message = self._read(length)
            self._check_no_descriptor()
            return message, ()
        sizes = decode_call_sizes(self._read(8 * count), self._max_bulk_bytes)
        # The window is used again for the buffers: the message must not stay in it.
        message = memoryview(bytes(self._read(length)))
        if sealed:
            return message, tuple(self._take_sealed(sizes))
        if into is not None and count == 1 and sizes[0] <= len(into):
            buffers: Sequence[memoryview] = (into[: sizes[0]],)
        else:
            buffers = [np.empty(size, np.uint8).data for size in sizes]
        for buffer in buffers:
            self._read_into(buffer)
        self._check_no_descriptor()
        return message, tuple(buffers)

    def _take_sealed(self, sizes: Sequence[int]) -> list[memoryview]:
        if self._descriptor is None:
            raise VaultMessageError("a memfd was announced and did not come")
        try:
            return read_sealed(self._descriptor, sizes)
        finally:
            self._drop_descriptor()

    def _check_no_descriptor(self) -> None:
        """Refuse a descriptor that no frame announced; one may belong to a frame still to read."""
        if self._descriptor is not None and self._start == self._end:
            self._drop_descriptor()
            raise VaultMessageError("a descriptor came that was not announced")

    def _drop_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self, size: int) -> memoryview:
        """Return the next `size` bytes; a view of the window if they fit into it."""
        if size > _WINDOW_BYTES:
            data = memoryview(bytearray(size))
            self._read_into(data)
            return data
        self._fill(size)
        view = self._window[self._start : self._start + size]
        self._start += size
        return view

    def _fill(self, size: int) -> None:
        """Read until the window holds at least `size` unread bytes."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + size > _WINDOW_BYTES:
            rest = bytes(self._window[self._start : self._end])
            self._window[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        if self._end - self._start < size:
            self._look()
        while self._end - self._start < size:
            self._end += self._receive_into(self._window[self._end :])

    def _look(self) -> None:
        """Wait a moment for more without sleeping, unless this core is needed by others.

        Then the next frames are slept for, the more of them the more often this was so.
        """
        if self._blind:
            self._blind -= 1
            return
        poll, clock = self._ready.poll, time.monotonic_ns
        before = clock()
        until = before + _LOOK_NS
        while not poll(0):
            # Where the other process waits for this very core, it goes on now.
            os.sched_yield()
            now = clock()
            if now - before > _TAKEN_NS:
                self._blind = self._next_blind
                self._next_blind = min(2 * self._next_blind, _MAX_BLIND)
                return
            if now > until:
                return
            before = now
        self._next_blind = _MIN_BLIND

    def _read_into(self, buffer: memoryview) -> None:
        held = min(self._end - self._start, len(buffer))
        buffer[:held] = self._window[self._start : self._start + held]
        self._start += held
        position = held
        while position < len(buffer):
            position += self._receive_into(buffer[position:])

    def _receive_into(self, view: memoryview) -> int:
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into(
                [view], _ONE_DESCRIPTOR, _CLOSE_ON_EXEC
            )
        except ConnectionResetError:
            raise ChannelClosedError("the other process closed the connection") from None
        if ancillary or flags & _CUT:
            self._keep_descriptor(ancillary, flags)
        if not count:
            raise ChannelClosedError("the other process closed the connection")
        return count

    def _keep_descriptor(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        """Keep the one descriptor that came; close all of them if it is not one, or not awaited."""
        received = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        if flags & _CUT or len(received) != 1 or self._descriptor is not None:
            for descriptor in received:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            self._drop_descriptor()
            raise VaultMessageError("more than one descriptor came with a frame")
        self._descriptor = received[0]
