"""A kernel session in the enclave for one run: launched, connected to, and gone with the command.

The gateway ends the session when the connection that holds its slot closes, however the command
ends. Its channels are encrypted end to end like a notebook's.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import zmq
from jupyter_client.session import Session

from enclave_parent_gateway.api import (
    MAX_API_BYTES,
    ForgetKernel,
    HoldSlot,
    KernelState,
    Launch,
    Launched,
    Request,
    WaitKernel,
    decode_reply,
    encode_message,
)
from enclave_parent_gateway.auto_up import IDLE_TIMEOUT_S, ensure_up
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotRunningError,
    GatewayStoppingError,
    KernelLaunchError,
    RefusedError,
)
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.run.run_errors import SessionLostError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import CHANNELS, CurveKeys, Done
from enclave_protocol.run_messages import (
    COMM_TARGET,
    FromRun,
    ToRun,
    decode_from_run,
    encode,
)

__all__ = ["RunSession", "open_session"]

_LAUNCH_TIMEOUT_S: Final = 90.0
_READY_TIMEOUT_S: Final = 30.0
_ASK_AGAIN_S: Final = 0.2
_FORGET_TIMEOUT_S: Final = 10.0
_ADOPTION_S: Final = 2.0
_PORTION_BYTES: Final = 65536
_SCHEME: Final = "hmac-sha256"


class RunSession:
    """The two ends of a session that is ready.

    Args:
        launched: Where its channels listen.
        key: Of the messages' signatures.
        curve: The pair that both ends have.
        hold: The connection that keeps the session.
        ended: The connection on which the gateway tells of its end.
    """

    def __init__(
        self,
        launched: Launched,
        key: bytes,
        curve: CurveKeys,
        hold: socket.socket,
        ended: socket.socket,
    ) -> None:
        self.hold = hold
        self.ended = ended
        self._session = Session(key=key, signature_scheme=_SCHEME)
        self._context = zmq.Context()
        self._comm_id = secrets.token_hex(16)
        self._shell = self._connect(zmq.DEALER, launched.prefix, "shell", curve)
        self.iopub = self._connect(zmq.SUB, launched.prefix, "iopub", curve)
        self.iopub.setsockopt(zmq.SUBSCRIBE, b"")

    def _connect(
        self, kind: int, prefix: str, channel: str, curve: CurveKeys
    ) -> "zmq.Socket[bytes]":
        sock = self._context.socket(kind)
        sock.linger = 0
        # What is under way is bounded by credit; nothing of it may be dropped.
        sock.set_hwm(0)
        sock.curve_serverkey = sock.curve_publickey = curve.public_key
        sock.curve_secretkey = curve.secret_key
        sock.connect(f"ipc://{prefix}-{CHANNELS.index(channel) + 1}")
        return sock

    def wait_until_ready(self) -> None:
        """Return when what the session says from now on is heard here.

        Raises:
            SessionLostError: It does not answer.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self._send("kernel_info_request", {}, [])
            if self.iopub.poll(int(_ASK_AGAIN_S * 1000)):
                return
        raise SessionLostError(
            f"the session in the enclave did not answer within {_READY_TIMEOUT_S:g} s; see: "
            "enclave logs"
        )

    def open(self, message: ToRun, data: bytes) -> None:
        """Begin the run."""
        content = {"comm_id": self._comm_id, "target_name": COMM_TARGET, "data": {}}
        self._send("comm_open", content, [encode(message), data])

    def send(self, message: ToRun, data: bytes | None = None) -> None:
        """Send a message of the run, and bytes if it announces them."""
        buffers = [encode(message), *(() if data is None else (data,))]
        self._send("comm_msg", {"comm_id": self._comm_id, "data": {}}, buffers)

    def _send(self, kind: str, content: dict[str, Any], buffers: list[bytes]) -> None:
        self._session.send(self._shell, kind, content, buffers=buffers)  # type: ignore[arg-type]

    def receive(self) -> tuple[FromRun, memoryview | None] | None:
        """Return the next message that waits, with its bytes; None: there is none.

        Raises:
            ProtocolError: The session broke the protocol.
        """
        while self.iopub.poll(0):
            _, frames = self._session.feed_identities(self.iopub.recv_multipart())
            message = self._session.deserialize(frames)
            content = message["content"]
            if message["msg_type"] != "comm_msg" or content.get("comm_id") != self._comm_id:
                continue
            buffers = [memoryview(item) for item in message["buffers"]]
            decoded = decode_from_run(buffers[0] if buffers else b"")
            return decoded, buffers[1].cast("B") if len(buffers) > 1 else None
        return None

    def why_it_ended(self) -> SessionLostError:
        """Return what the gateway says of the session's end, once there is something."""
        reason = "the gateway is gone"
        with suppress(OSError, EnclaveError):
            self.ended.settimeout(1.0)
            decoder = FrameDecoder(MAX_API_BYTES)
            while data := self.ended.recv(_PORTION_BYTES):
                if frames := decoder.feed(data):
                    state = decode_reply(frames[0])
                    if isinstance(state, KernelState):
                        reason = state.reason
                    break
        return SessionLostError(
            f"the session in the enclave is gone ({reason}); see: enclave status"
        )

    def close(self) -> None:
        """Close the channels."""
        self._context.destroy(linger=0)


