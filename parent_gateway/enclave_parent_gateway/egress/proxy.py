"""The proxy itself: one request on each connection, checked, connected, carried and counted.

The order of the checks, which docs/spec/egress.md numbers: 1. room, 2. head, 3. allowlist, 4. name
to addresses, once, 5. addresses, 6. connect to one of those that were checked, 7. TLS's first
flight, 8. carry. Before step 4 nothing leaves the machine, not even a question to a name server.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from enclave_parent_gateway.egress.addresses import Address, AddressPolicy, Network
from enclave_parent_gateway.egress.allowlist import Allowlist
from enclave_parent_gateway.egress.client_hello import (
    MAX_HELLO_BYTES,
    UNRECOGNISED_NAME_ALERT,
    check_client_hello,
)
from enclave_parent_gateway.egress.connection_log import ConnectionLog, Event, LogEntry
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.errors import (
    AddressRefusedError,
    AllowlistError,
    BusyError,
    ClientHelloError,
    DestinationRefusedError,
    EgressError,
    HeadTooLargeError,
    RequestError,
    SlowError,
    UnreachableError,
)
from enclave_parent_gateway.egress.http_exchange import carry_exchange, end_politely
from enclave_parent_gateway.egress.http_head import (
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    ProxyRequest,
    parse_head,
)
from enclave_parent_gateway.egress.resolver import Resolve
from enclave_protocol.relay import RelayCounters, relay

__all__ = ["EgressCounts", "EgressLimits", "EgressProxy"]

_log = logging.getLogger(__name__)
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TLS_PORT: Final = 443
_ANSWER_S: Final = 5.0
_PORTION_BYTES: Final = 16 * 1024
_MARK: Final = "enclave"
"""Begins the reason of every refusal, so that the notebook knows whose it is."""


@dataclass(frozen=True)
class EgressLimits:
    """Limits of the proxy.

    Attributes:
        head_s: Seconds for the whole head of a request, however it drips in (slow-loris).
        connect_s: Seconds to connect to one address.
        hello_s: Seconds from the tunnel's opening to TLS's first flight.
        idle_s: Seconds without a byte in either direction before a connection is cut.
        connections: At once, all notebooks together; two descriptors each.
        per_kernel: At once, for one notebook: pip uses 1, boto3 10.
    """

    head_s: float = 10.0
    connect_s: float = 10.0
    hello_s: float = 30.0
    idle_s: float = 300.0
    connections: int = 1024
    per_kernel: int = 256


@dataclass
class EgressCounts:
    """What the proxy did since its start.

    Attributes:
        allowed: Connections that were made.
        denied: Refused for where they were to go.
        failed: Not made for another reason: a bad request, no answer, no room.
        bytes_out: To the destinations, of connections that have ended.
        bytes_in: From them, of the same.
    """

    allowed: int = 0
    denied: int = 0
    failed: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


@dataclass(eq=False)
class _Connection:
    kernel: str | None
    started: float
    task: "asyncio.Task[None] | None" = None
    destination: Destination | None = None
    address: Address | None = None
    private: tuple[Network, ...] = ()
    counters: RelayCounters = field(default_factory=RelayCounters)
    cut: str | None = None


class EgressProxy:
    """Serves connections that somebody else accepted.

    Args:
        allowlist: Returns what is allowed now.
        addresses: Decides about resolved addresses.
        resolve: Names to addresses.
        log: Told of every connection.
        suggest: Returns what to allow so that a destination is, for a message.
        own: Where the enclave itself, and no notebook, may connect besides, whatever its address:
            what stands in for KMS on this machine, in development. Only a backend names it.
        limits: Of time and number.
    """

    def __init__(
        self,
        *,
        allowlist: Callable[[], Allowlist],
        addresses: AddressPolicy,
        resolve: Resolve,
        log: ConnectionLog,
        suggest: Callable[[Destination], Awaitable[str]],
        own: Destination | None = None,
        limits: EgressLimits | None = None,
    ) -> None:
        self._allowlist = allowlist
        self._addresses = addresses
        self._resolve = resolve
        self._log = log
        self._suggest = suggest
        self._own = own
        self._limits = limits or EgressLimits()
        self._open: set[_Connection] = set()
        self._counts = EgressCounts()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def counts(self) -> EgressCounts:
        """Return what it did so far, the bytes of open connections included."""
        live = [connection.counters for connection in self._open]
        return replace(
            self._counts,
            bytes_out=self._counts.bytes_out + sum(each.a_to_b for each in live),
            bytes_in=self._counts.bytes_in + sum(each.b_to_a for each in live),
        )

    def end_what_is_not_allowed(self) -> None:
        """Cut the connections that the allowlist, as it is now, would not let start."""
        try:
            allowed = self._allowlist()
        except AllowlistError:
            allowed = Allowlist(())
        for connection in self._open:
            destination = connection.destination
            if destination is None or self._is_own(connection):
                continue
            private = allowed.private_networks(destination)
            if not allowed.allows(destination) or not set(connection.private) <= set(private):
                self._cut(connection, "it is not allowed any more")

    def _is_own(self, connection: _Connection) -> bool:
        """Return whether the enclave itself goes where only it may."""
        return connection.kernel is None and connection.destination == self._own is not None

    def _cut(self, connection: _Connection, reason: str) -> None:
        if connection.cut is None and connection.task is not None:
            connection.cut = reason
            connection.task.cancel()

    async def serve(self, sock: socket.socket, kernel: str | None) -> None:
        """Serve one connection to its end, and close it.

        Args:
            sock: Connected, of a stream type.
            kernel: Whose it is; None: the enclave's own.
        """
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        connection = _Connection(kernel, loop.time(), asyncio.current_task())
        self._open.add(connection)
        try:
            await self._serve(sock, connection)
        except EgressError as error:
            if isinstance(error, DestinationRefusedError | AddressRefusedError):
                self._counts.denied += 1
            else:
                self._counts.failed += 1
            self._note(connection, "refused", str(error))
            await _answer(sock, error)
        except OSError as error:
            self._note_end(connection, error.strerror or type(error).__name__)
        except asyncio.CancelledError:
            self._note_end(connection, connection.cut or "the gateway ended")
            if connection.cut is None:
                raise
        finally:
            self._open.discard(connection)
            self._counts.bytes_out += connection.counters.a_to_b
            self._counts.bytes_in += connection.counters.b_to_a
            sock.close()

    async def _serve(self, sock: socket.socket, connection: _Connection) -> None:
        self._check_room(connection)  # 1
        request, early = await self._read_request(sock)  # 2
        connection.destination = request.destination
        literal = request.destination.address
        if self._is_own(connection) and literal is not None:
            addresses: tuple[Address, ...] = (literal,)
        else:
            connection.private = await self._check_allowed(request.destination)  # 3
            addresses = await self._addresses_of(request.destination, connection.private)  # 4, 5
        upstream = await self._connect(addresses, request.destination.port, connection)  # 6
        self._counts.allowed += 1
        self._note(connection, "opened", None)
        watch = asyncio.create_task(self._watch_idle(connection))
        try:
            if request.forward is None:
                await self._tunnel(sock, upstream, request, connection)
            else:
                await carry_exchange(sock, upstream, request, early, connection.counters)
        finally:
            watch.cancel()
            upstream.close()
        self._note_end(connection, None)

    def _check_room(self, connection: _Connection) -> None:
        if len(self._open) > self._limits.connections:
            raise BusyError(f"{self._limits.connections} connections are open, the most there are")
        own = Counter(other.kernel for other in self._open)[connection.kernel]
        if own > self._limits.per_kernel:
            raise BusyError(
                f"this notebook has {self._limits.per_kernel} connections open, the most it may"
            )

    async def _read_request(self, sock: socket.socket) -> tuple[ProxyRequest, bytes]:
        """Return the request and, where it has a body, the part of it that came along."""
        loop = asyncio.get_running_loop()
        data = b""
        try:
            async with asyncio.timeout(self._limits.head_s):
                while END_OF_HEAD not in data:
                    if len(data) > MAX_HEAD_BYTES:
                        raise HeadTooLargeError(f"the head is over {MAX_HEAD_BYTES} bytes")
                    more = await loop.sock_recv(sock, _PORTION_BYTES)
                    if not more:
                        raise RequestError("the connection ended before its request did")
                    data += more
        except TimeoutError:
            raise SlowError(f"no whole request within {self._limits.head_s:g} s") from None
        end = data.index(END_OF_HEAD) + len(END_OF_HEAD)
        request = parse_head(data[:end])
        early = data[end:]
        if len(early) > request.body_bytes:
            raise RequestError("something follows the request before it was answered")
        return request, early

    async def _check_allowed(self, destination: Destination) -> tuple[Network, ...]:
        """Return the private networks in which it may be."""
        try:
            allowlist = self._allowlist()
        except AllowlistError as error:
            _log.warning("nothing is allowed: %s", error)
            raise DestinationRefusedError(
                "nothing is allowed, because the allowlist cannot be read; see: enclave logs"
            ) from None
        if not allowlist.allows(destination):
            raise DestinationRefusedError(
                f"{destination} is not allowed; on the parent instance type: enclave proxy allow "
                f"{await self._suggest(destination)}"
            )
        return allowlist.private_networks(destination)

    async def _addresses_of(
        self, destination: Destination, private: tuple[Network, ...]
    ) -> tuple[Address, ...]:
        """Return the addresses that may be connected to, looked up once."""
        literal = destination.address
        found = (literal,) if literal is not None else await self._resolve(destination.host)
        good: list[Address] = []
        refused: AddressRefusedError | None = None
        for address in found:
            try:
                self._addresses.check(address, private)
            except AddressRefusedError as error:
                refused = refused or error
            else:
                good.append(address)
        if not good:
            raise AddressRefusedError(f"{destination} is refused: {refused or 'no address'}")
        return tuple(good)

    async def _connect(
        self, addresses: tuple[Address, ...], port: int, connection: _Connection
    ) -> socket.socket:
        """Return a connection to the first of these addresses that answers."""
        loop = asyncio.get_running_loop()
        why = ""
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(self._limits.connect_s):
                    await loop.sock_connect(sock, (str(address), port))
            except (OSError, TimeoutError) as error:
                sock.close()
                why = getattr(error, "strerror", None) or "no answer in time"
            except BaseException:
                sock.close()
                raise
            else:
                connection.address = address
                return sock
        raise UnreachableError(f"{connection.destination} does not answer: {why}")

    async def _tunnel(
        self,
        sock: socket.socket,
        upstream: socket.socket,
        request: ProxyRequest,
        connection: _Connection,
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, _ESTABLISHED)
        if request.destination.port == _TLS_PORT:
            try:
                hello = await self._read_hello(sock, request.destination)  # 7
            except ClientHelloError as error:
                connection.cut = str(error)
                with suppress(OSError):
                    await loop.sock_sendall(sock, UNRECOGNISED_NAME_ALERT)
                await end_politely(sock)
                return
            await loop.sock_sendall(upstream, hello)
            connection.counters.a_to_b += len(hello)
        await relay(sock, upstream, connection.counters)  # 8

    async def _read_hello(self, sock: socket.socket, destination: Destination) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        try:
            async with asyncio.timeout(self._limits.hello_s):
                while not check_client_hello(data, destination):
                    more = await loop.sock_recv(sock, MAX_HELLO_BYTES)
                    if not more:
                        raise ClientHelloError("the tunnel ended before TLS began")
                    data += more
        except TimeoutError:
            raise ClientHelloError("TLS did not begin in time") from None
        return data

    async def _watch_idle(self, connection: _Connection) -> None:
        """Cut a connection on which nothing moves."""
        counters, seen = connection.counters, (-1, -1)
        while (now := (counters.a_to_b, counters.b_to_a)) != seen:
            seen = now
            await asyncio.sleep(self._limits.idle_s)
        self._cut(connection, f"nothing moved for {self._limits.idle_s:g} s")

    # What is logged

    def _note(self, connection: _Connection, event: Event, reason: str | None) -> None:
        destination, address = connection.destination, connection.address
        entry = LogEntry(
            time=self._log.now(),
            event=event,
            kernel=connection.kernel,
            destination=None if destination is None else str(destination),
            address=None if address is None else str(address),
            bytes_out=connection.counters.a_to_b,
            bytes_in=connection.counters.b_to_a,
            seconds=round(asyncio.get_running_loop().time() - connection.started, 3),
            reason=connection.cut or reason,
        )
        self._log.write(entry)

    def _note_end(self, connection: _Connection, reason: str | None) -> None:
        self._note(connection, "refused" if connection.address is None else "closed", reason)


async def _answer(sock: socket.socket, error: EgressError) -> None:
    """Say in HTTP why not."""
    # The texts are ours and hold checked words only: no line can end early in there.
    text = f"{_MARK}: {error}"
    body = f"{text}\n".encode("ascii", "replace")
    head = f"HTTP/1.1 {error.status} {text}\r\nContent-Type: text/plain\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            answer = head.encode("ascii", "replace") + body
            await asyncio.get_running_loop().sock_sendall(sock, answer)
    await end_politely(sock)
