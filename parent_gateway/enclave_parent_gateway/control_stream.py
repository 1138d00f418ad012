"""The gateway's end of the control stream: attested TLS, requests both ways, events, reconnecting.

What the messages mean is decided by whoever owns the stream (`gateway`), not here.
Source: docs/spec/control.md, "The attested channel".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_parent_gateway.attested_stream import PeerCheck, open_attested
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotTrustedError,
    GatewayError,
    RefusedError,
    TransportError,
)
from enclave_parent_gateway.liveness import Liveness
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    PROTOCOL_VERSION,
    Attest,
    Attested,
    Body,
    Envelope,
    Failed,
    MessageError,
    OpenControl,
    Ping,
    decode_envelope,
    encode,
)

__all__ = ["ControlStream"]

log = logging.getLogger(__name__)

_PORTION_BYTES = 64 * 1024
_FIRST_RETRY_S = 0.005
"""The supervisor of a local enclave listens within a second of being started; look often."""
_LAST_RETRY_S = 0.5
_REFUSED_RETRY_S = 1.0
"""What is not the enclave expected may be one day, after a restart or a new expectation."""
_GIVE_UP_S = 1.0
"""A broken stream whose endpoint does not answer for so long means that the enclave is gone."""
_MAX_INCOMING = 64
"""Requests of the supervisor answered at a time; it is not trusted to stop at a few."""


class ControlStream:
    """A control stream that is set up again whenever it breaks.

    Args:
        endpoint: The supervisor's, as in `transport.connect`.
        check: Verifies the peer of every new connection, before anything else is sent.
        on_connected: Awaited after every connect, while requests already work.
        on_event: Called with every event, in order.
        on_gone: Called once per loss, when the enclave ended or did not answer again soon.
        answer: Answers a request of the supervisor; an `EnclaveError` becomes a `Failed`.
        process: Returns the process whose end is the enclave's, if one is known.
        key: The gateway's, as in `open_attested`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        check: PeerCheck,
        on_connected: Callable[[], Awaitable[None]],
        on_event: Callable[[Body], None],
        on_gone: Callable[[], None],
        answer: Callable[[Body], Awaitable[Body]],
        process: Callable[[], ProcessIdentity | None] = lambda: None,
        key: Ed25519PrivateKey | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._check = check
        self._on_connected = on_connected
        self._on_event = on_event
        self._on_gone = on_gone
        self._answer = answer
        self._key = key
        self._writer: asyncio.StreamWriter | None = None
        self._open: dict[int, asyncio.Future[Body]] = {}
        self._last_id = 0
        self._incoming: set[asyncio.Task[None]] = set()
        self._certificate = b""
        self._refusal: EnclaveError | None = None
        self._heard_at = 0.0
        self._known_dead = False
        self._liveness = Liveness(
            endpoint,
            process=process,
            ping=lambda timeout_s: self.request(Ping(), timeout_s=timeout_s),
            heard_at=lambda: self._heard_at,
        )

    @property
    def connected(self) -> bool:
        """Whether the stream is up right now."""
        return self._writer is not None

    @property
    def refusal(self) -> Failed | None:
        """Why what answered last is not taken for the enclave; None if it was, or nothing did."""
        error = self._refusal
        return None if error is None else Failed(type(error).__name__, str(error))

    async def request(self, body: Body, *, timeout_s: float) -> Body:
        """Send a request to the supervisor and return its reply.

        Raises:
            EnclaveNotTrustedError: What answers is not the enclave expected.
            EnclaveGoneError: The stream is down, broke meanwhile, or no reply came in time.
            RefusedError: The supervisor answered with `Failed`.
        """
        if self._writer is None:
            if (refusal := self.refusal) is not None:
                raise EnclaveNotTrustedError(refusal.kind, refusal.message)
            raise EnclaveGoneError("the enclave does not answer; see: enclave logs")
        self._last_id += 1
        request_id = self._last_id
        future: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._open[request_id] = future
        try:
            self._send(Envelope(body, request_id=request_id))
            async with asyncio.timeout(timeout_s):
                reply = await future
        except TimeoutError as error:
            raise EnclaveGoneError(
                f"the enclave did not answer within {timeout_s:g} s; see: enclave logs"
            ) from error
        finally:
            self._open.pop(request_id, None)
        if isinstance(reply, Failed):
            raise RefusedError(reply.kind, reply.message)
        return reply

    async def attest(self, nonce: bytes, *, timeout_s: float) -> tuple[bytes, bytes]:
        """Have the peer prove itself again; return its document and its TLS certificate (DER).

        What fails the check ends the stream, as it would have at the beginning.

        Args:
            nonce: 32 bytes, used once.
            timeout_s: Seconds for the reply.

        Raises:
            EnclaveError: As `request`, and as the check.
        """
        reply = await self.request(Attest(nonce), timeout_s=timeout_s)
        if not isinstance(reply, Attested):
            raise MessageError(f"the enclave answered {type(reply).__name__} to Attest")
        certificate = self._certificate
        try:
            await asyncio.to_thread(
                self._check, reply.document, certificate=certificate, nonce=nonce
            )
        except EnclaveError as error:
            self._refusal = error
            if self._writer is not None:
                self._writer.transport.abort()
            raise
        return reply.document, certificate

    def _send(self, envelope: Envelope) -> None:
        if self._writer is not None:
            # Not drained: what is sent here is bounded by the clients that wait for a reply.
            self._writer.write(encode_frame(encode(envelope)))

    async def run(self) -> None:
        """Keep the stream up until cancelled."""
        try:
            await self._run()
        finally:
            self._liveness.close()

    async def _run(self) -> None:
        delay, silent_since, told = _FIRST_RETRY_S, asyncio.get_running_loop().time(), False
        while True:
            try:
                reader, writer = await self._connect()
            except (EnclaveError, OSError, TimeoutError) as error:
                now = asyncio.get_running_loop().time()
                if isinstance(error, TransportError):
                    # What was refused is gone.
                    self._refusal = None
                if not told and (now - silent_since > _GIVE_UP_S or self._liveness.process_ended()):
                    log.warning("the enclave does not answer: %s", error or type(error).__name__)
                    self._on_gone()
                    told = True
                await asyncio.sleep(_REFUSED_RETRY_S if self._refusal else delay)
                delay = min(delay * 1.5, _LAST_RETRY_S)
                continue
            self._known_dead = False
            try:
                await self._serve(reader, writer)
            except (EnclaveError, OSError) as error:
                log.warning("the control stream broke: %s", error)
            finally:
                self._lose()
                writer.close()
            delay, silent_since, told = _FIRST_RETRY_S, asyncio.get_running_loop().time(), False
            if self._known_dead or self._liveness.process_ended():
                # Now: a connection to what is gone may take seconds to fail.
                self._on_gone()
                told = True
            # A supervisor that accepts and hangs up at once must not make this a busy loop.
            await asyncio.sleep(delay)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection whose peer proved to be the enclave.

        Raises:
            TransportError: Nothing answers.
            OSError, TimeoutError: The connection broke or TLS failed.
            EnclaveError: The check failed; the reason is kept as `refusal`.
        """
        opening = OpenControl(PROTOCOL_VERSION)
        stream = await open_attested(self._endpoint, opening, self._checked, self._key)
        self._certificate = stream.certificate
        return stream.reader, stream.writer

    def _checked(self, document: bytes, *, certificate: bytes, nonce: bytes) -> None:
        """Check, and keep why it failed."""
        try:
            self._check(document, certificate=certificate, nonce=nonce)
        except EnclaveError as error:
            if str(error) != str(self._refusal):
                log.error("the enclave is not trusted: %s", error)
            self._refusal = error
            raise
        self._refusal = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one connection to its end."""
        self._writer = writer
        connected = asyncio.create_task(self._greet())
        watching = asyncio.create_task(self._watch(writer))
        decoder = FrameDecoder(MAX_CONTROL_BYTES)
        try:
            while data := await reader.read(_PORTION_BYTES):
                self._heard_at = asyncio.get_running_loop().time()
                for payload in decoder.feed(data):
                    self._receive(decode_envelope(payload))
            decoder.close()
        finally:
            connected.cancel()
            watching.cancel()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """End the stream when the enclave has ended and the stream does not show it."""
        await self._liveness.ended()
        log.warning("the enclave has ended; its stream does not say so")
        self._known_dead = True
        writer.transport.abort()

    async def _greet(self) -> None:
        try:
            await self._on_connected()
        except EnclaveError as error:
            log.warning("the enclave did not say how it is: %s", error)

    def _receive(self, envelope: Envelope) -> None:
        if envelope.reply_to:
            future = self._open.get(envelope.reply_to)
            if future is not None and not future.done():
                future.set_result(envelope.body)
        elif envelope.request_id:
            if len(self._incoming) >= _MAX_INCOMING:
                raise GatewayError(f"the enclave has over {_MAX_INCOMING} requests open")
            task = asyncio.create_task(self._reply(envelope))
            self._incoming.add(task)
            task.add_done_callback(self._incoming.discard)
        else:
            self._on_event(envelope.body)

    async def _reply(self, envelope: Envelope) -> None:
        try:
            body = await self._answer(envelope.body)
        except EnclaveError as error:
            body = Failed(type(error).__name__, str(error))
        self._send(Envelope(body, reply_to=envelope.request_id))

    def _lose(self) -> None:
        """Fail what waits for a reply; it will not come."""
        self._writer = None
        for future in self._open.values():
            if not future.done():
                future.set_exception(
                    EnclaveGoneError("the enclave ended meanwhile; see: enclave logs")
                )
        for task in self._incoming:
            task.cancel()
