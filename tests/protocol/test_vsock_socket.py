"""No write to a vsock stream is over 32 KiB, whoever writes."""

import asyncio
import hashlib
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.supervisor.channel_identity import new_channel_identity
from enclave_parent_gateway.transport import connect, tls_context
from enclave_protocol.relay import relay
from enclave_protocol.vsock_socket import MAX_VSOCK_WRITE_BYTES, CappedSocket, capped

_DATA = os.urandom(2**20 + 7)


class _Recorder(CappedSocket):
    """Notes how much the system was given at once."""

    written: list[int]

    def send(self, data: Any, flags: int = 0, /) -> int:
        taken = super().send(data, flags)
        self.written.append(taken)
        return taken

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        taken = super().sendmsg(buffers, *rest)
        self.written.append(taken)
        return taken


def _pair() -> tuple[_Recorder, socket.socket]:
    a, b = socket.socketpair()
    # So that the system would take all of it.
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * len(_DATA))
    recorder = _Recorder(fileno=a.detach())
    recorder.written = []
    return recorder, b


async def _digest(reader: asyncio.StreamReader) -> bytes:
    return hashlib.sha256(await reader.read(-1)).digest()


def test_every_way_to_send_is_capped() -> None:
    # Packets keep their boundaries: this is what the system got.
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with CappedSocket(fileno=a.detach()) as sock, b:
        assert sock.send(_DATA) == MAX_VSOCK_WRITE_BYTES == len(b.recv(2**20))
        assert sock.sendmsg([_DATA[:10], b"", _DATA]) == MAX_VSOCK_WRITE_BYTES
        assert len(b.recv(2**20)) == MAX_VSOCK_WRITE_BYTES
        sock.sendall(_DATA[: 2 * MAX_VSOCK_WRITE_BYTES + 1])
        assert [len(b.recv(2**20)) for _ in range(3)] == [MAX_VSOCK_WRITE_BYTES] * 2 + [1]
        with pytest.raises(NotImplementedError):
            sock.sendfile()


async def test_tls() -> None:
    mine, theirs = _pair()
    context = new_channel_identity().context
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()

    async def serve() -> None:
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, mine, ssl=context)
        transport.write(_DATA)
        transport.close()

    serving = asyncio.create_task(serve())
    await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader),
        sock=theirs,
        ssl=tls_context(),
        server_hostname="",
    )
    assert await _digest(reader) == hashlib.sha256(_DATA).digest()
    await serving
    assert sum(mine.written) > 2**20
    assert max(mine.written) <= MAX_VSOCK_WRITE_BYTES


async def test_relay_and_sock_sendall() -> None:
    mine, theirs = _pair()
    inner, outer = socket.socketpair()
    outer.setblocking(False)
    relaying = asyncio.create_task(relay(inner, mine))
    reader, writer = await asyncio.open_connection(sock=theirs)
    await asyncio.get_running_loop().sock_sendall(outer, _DATA)
    outer.shutdown(socket.SHUT_WR)
    assert await _digest(reader) == hashlib.sha256(_DATA).digest()
    writer.close()
    outer.close()
    await relaying
    assert sum(mine.written) == len(_DATA)
    assert max(mine.written) <= MAX_VSOCK_WRITE_BYTES


def test_vsock_sockets_are_capped_and_others_are_not(tmp_path: Path) -> None:
    plain = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    plain.settimeout(3.0)
    number = plain.fileno()
    with capped(plain) as sock:
        assert isinstance(sock, CappedSocket)
        assert (sock.fileno(), sock.gettimeout()) == (number, 3.0)
        assert capped(sock) is sock
    assert plain.fileno() == -1
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with connect(f"unix:{tmp_path / 's'}") as sock:
            assert not isinstance(sock, CappedSocket)


def test_tls_contexts_do_not_compress() -> None:
    """Or the sizes above would say nothing."""
    assert tls_context().options & ssl.OP_NO_COMPRESSION
