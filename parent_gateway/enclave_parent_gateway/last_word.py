"""Tells the clients of a kernel that its enclave has ended, in the kernel's place.

The kernel cannot: it is gone, and Jupyter's own clients would wait for it without a word. The
gateway passed the kernel's keys on when it was launched and keeps them in memory for this alone;
it still reads nothing of what a kernel and its clients say to each other. The heartbeat stays
silent, and `kernel_info_request` unanswered: nobody shall take this for a kernel.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_parent_gateway.transport import connect
from enclave_protocol.messages import CHANNELS, CurveKeys

if TYPE_CHECKING:
    import socket

    import zmq.asyncio

__all__ = ["ERROR_NAME", "KernelVoice", "LastWord", "enclave_ended_text"]

log = logging.getLogger(__name__)

ERROR_NAME = "EnclaveEndedError"
_ANSWERED = ("shell", "control")
_SUBSCRIBED = b"\x01"


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
    """

    def __init__(self, prefix: Path, voice: KernelVoice, text: str) -> None:
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
        try:
            self._iopub = self._bind("iopub", zmq.XPUB)
            self._iopub.setsockopt(zmq.XPUB_VERBOSE, 1)
            self._spawn(self._greet(self._iopub))
            for channel in _ANSWERED:
                self._spawn(self._answer(self._bind(channel, zmq.ROUTER)))
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
                    self._refuse(sock, idents, message)

    def _refuse(
        self, sock: "zmq.asyncio.Socket", idents: list[bytes], request: dict[str, Any]
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
        say(sock, "execute_reply", reply | error, request, ident=idents)
        say(self._iopub, "status", {"execution_state": "idle"}, request, ident=b"status")
