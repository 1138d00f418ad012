"""One request in absolute-form and its answer, carried with the bounds that the head set.

Exactly the announced body goes to the server, and nothing behind it: a second request in the same
bytes would reach a server under a name that nobody checked (THREATS N-05).
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

from enclave_parent_gateway.egress.http_head import ProxyRequest
from enclave_protocol.relay import RelayCounters

__all__ = ["carry_exchange", "end_politely"]

_PORTION_BYTES: Final = 256 * 1024
_VSOCK_PORTION_BYTES: Final = 32 * 1024
"""FACTS, vsock: larger packets are reported to arrive corrupted."""
_LINGER_S: Final = 1.0


async def carry_exchange(
    client: socket.socket,
    server: socket.socket,
    request: ProxyRequest,
    early: bytes,
    counters: RelayCounters,
) -> None:
    """Send the request, pass on the answer until the server closes.

    Args:
        client: Where the request came from.
        server: Where it goes.
        request: With a head to forward.
        early: What of the body came with the head.
        counters: Updated while bytes move.

    Raises:
        OSError: A side broke.
    """
    loop = asyncio.get_running_loop()
    head = request.forward or b""
    await loop.sock_sendall(server, head + early)
    counters.a_to_b += len(head) + len(early)
    body = asyncio.create_task(
        _send_body(client, server, request.body_bytes - len(early), counters)
    )
    try:
        await _pass_on(server, client, counters)
    finally:
        body.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await body
    await end_politely(client)


async def end_politely(sock: socket.socket) -> None:
    """Say that nothing more comes, and read away what does: unread bytes would undo the answer."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_S):
            while await loop.sock_recv(sock, _PORTION_BYTES):
                pass


async def _send_body(
    client: socket.socket, server: socket.socket, left: int, counters: RelayCounters
) -> None:
    loop = asyncio.get_running_loop()
    while left:
        data = await loop.sock_recv(client, min(left, _PORTION_BYTES))
        if not data:
            # The server sees that the body is short, as it would without a proxy.
            server.shutdown(socket.SHUT_WR)
            return
        await loop.sock_sendall(server, data)
        left -= len(data)
        counters.a_to_b += len(data)


async def _pass_on(server: socket.socket, client: socket.socket, counters: RelayCounters) -> None:
    loop = asyncio.get_running_loop()
    # Sent in the portions it is read in: what is sent over vsock stays small.
    vsock = client.family == getattr(socket, "AF_VSOCK", None)
    portion = _VSOCK_PORTION_BYTES if vsock else _PORTION_BYTES
    while data := await loop.sock_recv(server, portion):
        await loop.sock_sendall(client, data)
        counters.b_to_a += len(data)
