"""The proxy with real sockets. What it refuses is in tests/redteam/test_17_egress.py."""

import asyncio
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.proxy import EgressLimits
from tests.support.certificates import self_signed
from tests.support.egress import (
    LOOPBACK,
    OWN_LOOPBACK,
    Handler,
    ProxyServer,
    names,
    proxy_server,
    server,
)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def http_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what was asked, until end of stream."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    body = await reader.readexactly(length)
    # Whatever follows the request would arrive here.
    try:
        more = await asyncio.wait_for(reader.read(1000), 0.2)
    except TimeoutError:
        more = b""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + head + body + b"|" + more)
    await writer.drain()


@asynccontextmanager
async def a_example(
    folder: Path, handle: Handler, limits: EgressLimits | None = None
) -> AsyncIterator[tuple[int, ProxyServer]]:
    """Run a server that the name a.example stands for, and a proxy that allows it."""
    resolve = names({"a.example": ["127.0.0.1"]})
    async with (
        server(handle) as port,
        proxy_server(
            folder, f"a.example:{port}", addresses=LOOPBACK, resolve=resolve, limits=limits
        ) as proxy,
    ):
        yield port, proxy


async def test_a_tunnel_carries_both_ways_and_is_logged(tmp_path: Path) -> None:
    async with (
        server(echo) as port,
        proxy_server(
            tmp_path,
            f"a.example:{port}",
            addresses=LOOPBACK,
            resolve=names({"a.example": ["127.0.0.1"]}),
        ) as proxy,
    ):
        status, reader, writer = await proxy.connect(f"a.example:{port}")
        assert status == b"HTTP/1.1 200 Connection established"
        payload = os.urandom(3 * 1024 * 1024)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload
        writer.close()
        await proxy.last_logged("closed")
        opened, closed = proxy.logged()
        assert (opened.event, closed.event) == ("opened", "closed")
        assert closed.kernel == "ab-cd" and closed.destination == f"a.example:{port}"
        assert closed.address == "127.0.0.1" and closed.reason is None
        assert (closed.bytes_out, closed.bytes_in) == (len(payload), len(payload))
        assert proxy.proxy.connections == 0


async def test_absolute_form(tmp_path: Path) -> None:
    async with (
        server(http_hello) as port,
        proxy_server(
            tmp_path,
            f"a.example:{port}",
            addresses=LOOPBACK,
            resolve=names({"a.example": ["127.0.0.1"]}),
        ) as proxy,
    ):
        answer = await proxy.ask(
            f"PUT http://a.example:{port}/x HTTP/1.1\r\nHost: a.example:{port}\r\n"
            "Proxy-Authorization: secret\r\nContent-Length: 4\r\n\r\nbody"
        )
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(
            f"\r\n\r\nPUT /x HTTP/1.1\r\nHost: a.example:{port}\r\nContent-Length: 4\r\n"
            "Connection: close\r\n\r\nbody|".encode()
        )


async def test_a_body_that_comes_later_and_no_more_than_it(tmp_path: Path) -> None:
    async with (
        server(http_hello) as port,
        proxy_server(
            tmp_path,
            f"a.example:{port}",
            addresses=LOOPBACK,
            resolve=names({"a.example": ["127.0.0.1"]}),
        ) as proxy,
    ):
        reader, writer = await proxy.open()
        writer.write(
            f"POST http://a.example:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\n".encode()
        )
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"bodyGET http://evil.example/ HTTP/1.1\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.endswith(b"\r\n\r\nbody|")
        writer.close()


