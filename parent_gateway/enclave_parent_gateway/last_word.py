"""Tells the clients of a kernel that its enclave has ended, in the kernel's place.

The kernel cannot: it is gone, and Jupyter's own clients would wait for it without a word. The
gateway passed the kernel's keys on when it was launched and keeps them in memory for this alone;
it still reads nothing of what a kernel and its clients say to each other. The heartbeat stays
silent, and `kernel_info_request` unanswered: nobody shall take this for a kernel.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_parent_gateway.transport import connect
from enclave_protocol.messages import CHANNELS, CurveKeys, PendingCell

if TYPE_CHECKING:
    import socket

    import zmq.asyncio

__all__ = ["ERROR_NAME", "KernelVoice", "LastWord", "enclave_ended_text"]

log = logging.getLogger(__name__)

ERROR_NAME = "EnclaveEndedError"
_ANSWERED = ("shell", "control")
_SUBSCRIBED = b"\x01"
_SETTLE_S = 0.1
"""From the first subscriber to the cells' errors: the others connect in these moments."""
_SUBSCRIBER_S = 0.7
"""A client without iopub is answered all the same, and one that does not look at it: libzmq
subscribes again when it does."""
_RETURN_S = 30.0
"""For the client of a cell to connect again; ZeroMQ's tries every 0.1 s."""
_TRY_S = 0.05


def enclave_ended_text(backend: str, *, shared: bool) -> str:
    """Return what the user of a notebook is told: what happened, what is lost, what to do."""
    command = "enclave up" if backend == "local" else f"enclave up --backend {backend}"
    if shared:
        command = "its administrator types: sudo systemctl start enclave"
    return (
        "The enclave has ended, and with it this kernel and its variables; files that were "
        f"synced are kept. When it is up again ({command}), restart the kernel."
    )


class KernelVoice(msgspec.Struct, frozen=True):
    """What one needs to speak as a kernel: its session's key and scheme, its CurveZMQ pair."""

    key: bytes
    signature_scheme: str
    curve: CurveKeys | None

    def __repr__(self) -> str:
        return "KernelVoice(...)"


