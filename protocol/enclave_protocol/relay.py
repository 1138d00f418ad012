"""Pumps bytes between two connected stream sockets; looks at none of them.

The only I/O in this package: gateway and supervisor carry Jupyter channels with exactly the same
pump, and neither may import the other (docs/decisions/relay_in_protocol.md).
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from enclave_protocol.vsock_socket import MAX_VSOCK_WRITE_BYTES

__all__ = ["RelayCounters", "relay", "relay_secured"]

_PORTION_BYTES = 256 * 1024
_SOCKET_BUFFER_BYTES = 1024 * 1024
_LAST_WORDS_S = 1.0


class RelayCounters:
    """Bytes carried in each direction so far, from `a` to `b` and from `b` to `a`."""

    def __init__(self) -> None:
        self.a_to_b = 0
        self.b_to_a = 0


class _End(asyncio.BufferedProtocol):
    """One socket of a pair: what arrives here is written to `other`."""

    other: "_End"
    transport: asyncio.Transport | None = None

    def __init__(self, portion: int, count: Callable[[int], None]) -> None:
        self._view = memoryview(bytearray(portion))
        self._count = count
        self._early = bytearray()
        self.writing_paused = False
        self.at_end = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a relay needs a stream transport, not {type(transport).__name__}")
        self.transport = transport
        # Stop reading as soon as the other side does not take what was read: the sender's kernel
        # buffer fills, and the sender waits. Nothing is dropped, nothing piles up here.
        transport.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (the protocol's signature)
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._count(nbytes)
        peer = self.other.transport
        if peer is None:
            # The other transport does not exist yet: one portion waits here, not more.
            self._early += self._view[:nbytes]
            self.pause_reading()
        elif not peer.is_closing():
            peer.write(self._view[:nbytes])

    def pause_reading(self) -> None:
        """Stop reading this side."""
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def pair(self) -> None:
        """Both transports exist: pass on what came early and read again."""
        if self.transport is None or self.other.transport is None:
            raise RuntimeError("a relay was paired before both sides were connected")
        if self._early:
            self.other.transport.write(bytes(self._early))
            self._early.clear()
        if self.at_end:
            self._pass_end_on()
        elif self.transport is not None and not self.other.writing_paused:
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read this side again."""
        transport = self.transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    def pause_writing(self) -> None:
        self.writing_paused = True
        self.other.pause_reading()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self.other.resume_reading()

    def eof_received(self) -> bool:
        self.at_end = True
        if self.other.transport is not None:
            self._pass_end_on()
        return True

    def _pass_end_on(self) -> None:
        mine, other = self.transport, self.other.transport
        if mine is None or other is None:
            return
        if self.other.at_end or other.is_closing():
            mine.close()
            other.close()
        elif other.can_write_eof():
            other.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.other.transport is not None:
            # close() still writes what is buffered for the other side.
            self.other.transport.close()
        if not self.closed.done():
            self.closed.set_result(None)


def _prepare(sock: socket.socket) -> int:
    """Make the socket ready for the loop and return how many bytes to move at a time."""
    sock.setblocking(False)
    if sock.family == getattr(socket, "AF_VSOCK", None):
        # More could not be written at once.
        return MAX_VSOCK_WRITE_BYTES
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        # The system's limit applies; a larger buffer saves switches between the processes.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    return _PORTION_BYTES


async def relay(a: socket.socket, b: socket.socket, counters: RelayCounters | None = None) -> None:
    """Carry bytes both ways until both sides are done, and close both sockets.

    An end of stream is passed on as such; a broken side ends the other. Cancelling closes both.

    Args:
        a: A connected stream socket; owned by this call from now on.
        b: The other one.
        counters: Updated while bytes move.
    """
    counts = counters or RelayCounters()

    def count_a(n: int) -> None:
        counts.a_to_b += n

    def count_b(n: int) -> None:
        counts.b_to_a += n

    portion = min(_prepare(a), _prepare(b))
    end_a, end_b = _End(portion, count_a), _End(portion, count_b)
    end_a.other, end_b.other = end_b, end_a
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(lambda: end_a, sock=a)
        await loop.create_connection(lambda: end_b, sock=b)
        end_a.pair()
        end_b.pair()
        await asyncio.gather(end_a.closed, end_b.closed)
    finally:
        for end, sock in ((end_a, a), (end_b, b)):
            if end.transport is None:
                sock.close()
            else:
                # Cancelled, or broken on the other side: an ended transport does not mind.
                end.transport.abort()


async def relay_secured(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sock: socket.socket
) -> None:
    """Carry bytes both ways between a stream in TLS and a socket, and close both.

    When either ends, both do: TLS in Python has no half-closed streams.

    Args:
        reader: Of the stream, owned by this call from now on.
        writer: Of the same.
        sock: A connected stream socket; owned, too.
    """
    _prepare(sock)
    try:
        inner_reader, inner_writer = await asyncio.open_connection(sock=sock, limit=_PORTION_BYTES)
    except BaseException:
        sock.close()
        writer.transport.abort()
        raise
    pumps = [
        asyncio.create_task(_pump(reader, inner_writer)),
        asyncio.create_task(_pump(inner_reader, writer)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # What one end said last still reaches the other.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await writer.drain()
                await inner_writer.drain()
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        inner_writer.close()
        writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PORTION_BYTES):
            target.write(data)
            await target.drain()
