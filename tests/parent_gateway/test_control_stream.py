"""The gateway's control stream against a peer that speaks TLS as the supervisor does."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_kernel.supervisor.admission import Admission
from enclave_kernel.supervisor.channel_identity import new_channel_identity
from enclave_kernel.supervisor.stream_listener import StreamListener
from enclave_parent_gateway.control_stream import ControlStream
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotTrustedError,
    GatewayError,
    RefusedError,
)
from enclave_protocol.attestation_errors import ChannelBindingError, NonceMismatchError
from enclave_protocol.channel_binding import NOTEBOOK_USER_DATA, verify_channel
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    Attest,
    Attested,
    Body,
    Credentials,
    CredentialsRequest,
    Done,
    Envelope,
    Failed,
    KernelEnded,
    OpenChannel,
    Shutdown,
    StatusRequest,
    decode_envelope,
    encode,
)
from tests.support.attestation_documents import PCR0, make_documents


class Peer:
    """The supervisor's end of an attested stream, on a real socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder(MAX_CONTROL_BYTES)
        self._frames: list[bytes] = []
        self.closed = asyncio.Event()

    async def envelope(self) -> Envelope:
        while not self._frames:
            data = await asyncio.wait_for(self._reader.read(65536), 5)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return decode_envelope(self._frames.pop(0))

    async def rest(self) -> bytes:
        """Return everything that is sent until the end."""
        return await asyncio.wait_for(self._reader.read(), 10)

    def send(self, body: Body, *, request_id: int = 0, reply_to: int = 0) -> None:
        self.send_raw(encode_frame(encode(Envelope(body, request_id, reply_to))))

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()
        self.closed.set()


