"""The way from the enclave to the egress proxy on the parent: listeners here, a stream for each
connection, opened by the gateway. Carries bytes; what they say is read on the parent only.

Source: DESIGN section 7; docs/spec/egress.md, "Streams".
"""

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from enclave_kernel.isolation.notebook_network import listen_for_notebook, raise_loopback
from enclave_kernel.supervisor.control_stream import NoGatewayError
from enclave_kernel.supervisor.token_bucket import TokenBucket
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import EgressWanted, OpenEgress
from enclave_protocol.relay import relay

__all__ = ["Egress", "EgressListener", "make_room_for_connections"]

_log = logging.getLogger(__name__)
_STREAM_TIMEOUT_S: Final = 30.0
_TICKET_BYTES: Final = 16
_MAX_CONNECTIONS: Final = 256
"""Of one listener, as many as the proxy serves for one notebook. More wait in the backlog."""
_SECONDS_PER_CONNECTION: Final = 0.01
"""Beyond as many at once as there may be."""
_MAX_DESCRIPTORS: Final = 65_536
_ACCEPT_PAUSE_S: Final = 0.1
_LINGER_S: Final = 1.0
_PORTION_BYTES: Final = 16 * 1024


def make_room_for_connections() -> None:
    """Raise this process's own limit of descriptors: a connection takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Egress:
    """Matches connections that wait with streams that the gateway opens for them.

    Args:
        announce: Tells the gateway; returns False if there is none.
    """

    def __init__(self, announce: Callable[[EgressWanted], bool]) -> None:
        self._announce = announce
        self._waiting: dict[str, asyncio.Future[socket.socket]] = {}

    async def stream(self, kernel_id: str | None) -> socket.socket:
        """Return a stream to the proxy.

        Args:
            kernel_id: For whom; None: for the enclave itself.

        Raises:
            NoGatewayError: Nobody opens one within 30 s.
        """
        ticket = secrets.token_hex(_TICKET_BYTES)
        arrived: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = arrived
        try:
            if not self._announce(EgressWanted(ticket, kernel_id)):
                raise NoGatewayError
            async with asyncio.timeout(_STREAM_TIMEOUT_S):
                await asyncio.wait((arrived,))
        except BaseException as error:
            if arrived.done():
                arrived.result().close()
            if isinstance(error, TimeoutError):
                raise NoGatewayError from None
            raise
        finally:
            self._waiting.pop(ticket, None)
        return arrived.result()

    def take(self, opened: OpenEgress, sock: socket.socket) -> None:
        """Hand a stream that the gateway opened to the connection that waits for it."""
        arrived = self._waiting.pop(opened.ticket, None)
        if arrived is None or arrived.done():
            # It waited too long, or the gateway made the ticket up.
            sock.close()
            return
        arrived.set_result(sock)

    def listen_for(self, pid: int, kernel_id: str) -> "EgressListener | None":
        """Return the listener in a notebook's own network; None where that cannot be had."""
        try:
            sock = listen_for_notebook(pid)
        except (OSError, EnclaveError) as error:
            _log.warning("kernel %s has no way to the egress proxy: %s", kernel_id, error)
            return None
        return EgressListener(self, sock, kernel_id)

    @contextlib.asynccontextmanager
    async def own_proxy(self) -> AsyncIterator[str]:
        """Yield the URL of the proxy for one call of the enclave's own, which TLS must protect.

        Raises:
            OSError: There is no loopback interface.
        """
        if os.geteuid() == 0:
            raise_loopback()
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        listener = EgressListener(self, sock, None)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            listener.close()


class EgressListener:
    """Accepts connections and carries each to the proxy.

    Args:
        egress: Where streams come from.
        sock: Listening, non-blocking; owned from here on.
        kernel_id: Whose it is; None: the enclave's own.
    """

    def __init__(self, egress: Egress, sock: socket.socket, kernel_id: str | None) -> None:
        self._egress = egress
        self._sock = sock
        self._kernel_id = kernel_id
        self._room = asyncio.Semaphore(_MAX_CONNECTIONS)
        # A loop of refused connections must not keep the gateway from other notebooks' channels.
        self._pace = TokenBucket(_MAX_CONNECTIONS, _SECONDS_PER_CONNECTION)
        accepting = asyncio.create_task(self._accept())
        # Not before it ended: until then the loop watches the descriptor.
        accepting.add_done_callback(lambda _: sock.close())
        self._tasks: set[asyncio.Task[None]] = {accepting}

    def close(self) -> None:
        """Stop listening and end every connection."""
        for task in self._tasks:
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            await asyncio.sleep(self._pace.take())
            try:
                client, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                # Out of descriptors: the connection waits in the backlog.
                self._room.release()
                _log.warning("a connection to the proxy was not accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            task = asyncio.create_task(self._carry(client))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _carry(self, client: socket.socket) -> None:
        try:
            stream = await self._egress.stream(self._kernel_id)
        except NoGatewayError as error:
            await _answer(client, str(error))
            return
        except BaseException:
            client.close()
            raise
        await relay(client, stream)


async def _answer(client: socket.socket, text: str) -> None:
    """Say in HTTP what is wrong; of the request nothing is looked at."""
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    answer = f"HTTP/1.1 502 enclave: {text}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_LINGER_S):
            await loop.sock_sendall(client, answer.encode("ascii", "replace"))
            client.shutdown(socket.SHUT_WR)
            # Unread bytes would undo the answer.
            while await loop.sock_recv(client, _PORTION_BYTES):
                pass
    except (OSError, TimeoutError):
        pass
    finally:
        client.close()
