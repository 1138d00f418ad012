"""Accepts the gateway's streams: reads what each is for, and secures control streams.

Nothing here knows what the streams carry afterwards. Whoever connects first is the gateway: any
process of the parent's root can be it (docs/spec/control.md, "Who is authenticated").
"""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from enclave_kernel.supervisor import transport
from enclave_kernel.supervisor.admission import Admission
from enclave_kernel.supervisor.channel_identity import ChannelIdentity
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, FrameError, encode_frame
from enclave_protocol.gateway_proof import Purpose
from enclave_protocol.messages import (
    MAX_CHALLENGE_BYTES,
    MAX_OPEN_BYTES,
    PROTOCOL_VERSION,
    Attested,
    MessageError,
    Open,
    OpenChannel,
    OpenEgress,
    OpenWorkspace,
    decode_challenge,
    decode_open,
    encode,
)
from enclave_protocol.vsock_socket import capped

__all__ = ["StreamListener"]

_log = logging.getLogger(__name__)
_OPEN_TIMEOUT_S = 5.0
"""From being accepted to being opened, and for a control stream attested."""
_MAX_UNOPENED = 64
"""A handshake that does not end holds at most some 400 KiB: OpenSSL takes a ClientHello of up to
128 KiB, and asyncio reads 256 KiB ahead."""
_SHUTDOWN_TIMEOUT_S = 1.0
_ACCEPT_PAUSE_S = 0.1
_LENGTH = struct.Struct(">I")

OnControl = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
OnEgress = Callable[[OpenEgress, socket.socket], None]
OnChannel = Callable[[socket.socket, OpenChannel], Awaitable[None]]


class StreamListener:
    """The one listening endpoint.

    Args:
        endpoint: `vsock:PORT` or `unix:PATH`.
        identity: What control streams are accepted with.
        admission: Says which gateway may open them.
        attest: Returns an attestation document for that identity with this nonce.
        on_control: Serves a control stream; the bytes came behind the challenge.
        on_channel: Carries a channel stream; owns the socket.
        on_egress: Takes an egress stream; owns the socket.
        on_workspace: Serves a workspace stream, as `on_control` does a control stream.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        identity: ChannelIdentity,
        admission: Admission,
        attest: Callable[[bytes], Awaitable[bytes]],
        on_control: OnControl,
        on_channel: OnChannel,
        on_egress: OnEgress,
        on_workspace: OnControl,
    ) -> None:
        self._endpoint = endpoint
        self._identity = identity
        self._admission = admission
        self._anonymous: set[asyncio.Task[None]] = set()
        self._attest = attest
        self._on_control = on_control
        self._on_channel = on_channel
        self._on_egress = on_egress
        self._on_workspace = on_workspace
        self._unopened = 0
        self._streams: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled.

        Raises:
            EndpointError: It cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        with transport.listen(self._endpoint) as listener:
            _log.info("listening on %s", self._endpoint)
            # In an enclave the same clock as in init's line: the time between is the boot's.
            _log.info("ready %.2f s after this machine's start", time.monotonic())
            while True:
                try:
                    sock, address = await loop.sock_accept(listener)
                except OSError as error:
                    # Out of descriptors, or the peer is gone again: the next one is served.
                    _log.warning("a stream was not accepted: %s", error)
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if not transport.is_parent(sock, address) or self._unopened >= _MAX_UNOPENED:
                    sock.close()
                    continue
                self._unopened += 1
                stream = asyncio.create_task(self._serve(capped(sock)))
                self._streams.add(stream)
                stream.add_done_callback(self._streams.discard)
                # sock_accept does not give way while somebody waits: those accepted have their
                # turn, or a burst of good streams would be over the limit.
                await asyncio.sleep(0)

    def close(self) -> None:
        """End every stream, and remove the socket's file."""
        for stream in list(self._streams):
            stream.cancel()
        if self._endpoint.startswith("unix:"):
            Path(self._endpoint.removeprefix("unix:")).unlink(missing_ok=True)

    async def _serve(self, sock: socket.socket) -> None:
        """Carry one stream from its Open message to its end."""
        sock.setblocking(False)
        serving: Awaitable[None] | None = None
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                serving = await self._opened(sock)
        # TLS errors are OSErrors; their text is OpenSSL's own, never the peer's.
        except (OSError, TimeoutError, EnclaveError) as error:
            _log.warning("a stream was refused: %s", error)
        finally:
            self._unopened -= 1
            if serving is None:
                sock.close()
        if serving is None:
            return
        try:
            await serving
        except (OSError, EnclaveError) as error:
            _log.warning("a stream ended: %s", error)

    async def _opened(self, sock: socket.socket) -> Awaitable[None]:
        """Return what serves the stream, once it is known what it is for and who we are."""
        opened = await _read_open(sock)
        if isinstance(opened, OpenChannel):
            return self._on_channel(sock, opened)
        if isinstance(opened, OpenEgress):
            return self._hand_on(opened, sock)
        if opened.version != PROTOCOL_VERSION:
            raise MessageError(
                f"the gateway speaks version {opened.version}, expected {PROTOCOL_VERSION}"
            )
        purpose: Purpose = "workspace" if isinstance(opened, OpenWorkspace) else "control"
        reader, writer = await self._secure(sock)
        try:
            rest, known = await self._answer_challenge(reader, writer, purpose)
        except BaseException:
            writer.transport.abort()
            raise
        self._note(known)
        serve = self._on_workspace if purpose == "workspace" else self._on_control
        return serve(reader, writer, rest)

    def _note(self, known: bool) -> None:
        """With the first gateway that is known, the streams of those that are not end."""
        stream = asyncio.current_task()
        if not known and stream is not None:
            self._anonymous.add(stream)
            stream.add_done_callback(self._anonymous.discard)
        elif known:
            for other in list(self._anonymous):
                other.cancel()

    async def _hand_on(self, opened: OpenEgress, sock: socket.socket) -> None:
        self._on_egress(opened, sock)

    async def _secure(
        self, sock: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Do the TLS handshake."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        secured, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self._identity.context,
            ssl_handshake_timeout=_OPEN_TIMEOUT_S,
            ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        return reader, asyncio.StreamWriter(secured, protocol, reader, loop)

    async def _answer_challenge(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, purpose: Purpose
    ) -> tuple[bytes, bool]:
        """Attest the key that the handshake was signed with.

        Returns:
            What came behind the challenge, and whether its sender is the gateway.
        """
        decoder = FrameDecoder(MAX_CHALLENGE_BYTES)
        frames: list[bytes] = []
        while not frames:
            data = await reader.read(4096)
            if not data:
                raise MessageError("the control stream ended before its challenge")
            frames = decoder.feed(data, most=1)
        challenge = decode_challenge(frames[0])
        known = self._admission.admit(challenge, purpose)
        document = await self._attest(challenge.nonce)
        writer.write(encode_frame(encode(Attested(document=document))))
        return decoder.take_rest(), known


async def _read_open(sock: socket.socket) -> Open:
    """Return the first message of a stream; what follows it is left in the socket.

    Raises:
        ProtocolError: It is none.
    """
    (size,) = _LENGTH.unpack(await _read_exactly(sock, _LENGTH.size))
    if size > MAX_OPEN_BYTES:
        raise FrameError(f"a frame of {size} bytes was announced, at most {MAX_OPEN_BYTES} fit")
    return decode_open(await _read_exactly(sock, size))


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise MessageError("the stream ended before its Open message")
        data += piece
    return data
