"""The control stream: requests and replies in both directions between gateway and supervisor."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from enclave_kernel.supervisor.failure_log import log_failure
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    Body,
    Envelope,
    Failed,
    decode_envelope,
    encode,
)

__all__ = ["ControlStream", "GatewayRefusedError", "NoGatewayError"]

_log = logging.getLogger(__name__)
_REPLY_TIMEOUT_S = 30.0
_MAX_OPEN_REQUESTS = 256
_MAX_UNREAD_BYTES = 4 * MAX_CONTROL_BYTES
"""Of replies that a gateway does not read; one that lets more pile up is hung up on."""


class NoGatewayError(EnclaveError):
    """Nothing on the parent instance answers."""

    def __init__(self) -> None:
        super().__init__("the gateway on the parent instance does not answer; see: enclave status")


class GatewayRefusedError(EnclaveError):
    """The gateway could not do what the supervisor asked it for."""


class ControlStream:
    """One control stream, from its first envelope to its end.

    Args:
        reader: Bytes from the gateway.
        writer: Bytes to it.
        handle: Answers one request of the gateway.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Callable[[Body], Awaitable[Body]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._replies: dict[int, asyncio.Future[Body]] = {}
        self._last_request = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, early: bytes) -> None:
        """Serve until the stream ends.

        Args:
            early: Bytes that came right behind the challenge.

        Raises:
            ProtocolError: The gateway broke the protocol.
        """
        decoder = FrameDecoder(MAX_CONTROL_BYTES)
        data = early
        try:
            while True:
                for payload in decoder.feed(data):
                    self._take(decode_envelope(payload))
                data = await self._reader.read(65536)
                if not data:
                    return
        finally:
            for task in self._tasks:
                task.cancel()
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(NoGatewayError())
            self._writer.close()

    def _take(self, envelope: Envelope) -> None:
        if envelope.reply_to:
            reply = self._replies.pop(envelope.reply_to, None)
            if reply is not None and not reply.done():
                reply.set_result(envelope.body)
        elif envelope.request_id:
            if len(self._tasks) >= _MAX_OPEN_REQUESTS:
                raise GatewayRefusedError("the gateway has too many requests open at once")
            task = asyncio.create_task(self._answer(envelope))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, envelope: Envelope) -> None:
        try:
            body = await self._handle(envelope.body)
        except EnclaveError as error:
            body = Failed(kind=type(error).__name__, message=str(error))
        except Exception as error:
            log_failure(_log, "a control request failed", error)
            body = Failed(kind="EnclaveError", message="the supervisor failed; see: enclave logs")
        self._send(Envelope(body=body, reply_to=envelope.request_id))

    def _send(self, envelope: Envelope) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode_frame(encode(envelope)))
            if self._writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
                self.abort()

    def notify(self, event: Body) -> None:
        """Send an event; lost when the gateway is gone, which asks for the status on its return."""
        self._send(Envelope(body=event))

    async def request(self, body: Body) -> Body:
        """Ask the gateway and return its reply.

        Raises:
            GatewayRefusedError: It answered that it cannot.
            NoGatewayError: No answer within 30 s, or the stream ended.
        """
        self._last_request += 1
        number = self._last_request
        reply: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        self._send(Envelope(body=body, request_id=number))
        try:
            answer = await asyncio.wait_for(reply, _REPLY_TIMEOUT_S)
        except TimeoutError as error:
            raise NoGatewayError from error
        finally:
            self._replies.pop(number, None)
        if isinstance(answer, Failed):
            raise GatewayRefusedError(answer.message)
        return answer

    def abort(self) -> None:
        """End the stream at once; `run` returns."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send what is buffered and close."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
