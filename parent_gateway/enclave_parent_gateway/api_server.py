"""Serves the gateway's API: one request and one reply per connection."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from enclave_parent_gateway.api import (
    MAX_API_BYTES,
    Reply,
    Request,
    decode_request,
    encode_message,
)
from enclave_parent_gateway.callers import Callers, peer_uid
from enclave_parent_gateway.errors import GatewayError
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import Failed

__all__ = ["ApiServer"]

log = logging.getLogger(__name__)

_PORTION_BYTES = 64 * 1024
_REQUEST_TIMEOUT_S = 10.0
"""For sending the request; the reply may take longer (a wait for a kernel's end)."""
_BACKLOG = 512
_FLUSH_TIMEOUT_S = 1.0


class ApiServer:
    """A Unix socket that answers requests of this user, or of a group that shares the gateway.

    Args:
        path: The socket's.
        handle: Answers one request of a user; cancelled when its client hangs up.
        callers: Who may connect.
    """

    def __init__(
        self,
        path: Path,
        handle: Callable[[Request, int], Awaitable[Reply]],
        callers: Callers,
    ) -> None:
        self._path = path
        self._handle = handle
        self._callers = callers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Whoever starts a gateway holds the lock, so a file found there is a leftover."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o660 if self._callers.shared else 0o600)
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening, give replies under way a moment to get out, end the rest."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        if self._connections:
            _, pending = await asyncio.wait(self._connections, timeout=_FLUSH_TIMEOUT_S)
            for task in pending:
                task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
            # The directory is closed to others already; this holds even if it is opened by mistake.
            if self._callers.may_connect(uid):
                await self._serve(reader, writer, uid)
        except (EnclaveError, OSError, TimeoutError) as error:
            log.warning("a client of the gateway failed: %s", error)
        finally:
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        try:
            request = await self._read(reader)
        except EnclaveError as error:
            await self._send(writer, Failed(type(error).__name__, str(error)))
            return
        if request is None:
            return
        answer = asyncio.ensure_future(self._answer(request, uid))
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answer, hung_up), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await self._send(writer, answer.result())
        finally:
            for task in (answer, hung_up):
                task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await hung_up

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        """Return the request, None if the client left without one."""
        decoder = FrameDecoder(MAX_API_BYTES)
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            while data := await reader.read(_PORTION_BYTES):
                if frames := decoder.feed(data):
                    return decode_request(frames[0])
        return None

    async def _answer(self, request: Request, uid: int) -> Reply:
        try:
            return await self._handle(request, uid)
        except EnclaveError as error:
            kind = getattr(error, "kind", None) or type(error).__name__
            return Failed(kind, str(error)[:4096])
        except Exception:
            # Our own fault: the client gets a word, the log gets the trace.
            log.exception("request %s failed", type(request).__name__)
            return Failed(
                GatewayError.__name__, "the gateway failed on this request; see: enclave logs"
            )

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
        writer.write(encode_frame(encode_message(reply)))
        await writer.drain()
