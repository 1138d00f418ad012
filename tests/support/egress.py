"""The egress proxy on a loopback port, servers behind it, and raw requests to it."""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from enclave_parent_gateway.egress.addresses import Address, AddressPolicy
from enclave_parent_gateway.egress.allowlist import Allowlist, Rule, parse_rule, suggested_rule
from enclave_parent_gateway.egress.connection_log import ConnectionLog, LogEntry, read_log
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.proxy import EgressLimits, EgressProxy
from enclave_parent_gateway.egress.resolver import Resolve, SystemResolver

__all__ = [
    "LOOPBACK",
    "OWN_LOOPBACK",
    "Handler",
    "ProxyServer",
    "client_hello",
    "names",
    "proxy_server",
    "server",
]

_PID = os.getpid()
OWN_LOOPBACK = f"127.{100 + (_PID >> 16) % 64}.{_PID >> 8 & 255}.{1 + _PID % 250}"
"""An address of this test run alone, for servers whose port is given."""
LOOPBACK = AddressPolicy(reachable=[ipaddress.ip_network("127.0.0.0/8")])
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def names(known: dict[str, list[str]], asked: list[str] | None = None) -> Resolve:
    """Return a resolver that knows these names; the answers of one are given in turn."""
    count: dict[str, int] = {}

    async def resolve(name: str) -> tuple[Address, ...]:
        if asked is not None:
            asked.append(name)
        number = count[name] = count.get(name, -1) + 1
        answers = known[name]
        answer = answers[min(number, len(answers) - 1)]
        return tuple(ipaddress.ip_address(text) for text in answer.split())

    return resolve


class _Everything(Allowlist):
    """Allows every name: then only the address decides."""

    def allows(self, destination: Destination) -> bool:
        return True


@dataclass
class ProxyServer:
    """A proxy that listens."""

    port: int
    proxy: EgressProxy
    log_path: Path
    rules: list[str | Rule]

    def logged(self) -> list[LogEntry]:
        """Return what it logged."""
        return list(read_log(self.log_path))

    async def last_logged(self, event: str) -> LogEntry:
        """Return what it logs last, once that is this event."""
        for _ in range(250):
            entries = self.logged()
            if entries and entries[-1].event == event:
                return entries[-1]
            await asyncio.sleep(0.02)
        raise AssertionError(f"no {event} in {self.logged()}")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to it."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes | str, timeout_s: float = 15.0) -> bytes:
        """Send bytes and return all that comes back until the proxy closes."""
        reader, writer = await self.open()
        try:
            writer.write(request.encode() if isinstance(request, str) else request)
            async with asyncio.timeout(timeout_s):
                return await reader.read()
        finally:
            writer.close()

    async def connect(
        self, target: str
    ) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a tunnel; return the answer's first line, and the connection behind it."""
        reader, writer = await self.open()
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
        return head.partition(b"\r\n")[0], reader, writer


@asynccontextmanager
async def proxy_server(
    folder: Path,
    *rules: str | Rule,
    addresses: AddressPolicy | None = None,
    resolve: Resolve | None = None,
    limits: EgressLimits | None = None,
    kernel: str | None = "ab-cd",
    allow_everything: bool = False,
    own: Destination | None = None,
) -> AsyncIterator[ProxyServer]:
    """Run a proxy with these rules; `ProxyServer.rules` can be changed."""
    current = list(rules)
    system = SystemResolver()
    log_path = folder / "egress.jsonl"

    async def suggest(destination: Destination) -> str:
        return suggested_rule(destination)

    proxy = EgressProxy(
        allowlist=lambda: (
            _Everything(())
            if allow_everything
            else Allowlist(r if isinstance(r, Rule) else parse_rule(r) for r in current)
        ),
        addresses=addresses or AddressPolicy(),
        resolve=resolve or system,
        log=ConnectionLog(log_path),
        suggest=suggest,
        own=own,
        limits=limits,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    serving: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(proxy.serve(sock, kernel))
            serving.add(task)
            task.add_done_callback(serving.discard)

    accepting = asyncio.create_task(accept())
    try:
        yield ProxyServer(listener.getsockname()[1], proxy, log_path, current)
    finally:
        accepting.cancel()
        for task in serving:
            task.cancel()
        await asyncio.gather(accepting, *serving, return_exceptions=True)
        listener.close()
        system.close()


@asynccontextmanager
async def server(
    handle: Handler, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Run a server on loopback; yield its port."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    made = await asyncio.start_server(closing, host, port, ssl=tls, backlog=512)
    try:
        yield made.sockets[0].getsockname()[1]
    finally:
        made.close()


def client_hello(name: str | None, alpn: Iterable[str] = ()) -> bytes:
    """Return what OpenSSL sends first to a server of this name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake needs an answer")