async def test_tls_through_the_tunnel_ends_at_the_server(tmp_path: Path) -> None:
    """Port 443 itself, which a test of root's may take on another loopback address."""
    if os.geteuid() != 0:
        pytest.skip("only root may listen on port 443")
    certificate, key = self_signed(tmp_path, "good.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    resolve = names({"good.example": [OWN_LOOPBACK]})

    def ask(port: int, name: str) -> bytes:
        trust = ssl.create_default_context(cafile=certificate)
        trust.check_hostname = False
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(b"CONNECT good.example:443 HTTP/1.1\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 200 ")
            with trust.wrap_socket(raw, server_hostname=name) as tls:
                tls.sendall(b"hello")
                return tls.recv(10)

    async with (
        server(echo, OWN_LOOPBACK, 443, context),
        proxy_server(tmp_path, "good.example:443", addresses=LOOPBACK, resolve=resolve) as proxy,
    ):
        assert await asyncio.to_thread(ask, proxy.port, "good.example") == b"hello"
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await asyncio.to_thread(ask, proxy.port, "evil.example")
        entry = await proxy.last_logged("closed")
        assert "TLS asks for another" in (entry.reason or "")


async def test_python_and_its_libraries(tmp_path: Path) -> None:
    """http.client, on which urllib3, requests, pip and boto3 are built."""
    async with (
        server(http_hello) as port,
        proxy_server(
            tmp_path,
            f"a.example:{port}",
            addresses=LOOPBACK,
            resolve=names({"a.example": ["127.0.0.1"]}),
        ) as proxy,
    ):

        def ask(host: str) -> str:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
            connection.set_tunnel(host, port)
            try:
                connection.request("GET", "/x")
                return connection.getresponse().read().decode()
            finally:
                connection.close()

        assert "GET /x HTTP/1.1" in await asyncio.to_thread(ask, "a.example")
        with pytest.raises(OSError, match=r"403 enclave: b\.example") as refused:
            await asyncio.to_thread(ask, "b.example")
        assert str(refused.value).endswith(f"type: enclave proxy allow b.example:{port}")


async def test_200_at_once(tmp_path: Path) -> None:
    async with (
        server(echo) as port,
        proxy_server(
            tmp_path,
            f"a.example:{port}",
            addresses=LOOPBACK,
            resolve=names({"a.example": ["127.0.0.1"]}),
        ) as proxy,
    ):
        tunnels = await asyncio.gather(*(proxy.connect(f"a.example:{port}") for _ in range(200)))
        assert {status for status, _, _ in tunnels} == {b"HTTP/1.1 200 Connection established"}
        assert proxy.proxy.connections == 200
        for number, (_, _, writer) in enumerate(tunnels):
            writer.write(b"%03d" % number * 10_000)
        for number, (_, reader, _) in enumerate(tunnels):
            assert (
                await asyncio.wait_for(reader.readexactly(30_000), 20) == b"%03d" % number * 10_000
            )
        for _, _, writer in tunnels:
            writer.close()


async def test_backpressure_both_ways(tmp_path: Path) -> None:
    """Who does not read stops who writes; the proxy keeps next to nothing."""

    moved = {"sent": 0, "written": 0}

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            moved["sent"] += 65536

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    resolve = names({"a.example": ["127.0.0.1"]})
    async with server(flood) as loud, server(deaf) as quiet:
        rules = (f"a.example:{loud}", f"a.example:{quiet}")
        async with proxy_server(tmp_path, *rules, addresses=LOOPBACK, resolve=resolve) as proxy:
            _, _, silent = await proxy.connect(f"a.example:{loud}")
            silent.transport.pause_reading()  # type: ignore[attr-defined]
            _, _, talker = await proxy.connect(f"a.example:{quiet}")
            deadline = time.monotonic() + 20
            before: dict[str, int] = {}
            while before != moved and time.monotonic() < deadline:
                before = dict(moved)
                try:
                    async with asyncio.timeout(0.4):
                        while True:
                            talker.write(b"y" * 65536)
                            await talker.drain()
                            moved["written"] += 65536
                except TimeoutError:
                    continue
            assert before == moved
            assert max(moved.values()) < 64 * 2**20
            silent.transport.abort()
            talker.transport.abort()


async def test_idle_connections_are_cut(tmp_path: Path) -> None:
    limits = EgressLimits(idle_s=0.3)
    async with a_example(tmp_path, echo, limits) as (port, proxy):
        _, reader, writer = await proxy.connect(f"a.example:{port}")
        for _ in range(5):
            # Slow, and not idle.
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await asyncio.sleep(0.15)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert "nothing moved" in (proxy.logged()[-1].reason or "")


async def test_limits_of_number(tmp_path: Path) -> None:
    for limits, word in (
        (EgressLimits(per_kernel=3), b"this notebook has 3"),
        (EgressLimits(connections=3), b"3 connections are open"),
    ):
        async with a_example(tmp_path, echo, limits) as (port, proxy):
            held = [await proxy.connect(f"a.example:{port}") for _ in range(3)]
            answer = await proxy.ask(f"CONNECT a.example:{port} HTTP/1.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 ") and word in answer
            held.pop()[2].close()
            await asyncio.sleep(0.2)
            status, _, writer = await proxy.connect(f"a.example:{port}")
            assert status.startswith(b"HTTP/1.1 200")
            writer.close()
            for _, _, open_writer in held:
                open_writer.close()


async def test_what_is_denied_later_is_cut(tmp_path: Path) -> None:
    resolve = names({"a.example": ["127.0.0.1"]})
    async with server(echo) as port:
        rule = f"a.example:{port}"
        async with proxy_server(tmp_path, rule, addresses=LOOPBACK, resolve=resolve) as proxy:
            _, reader, writer = await proxy.connect(rule)
            proxy.proxy.end_what_is_not_allowed()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            proxy.rules.clear()
            proxy.proxy.end_what_is_not_allowed()
            assert await asyncio.wait_for(reader.read(), 5) == b""
            assert proxy.logged()[-1].reason == "it is not allowed any more"
            writer.close()


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        resolve = names({"a.example": ["127.0.0.1 127.0.0.2"]})
        async with proxy_server(
            tmp_path, f"a.example:{port}", addresses=LOOPBACK, resolve=resolve
        ) as proxy:
            answer = await proxy.ask(f"CONNECT a.example:{port} HTTP/1.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 502 ") and b"does not answer" in answer


async def test_names_are_resolved_off_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that does not answer keeps nobody else waiting."""
    asked = threading.Event()

    def slow(*_args: object, **_kwargs: object) -> object:
        asked.set()
        time.sleep(1.5)
        raise socket.gaierror("no")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with (
        server(echo) as port,
        proxy_server(
            tmp_path, "slow.example:443", f"127.0.0.1:{port}", addresses=LOOPBACK
        ) as proxy,
    ):
        waiting = asyncio.create_task(proxy.ask("CONNECT slow.example:443 HTTP/1.1\r\n\r\n"))
        await asyncio.to_thread(asked.wait, 5)
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 1.0
        writer.close()
        answer = await waiting
        assert answer.startswith(b"HTTP/1.1 502 ") and b"is not known" in answer


async def test_what_the_enclave_alone_may_reach(tmp_path: Path) -> None:
    """A stand-in for KMS on this machine: neither a notebook gets there, nor anybody further."""
    async with server(echo) as port, server(echo) as other:
        own = Destination("127.0.0.1", port)
        async with proxy_server(tmp_path, "kms", kernel=None, own=own) as proxy:
            status, reader, writer = await proxy.connect(f"127.0.0.1:{port}")
            assert status == b"HTTP/1.1 200 Connection established"
            # A change of the rules does not concern it.
            proxy.proxy.end_what_is_not_allowed()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            status, _, writer = await proxy.connect(f"127.0.0.1:{other}")
            assert status.startswith(b"HTTP/1.1 403 ")
            writer.close()
        async with proxy_server(tmp_path, "kms", kernel="ab-cd", own=own) as proxy:
            status, _, writer = await proxy.connect(f"127.0.0.1:{port}")
            assert status.startswith(b"HTTP/1.1 403 ")
            writer.close()
        async with proxy_server(tmp_path, "kms", kernel=None) as proxy:
            status, _, writer = await proxy.connect(f"127.0.0.1:{port}")
            assert status.startswith(b"HTTP/1.1 403 ")
            writer.close()
