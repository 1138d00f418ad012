"""The relay: every byte, both ways, ends of streams passed on, a slow reader waited for."""

import asyncio
import hashlib
import os
import socket

from enclave_protocol.relay import RelayCounters, relay

_MIB = 2**20


async def _read_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    found = bytearray()
    while data := await loop.sock_recv(sock, 65536):
        found += data
    return bytes(found)


class _Relayed:
    """Two outer ends, joined by a relay."""

    def __init__(self) -> None:
        self.left, a = socket.socketpair()
        b, self.right = socket.socketpair()
        self.left.setblocking(False)
        self.right.setblocking(False)
        self.counters = RelayCounters()
        self.inner = (a, b)
        self.task = asyncio.create_task(relay(a, b, self.counters))

    def close(self) -> None:
        self.left.close()
        self.right.close()


async def test_both_directions_at_once_and_counted() -> None:
    pair = _Relayed()
    loop = asyncio.get_running_loop()
    there, back = os.urandom(3 * _MIB + 1), os.urandom(2 * _MIB + 5)

    async def send(sock: socket.socket, data: bytes) -> None:
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    got_right, got_left, *_ = await asyncio.gather(
        _read_all(pair.right),
        _read_all(pair.left),
        send(pair.left, there),
        send(pair.right, back),
    )
    await asyncio.wait_for(pair.task, 5)
    assert hashlib.sha256(got_right).digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(got_left).digest() == hashlib.sha256(back).digest()
    assert (pair.counters.a_to_b, pair.counters.b_to_a) == (len(there), len(back))
    pair.close()


async def test_one_direction_stays_open_when_the_other_ends() -> None:
    pair = _Relayed()
    loop = asyncio.get_running_loop()
    pair.left.shutdown(socket.SHUT_WR)
    assert await asyncio.wait_for(loop.sock_recv(pair.right, 10), 5) == b""
    await loop.sock_sendall(pair.right, b"still here")
    assert await asyncio.wait_for(loop.sock_recv(pair.left, 100), 5) == b"still here"
    pair.close()
    await asyncio.wait_for(pair.task, 5)


async def test_a_slow_reader_stops_the_sender_and_loses_nothing() -> None:
    pair = _Relayed()
    loop = asyncio.get_running_loop()
    data = os.urandom(32 * _MIB)
    sending = asyncio.create_task(loop.sock_sendall(pair.left, data))
    await asyncio.sleep(0.3)
    # Only kernel buffers and one portion may hold bytes while nobody reads.
    assert pair.counters.a_to_b < 8 * _MIB
    assert not sending.done()
    found = bytearray()
    while len(found) < len(data):
        found += await loop.sock_recv(pair.right, _MIB)
    await sending
    assert bytes(found) == data
    pair.close()
    await asyncio.wait_for(pair.task, 5)


async def test_a_closed_side_ends_the_other() -> None:
    pair = _Relayed()
    pair.left.close()
    assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(pair.right, 10), 5) == b""
    pair.right.close()
    await asyncio.wait_for(pair.task, 5)


async def test_cancelling_closes_both_sockets() -> None:
    pair = _Relayed()
    await asyncio.sleep(0.05)
    pair.task.cancel()
    await asyncio.gather(pair.task, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert all(sock.fileno() == -1 for sock in pair.inner)
    pair.close()