@contextmanager
def open_session(paths: EnclavePaths) -> Iterator[RunSession]:
    """Have a session in the enclave; nothing of it is left afterwards.

    With no enclave up, the local one is brought up first, as for a notebook.

    Raises:
        KernelLaunchError: The enclave could not start it.
        EnclaveNotRunningError: No enclave is up, and this backend's is not started by itself.
        EnclaveNotTrustedError: What answers is not the enclave expected.
        SessionLostError: It does not answer.
    """
    slot = secrets.token_hex(8)
    public, secret = zmq.curve_keypair()
    curve = CurveKeys(public, secret)
    key = secrets.token_hex(32).encode()
    launch = Launch(
        slot=slot,
        key=key,
        signature_scheme=_SCHEME,
        # It gets no folder of the user's: what it needs is sent to it.
        cwd="/",
        environ={},
        curve=curve,
    )
    launched, hold = _launch(paths, launch)
    try:
        with _ask_later(paths, WaitKernel(launched.kernel_id)) as ended:
            session = RunSession(launched, key, curve, hold, ended)
            try:
                session.wait_until_ready()
                yield session
            finally:
                session.close()
    finally:
        _forget(paths, slot, gateway_went=_is_closed(hold))
        hold.close()


def _forget(paths: EnclavePaths, slot: str, *, gateway_went: bool) -> None:
    """Return when the session has ended.

    A gateway that went away may be back soon, and finds the session again a moment after it
    answers. Without an answer the session ends by itself when the script has ended.
    """
    deadline = time.monotonic() + _FORGET_TIMEOUT_S
    answered_at: float | None = None
    while time.monotonic() < deadline:
        try:
            left_s = max(_ASK_AGAIN_S, deadline - time.monotonic())
            ask_blocking(paths.gateway_socket, ForgetKernel(slot), Done, timeout_s=left_s)
        except EnclaveNotRunningError:
            if read_state(paths.state_file) is None:
                return
        except (EnclaveError, TimeoutError):
            return
        else:
            answered_at = answered_at or time.monotonic()
            if not gateway_went or time.monotonic() - answered_at > _ADOPTION_S:
                return
        time.sleep(_ASK_AGAIN_S)


def _is_closed(sock: socket.socket) -> bool:
    """Return whether the other end of a connection is gone, or has answered."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _launch(paths: EnclavePaths, launch: Launch) -> tuple[Launched, socket.socket]:
    for attempt in range(2):
        hold: socket.socket | None = None
        try:
            hold = _ask_later(paths, HoldSlot(launch.slot))
            launched = ask_blocking(
                paths.gateway_socket, launch, Launched, timeout_s=_LAUNCH_TIMEOUT_S
            )
        except (EnclaveNotRunningError, EnclaveGoneError, GatewayStoppingError):
            _close(hold)
            if attempt:
                raise
            asyncio.run(ensure_up(paths, idle_timeout_s=IDLE_TIMEOUT_S))
        except TimeoutError:
            _close(hold)
            raise KernelLaunchError(
                f"no session started in the enclave within {_LAUNCH_TIMEOUT_S:g} s; see: "
                "enclave logs"
            ) from None
        except BaseException as error:
            _close(hold)
            if type(error) is RefusedError:
                raise KernelLaunchError(f"no session started in the enclave: {error}") from None
            raise
        else:
            return launched, hold
    raise KernelLaunchError("the enclave went away while the session started; try again")


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()


def _ask_later(paths: EnclavePaths, request: Request) -> socket.socket:
    """Return a connection on which the answer to a request will come.

    Raises:
        EnclaveNotRunningError: Nothing listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(paths.gateway_socket))
        sock.sendall(encode_frame(encode_message(request)))
    except OSError:
        sock.close()
        raise EnclaveNotRunningError(
            f"no enclave is up (nothing answers at {paths.gateway_socket}); type: enclave up"
        ) from None
    except BaseException:
        sock.close()
        raise
    return sock
