"""Answers Prometheus's scrapes on a Unix socket in the runtime directory, mode 0600.

HTTP/1.1 as far as one GET needs it; a connection carries one request. Nothing of the request but
its first line is looked at.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from enclave_parent_gateway.api import GatewayStatus
from enclave_parent_gateway.kernel_slot import is_own_peer

__all__ = ["MetricsServer"]

_log = logging.getLogger(__name__)
_MAX_HEAD_BYTES: Final = 8 * 1024
_REQUEST_TIMEOUT_S: Final = 5.0
_ANSWER_TIMEOUT_S: Final = 15.0
"""Longer than the supervisor is waited for."""
_MAX_CONNECTIONS: Final = 8
"""A scraper has one; more wait for nothing."""


class MetricsServer:
    """The socket and who answers on it.

    Args:
        path: The socket's.
        backend: Name of the backend.
        status: Returns what the gateway knows now.
    """

    def __init__(
        self, path: Path, backend: str, status: Callable[[], Awaitable[GatewayStatus]]
    ) -> None:
        self._path = path
        self._backend = backend
        self._status = status
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that an earlier gateway left is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._accept, self._path, limit=_MAX_HEAD_BYTES
        )
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        try:
            # The directory is closed to others already; this holds even if it is opened by mistake.
            if task is None or len(self._open) >= _MAX_CONNECTIONS:
                return
            if not is_own_peer(writer.get_extra_info("socket")):
                return
            self._open.add(task)
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The client left, dawdled or does not speak HTTP.
            pass
        except Exception:
            _log.exception("a scrape failed")
        finally:
            if task is not None:
                self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or words[0] != b"GET":
            writer.write(_answer("405 Method Not Allowed", "text/plain", b"only GET is answered\n"))
        elif words[1].partition(b"?")[0] != b"/metrics":
            writer.write(_answer("404 Not Found", "text/plain", b"there is only /metrics\n"))
        else:
            # Late: not every gateway is scraped, and a start shall not wait for the import.
            from enclave_parent_gateway.metrics_text import CONTENT_TYPE, metrics_text

            body = metrics_text(await self._status(), self._backend)
            writer.write(_answer("200 OK", CONTENT_TYPE, body))
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            await writer.drain()


def _answer(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + body