class Setup:
    """A stream, its supervisor, and what the stream reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = make_documents(path.parent / "root", datetime.now(UTC))
        self.identity = new_channel_identity()
        self.attest: Callable[[bytes], bytes] = self.honest
        self.expected = {0: {PCR0}}
        self.nonces: list[bytes] = []
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.events: asyncio.Queue[Body] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.connects = 0
        self.stream = ControlStream(
            f"unix:{path}",
            check=self._check,
            on_connected=self._connected,
            on_event=self.events.put_nowait,
            on_gone=self.gone.set,
            answer=self._answer,
            key=Ed25519PrivateKey.generate(),
        )
        self.server: asyncio.Task[None] | None = None
        self._peers: list[Peer] = []

    def honest(self, nonce: bytes) -> bytes:
        return self.documents.document(nonce=nonce, user_data=self.identity.user_data)

    async def listen(self) -> None:
        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _rest: bytes
        ) -> None:
            peer = Peer(reader, writer)
            self._peers.append(peer)
            self.peers.put_nowait(peer)
            await peer.closed.wait()

        async def attest(nonce: bytes) -> bytes:
            self.nonces.append(nonce)
            return self.attest(nonce)

        async def no_channel(sock: socket.socket, _opened: OpenChannel) -> None:
            sock.close()

        listener = StreamListener(
            f"unix:{self.path}",
            identity=self.identity,
            admission=Admission(self.identity.public_key, required=True),
            attest=attest,
            on_control=serve,
            on_channel=no_channel,
            on_egress=lambda _opened, sock: sock.close(),
            on_workspace=serve,
        )
        self.server = asyncio.create_task(listener.run())

    async def stop_listening(self) -> None:
        assert self.server is not None
        self.server.cancel()
        with suppress(asyncio.CancelledError):
            await self.server
        self.path.unlink(missing_ok=True)

    async def peer(self) -> Peer:
        """Return the next peer that is believed."""
        peer = await asyncio.wait_for(self.peers.get(), 5)
        await _until(lambda: self.stream.connected)
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    def _check(self, document: bytes, *, certificate: bytes, nonce: bytes) -> object:
        return verify_channel(
            document,
            certificate=certificate,
            nonce=nonce,
            root=self.documents.root.der,
            now=datetime.now(UTC),
            pcrs=self.expected,
        )

    async def _connected(self) -> None:
        self.connects += 1

    async def _answer(self, body: Body) -> Body:
        if isinstance(body, CredentialsRequest):
            return Credentials("AKID", "s")
        raise GatewayError("not that")


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Setup]:
    setup = Setup(path)
    await setup.listen()
    async with stream_of(setup):
        yield setup


@asynccontextmanager
async def stream_of(setup: Setup) -> AsyncIterator[None]:
    task = asyncio.create_task(setup.stream.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        setup.close()
        await setup.stop_listening()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_replies_find_their_requests(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        first = asyncio.create_task(setup.stream.request(StatusRequest(), timeout_s=5))
        second = asyncio.create_task(setup.stream.request(Shutdown(), timeout_s=5))
        one, two = await peer.envelope(), await peer.envelope()
        assert isinstance(one.body, StatusRequest)
        peer.send(Failed("KernelLaunchError", "no memory"), reply_to=two.request_id)
        peer.send(Done(), reply_to=one.request_id)
        assert await first == Done()
        with pytest.raises(RefusedError, match="no memory") as caught:
            await second
        assert caught.value.kind == "KernelLaunchError"


async def test_requests_of_the_supervisor_are_answered(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        peer.send(CredentialsRequest(), request_id=4)
        reply = await peer.envelope()
        assert (reply.reply_to, reply.body) == (4, Credentials("AKID", "s"))
        peer.send(StatusRequest(), request_id=5)
        reply = await peer.envelope()
        assert (reply.reply_to, reply.body) == (5, Failed("GatewayError", "not that"))


async def test_events(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        event = KernelEnded("ab", -9, "memory")
        peer.send(event)
        assert await asyncio.wait_for(setup.events.get(), 5) == event


async def test_no_answer_in_time(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        with pytest.raises(EnclaveGoneError, match="within"):
            await setup.stream.request(StatusRequest(), timeout_s=0.05)
        # The late reply to it must not answer the next one.
        late = await peer.envelope()
        peer.send(Failed("Late", "late"), reply_to=late.request_id)
        request = asyncio.create_task(setup.stream.request(StatusRequest(), timeout_s=5))
        peer.send(Done(), reply_to=(await peer.envelope()).request_id)
        assert await request == Done()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", encode_frame(b"\xc1"), encode_frame(b"x" * 10), b""],
    ids=["too long", "no message", "garbage", "end"],
)
async def test_a_stream_that_breaks_is_set_up_again(path: Path, garbage: bytes) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        request = asyncio.create_task(setup.stream.request(StatusRequest(), timeout_s=5))
        await peer.envelope()
        peer.send_raw(garbage)
        if not garbage:
            peer.close()
        with pytest.raises(EnclaveGoneError, match="ended meanwhile"):
            await request
        await setup.peer()
        await _until(lambda: setup.connects == 2)
        assert not setup.gone.is_set()


async def test_an_enclave_that_is_gone_is_reported_once_and_found_again(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        await setup.stop_listening()
        peer.close()
        await asyncio.wait_for(setup.gone.wait(), 5)
        assert not setup.stream.connected
        with pytest.raises(EnclaveGoneError, match="does not answer"):
            await setup.stream.request(StatusRequest(), timeout_s=5)
        await setup.listen()
        await setup.peer()
        await _until(lambda: setup.stream.connected)


async def test_a_flood_of_requests_ends_the_stream(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        for number in range(1, 1000):
            peer.send(StatusRequest(), request_id=number)
        await setup.peer()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def _of_another_key(setup: Setup, nonce: bytes) -> bytes:
    return setup.documents.document(nonce=nonce, user_data=new_channel_identity().user_data)


def _of_a_debug_enclave(setup: Setup, nonce: bytes) -> bytes:
    debug = make_documents(setup.path.parent / "root", datetime.now(UTC), debug=True)
    return debug.document(nonce=nonce, user_data=setup.identity.user_data)


def _of_another_machine(setup: Setup, nonce: bytes) -> bytes:
    other = make_documents(setup.path.parent / "other", datetime.now(UTC))
    return other.document(nonce=nonce, user_data=setup.identity.user_data)


def _of_another_day(setup: Setup, nonce: bytes) -> bytes:
    old = make_documents(setup.path.parent / "root", datetime.now(UTC) - timedelta(days=2))
    return old.document(nonce=nonce, user_data=setup.identity.user_data)


def _of_an_hour_ago(setup: Setup, nonce: bytes) -> bytes:
    old = make_documents(setup.path.parent / "root", datetime.now(UTC) - timedelta(hours=1))
    return old.document(nonce=nonce, user_data=setup.identity.user_data)


def _of_another_nonce(setup: Setup, nonce: bytes) -> bytes:
    return setup.honest(bytes(len(nonce)))


def _of_another_image(setup: Setup, nonce: bytes) -> bytes:
    setup.expected = {0: {b"\x0b" * 48, b"\x0c" * 48}}
    return setup.honest(nonce)


def _of_another_role(setup: Setup, nonce: bytes) -> bytes:
    setup.expected[3] = {b"\x0b" * 48}
    return setup.honest(nonce)


def _of_a_notebook(setup: Setup, nonce: bytes) -> bytes:
    return setup.documents.document(nonce=nonce, user_data=NOTEBOOK_USER_DATA)


def _of_a_key_release(setup: Setup, nonce: bytes) -> bytes:
    return setup.documents.document(
        nonce=nonce, user_data=setup.identity.user_data, public_key=b"k" * 294
    )


def _altered(setup: Setup, nonce: bytes) -> bytes:
    document = setup.honest(nonce)
    at = document.index(b"timestamp") + 12
    return document[:at] + bytes([document[at] ^ 1]) + document[at + 1 :]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_of_another_key, "ChannelBindingError"),
        (_of_a_debug_enclave, "DebugModeError"),
        (_of_another_machine, "UntrustedRootError"),
        (_of_another_day, "AttestationChainError"),
        (_of_an_hour_ago, "AttestationTimeError"),
        (_of_another_nonce, "NonceMismatchError"),
        (_of_another_image, "PcrMismatchError"),
        (_of_another_role, "PcrMismatchError"),
        (_of_a_notebook, "ChannelBindingError"),
        (_of_a_key_release, "ChannelBindingError"),
        (_altered, "AttestationSignatureError"),
        (lambda setup, nonce: b"\xd2" * 100, "AttestationFormatError"),
    ],
)
async def test_what_is_not_the_enclave_expected_gets_no_message(
    path: Path, answer: Callable[[Setup, bytes], bytes], kind: str
) -> None:
    setup = Setup(path)
    setup.attest = lambda nonce: answer(setup, nonce)
    await setup.listen()
    async with stream_of(setup):
        peer = await asyncio.wait_for(setup.peers.get(), 5)
        assert await peer.rest() == b""
        await _until(lambda: setup.stream.refusal is not None)
        assert setup.stream.refusal is not None
        assert setup.stream.refusal.kind == kind
        assert "\n" not in setup.stream.refusal.message
        with pytest.raises(EnclaveNotTrustedError) as caught:
            await setup.stream.request(StatusRequest(), timeout_s=5)
        assert caught.value.kind == kind
        assert setup.connects == 0
        # Once it proves itself, it is used.
        setup.attest = setup.honest
        setup.expected = {0: {PCR0, b"\x0c" * 48}}
        peer.close()
        await asyncio.wait_for(setup.peers.get(), 10)
        await _until(lambda: setup.connects == 1)
        assert setup.stream.refusal is None
        assert len(set(setup.nonces)) == len(setup.nonces)


async def test_an_enclave_can_be_asked_again(path: Path) -> None:
    async with running(path) as setup:
        peer = await setup.peer()
        nonce = b"n" * 32
        asked = asyncio.create_task(setup.stream.attest(nonce, timeout_s=5))
        request = await peer.envelope()
        assert request.body == Attest(nonce)
        peer.send(Attested(setup.honest(nonce)), reply_to=request.request_id)
        document, certificate = await asked
        setup._check(document, certificate=certificate, nonce=nonce)
        # What was believed before is no excuse.
        asked = asyncio.create_task(setup.stream.attest(b"m" * 32, timeout_s=5))
        request = await peer.envelope()
        peer.send(Attested(document), reply_to=request.request_id)
        with pytest.raises(NonceMismatchError):
            await asked
        assert await peer.rest() == b""


async def test_a_certificate_that_is_not_of_our_kind(path: Path) -> None:
    """A document that fits it does not help: its key could be encoded in another way."""
    async with running(path) as setup:
        with pytest.raises(ChannelBindingError):
            setup._check(setup.honest(b"n" * 32), certificate=b"\x30\x00", nonce=b"n" * 32)
