"""Sockets that never write more than 32 KiB at once, for AF_VSOCK.

A fault of the host's kernel is reported that corrupts vsock packets over about 32 KiB. Whatever
writes to such a socket (TLS, a relay, an HTTP exchange) is kept below that here, in one place,
since asyncio hands the system as much as there is.
Source: FACTS, "vsock"; docs/decisions/relay_in_protocol.md.
"""

import socket
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["MAX_VSOCK_WRITE_BYTES", "CappedSocket", "capped"]

MAX_VSOCK_WRITE_BYTES: Final = 32 * 1024


class CappedSocket(socket.socket):
    """A stream socket whose writes take at most 32 KiB; callers send the rest again, as ever."""

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send at most 32 KiB of `data`; return how many bytes were taken."""
        return super().send(memoryview(data).cast("B")[:MAX_VSOCK_WRITE_BYTES], flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send all of `data`, 32 KiB at a time."""
        left = memoryview(data).cast("B")
        while left:
            left = left[self.send(left, flags) :]

    def sendmsg(self, buffers: Iterable[Any], *rest: Any) -> int:
        """Send at most 32 KiB of the buffers, one after the other; for asyncio from 3.12 on."""
        chosen, room = [], MAX_VSOCK_WRITE_BYTES
        for buffer in buffers:
            view = memoryview(buffer).cast("B")[:room]
            chosen.append(view)
            room -= len(view)
            if not room:
                break
        return super().sendmsg(chosen, *rest)

    def sendfile(self, *_: Any, **__: Any) -> int:
        """Refuse: the system's sendfile(2) has no such limit."""
        raise NotImplementedError("a vsock stream is written to with send only")


def capped(sock: socket.socket) -> socket.socket:
    """Return the socket, or for AF_VSOCK a capped one in its place, which owns the descriptor."""
    if sock.family != getattr(socket, "AF_VSOCK", None) or isinstance(sock, CappedSocket):
        return sock
    timeout = sock.gettimeout()
    family, kind, number = sock.family, sock.type, sock.proto
    replacement = CappedSocket(family, kind, number, fileno=sock.detach())
    replacement.settimeout(timeout)
    return replacement