class LastWord:
    """Sockets that answer every cell, and greet every subscriber, with one text.

    Args:
        prefix: Path to which `.1` and so on is appended for its own sockets.
        voice: Of the kernel that ended.
        text: One or two sentences: what happened, and what to do.
        cells: Those that the kernel left without an answer; they end with an error.

    Attributes:
        answered: Set when each of these was answered, or its client did not come back.
    """

    def __init__(
        self, prefix: Path, voice: KernelVoice, text: str, cells: Sequence[PendingCell] = ()
    ) -> None:
        # Late: a gateway whose enclave lives needs none of this.
        import zmq
        import zmq.asyncio
        from jupyter_client.session import Session

        self._prefix = prefix
        self._voice = voice
        self._text = text
        self._session = Session(
            key=voice.key, signature_scheme=voice.signature_scheme, username="enclave"
        )
        self._context = zmq.asyncio.Context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[zmq.asyncio.Socket] = []
        self._subscribed = asyncio.Event()
        self.answered = asyncio.Event()
        try:
            self._iopub = self._bind("iopub", zmq.XPUB)
            self._iopub.setsockopt(zmq.XPUB_VERBOSE, 1)
            self._spawn(self._greet(self._iopub))
            shell, control = (self._bind(channel, zmq.ROUTER) for channel in _ANSWERED)
            # Says so if a client is not there, instead of losing its answer.
            shell.router_mandatory = 1
            self._spawn(self._answer(shell))
            self._spawn(self._answer(control))
            self._spawn(self._end_cells(shell, cells))
        except BaseException:
            self.close()
            raise

    def connect(self, channel: str) -> "socket.socket | None":
        """Return a connected stream to a channel's socket; None for a channel that stays silent.

        Raises:
            TransportError: It is closed.
        """
        if channel not in ("iopub", *_ANSWERED):
            return None
        return connect(f"unix:{self._path(channel)}")

    def close(self) -> None:
        """Close and remove the sockets."""
        for task in self._tasks:
            task.cancel()
        for sock in self._sockets:
            sock.close(linger=0)
        self._context.destroy(linger=0)
        for channel in ("iopub", *_ANSWERED):
            self._path(channel).unlink(missing_ok=True)

    def _path(self, channel: str) -> Path:
        return Path(f"{self._prefix}.{CHANNELS.index(channel) + 1}")

    def _bind(self, channel: str, kind: int) -> "zmq.asyncio.Socket":
        sock: zmq.asyncio.Socket = self._context.socket(kind)
        self._sockets.append(sock)
        curve = self._voice.curve
        if curve is not None:
            sock.curve_secretkey = curve.secret_key
            sock.curve_publickey = curve.public_key
            sock.curve_server = True
        path = self._path(channel)
        path.unlink(missing_ok=True)
        sock.bind(f"ipc://{path}")
        path.chmod(0o600)
        return sock

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, iopub: "zmq.asyncio.Socket") -> None:
        while True:
            event = await iopub.recv()
            if event[:1] == _SUBSCRIBED:
                self._subscribed.set()
                content = {"name": "stderr", "text": f"{self._text}\n"}
                self._session.send(iopub, "stream", content, ident=b"stream")

    async def _answer(self, sock: "zmq.asyncio.Socket") -> None:
        while True:
            frames = await sock.recv_multipart()
            # What is not signed with the kernel's key is nothing that a client of it sent.
            with suppress(ValueError, KeyError, TypeError):
                idents, rest = self._session.feed_identities(frames)
                message = self._session.deserialize(rest)
                if message["msg_type"] == "execute_request":
                    await self._refuse(sock, idents, message)

    async def _refuse(
        self, sock: "zmq.asyncio.Socket", idents: Sequence[bytes], request: dict[str, Any]
    ) -> None:
        """Answer a cell as a kernel does whose cell raised."""
        error = {
            "ename": ERROR_NAME,
            "evalue": self._text,
            "traceback": [f"{ERROR_NAME}: {self._text}"],
        }
        say = self._session.send
        say(self._iopub, "status", {"execution_state": "busy"}, request, ident=b"status")
        say(self._iopub, "error", error, request, ident=b"error")
        reply = {"status": "error", "execution_count": 0, "user_expressions": {}, "payload": []}
        if await self._reply(sock, idents, reply | error, request):
            say(self._iopub, "status", {"execution_state": "idle"}, request, ident=b"status")

    async def _reply(
        self,
        sock: "zmq.asyncio.Socket",
        idents: Sequence[bytes],
        content: dict[str, Any],
        request: dict[str, Any],
    ) -> bool:
        """Send an answer to whoever asked, once they are connected; say whether they were."""
        import zmq

        message = self._session.msg("execute_reply", content, parent=request)
        frames = self._session.serialize(message, ident=list(idents))
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETURN_S):
                while True:
                    try:
                        await sock.send_multipart(frames)
                    except zmq.ZMQError as error:
                        if error.errno != zmq.EHOSTUNREACH:
                            raise
                        await asyncio.sleep(_TRY_S)
                        continue
                    return True
        return False

    async def _end_cells(self, shell: "zmq.asyncio.Socket", cells: Sequence[PendingCell]) -> None:
        """End what was under way in the kernel, where it is: whoever waits for it goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SUBSCRIBER_S if cells else 0):
                await self._subscribed.wait()
                await asyncio.sleep(_SETTLE_S)
        await asyncio.gather(
            *(self._refuse(shell, cell.identities, _request_of(cell)) for cell in cells)
        )
        self.answered.set()


def _request_of(cell: PendingCell) -> dict[str, Any]:
    """Return the request as far as it is known: what an answer names as its parent."""
    header = {
        "msg_id": cell.message_id,
        "session": cell.session,
        "msg_type": "execute_request",
        "username": "",
        "version": "5.3",
    }
    return {"header": header}
