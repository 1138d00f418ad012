import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from enclave_parent_gateway.control_stream import ControlStream
from enclave_parent_gateway.errors import EnclaveGoneError, GatewayError, RefusedError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    Body,
    Credentials,
    CredentialsRequest,
    Done,
    Envelope,
    Failed,
    KernelEnded,
    OpenControl,
    Shutdown,
    StatusRequest,
    decode_envelope,
    decode_open,
    encode,
)


class Peer:
    """The supervisor's end, on a real socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder(MAX_CONTROL_BYTES)
        self._frames: list[bytes] = []

    async def frame(self) -> bytes:
        while not self._frames:
            data = await asyncio.wait_for(self._reader.read(65536), 5)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def envelope(self) -> Envelope:
        return decode_envelope(await self.frame())

    def send(self, body: Body, *, request_id: int = 0, reply_to: int = 0) -> None:
        self.send_raw(encode_frame(encode(Envelope(body, request_id, reply_to))))

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


class Setup:
    """A stream, its supervisor, and what the stream reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.events: asyncio.Queue[Body] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.connects = 0
        self.stream = ControlStream(
            f"unix:{path}",
            on_connected=self._connected,
            on_event=self.events.put_nowait,
            on_gone=self.gone.set,
            answer=self._answer,
        )
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.peers.put_nowait(Peer(reader, writer))

        self.server = await asyncio.start_unix_server(accept, self.path)

    async def peer(self) -> Peer:
        peer = await asyncio.wait_for(self.peers.get(), 5)
        assert decode_open(await peer.frame()) == OpenControl(1)
        return peer

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
    task = asyncio.create_task(setup.stream.run())
    try:
        yield setup
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if setup.server is not None:
            setup.server.close()


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
        assert setup.server is not None
        setup.server.close()
        path.unlink(missing_ok=True)
        peer.close()
        await asyncio.wait_for(setup.gone.wait(), 5)
        assert not setup.stream.connected
        with pytest.raises(EnclaveGoneError, match="does not answer"):
            await setup.stream.request(StatusRequest(), timeout_s=5)
        await setup.listen()
        await setup.peer()
        assert setup.stream.connected


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
