"""A real supervisor process under a software NSM, and the gateway's side of its streams."""

import os
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from enclave_parent_gateway.transport import tls_context
from enclave_protocol.channel_binding import verify_channel
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    CHANNELS,
    MAX_CHALLENGE_BYTES,
    PROTOCOL_VERSION,
    Body,
    Challenge,
    Envelope,
    Failed,
    KernelEnded,
    LaunchKernel,
    Open,
    OpenControl,
    decode_attested,
    decode_envelope,
    encode,
)
from tests.support.local_services import SoftwareNsmProcess, software_nsm

__all__ = ["Control", "Refused", "SupervisorProcess", "hangs_up", "supervisor_process"]

_TIMEOUT_S = 30.0


class Refused(Exception):  # noqa: N818 (it is the reply, not an error of the test)
    """The supervisor answered a request with Failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.kind = failed.kind


@dataclass
class Control:
    """A control stream; requests are answered in order, events are kept."""

    sock: ssl.SSLSocket
    events: list[KernelEnded] = field(default_factory=list)
    _decoder: FrameDecoder = field(default_factory=FrameDecoder)
    _last: int = 0
    _replies: dict[int, Body] = field(default_factory=dict)

    def request(self, body: Body) -> Body:
        self._last += 1
        self.sock.sendall(encode_frame(encode(Envelope(body=body, request_id=self._last))))
        while self._last not in self._replies:
            self._receive()
        answer = self._replies.pop(self._last)
        if isinstance(answer, Failed):
            raise Refused(answer)
        return answer

    def _receive(self) -> None:
        """Take what one read brings: replies, events, and requests that stay unanswered."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the supervisor closed the control stream")
        for payload in self._decoder.feed(data):
            envelope = decode_envelope(payload)
            if isinstance(envelope.body, KernelEnded):
                self.events.append(envelope.body)
            elif envelope.reply_to:
                self._replies[envelope.reply_to] = envelope.body

    def next_event(self) -> KernelEnded:
        while not self.events:
            self._receive()
        return self.events.pop(0)


@dataclass
class SupervisorProcess:
    """A running supervisor."""

    pid: int
    path: Path
    runtime_dir: Path
    log: Path
    nsm: SoftwareNsmProcess

    def open(self, first: Open | bytes) -> socket.socket:
        """Return a stream that was opened with this message."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_TIMEOUT_S)
        sock.connect(str(self.path))
        sock.sendall(encode_frame(first if isinstance(first, bytes) else encode(first)))
        return sock

    def secure(self) -> ssl.SSLSocket:
        """Return a control stream after its TLS handshake, before the challenge."""
        sock = self.open(OpenControl(version=PROTOCOL_VERSION))
        return tls_context().wrap_socket(sock)

    @contextmanager
    def control(self) -> Iterator[Control]:
        """Return a control stream whose peer was verified as the gateway does it."""
        with self.secure() as sock:
            nonce = os.urandom(32)
            sock.sendall(encode_frame(encode(Challenge(nonce))))
            frames: list[bytes] = []
            decoder = FrameDecoder(MAX_CHALLENGE_BYTES)
            while not frames:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("the supervisor does not answer the challenge")
                frames = decoder.feed(data)
            verify_channel(
                decode_attested(frames[0]).document,
                certificate=sock.getpeercert(binary_form=True) or b"",
                nonce=nonce,
                root=self.nsm.root,
                now=datetime.now(UTC),
                pcrs={0: {bytes.fromhex(self.nsm.pcr0)}},
            )
            yield Control(sock)

    def launch_request(self) -> LaunchKernel:
        return LaunchKernel(
            kernel_id=uuid.uuid4().hex,
            key=os.urandom(32),
            signature_scheme="hmac-sha256",
            cwd="/",
            environ={"PATH": os.environ["PATH"], "HOME": str(self.runtime_dir.parent)},
        )

    @contextmanager
    def client(self, launched: LaunchKernel) -> Iterator[BlockingKernelClient]:
        """Talk to the kernel's own listeners, past gateway and relays."""
        client = BlockingKernelClient()
        ports = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, start=1)}
        info: Any = {
            "transport": "ipc",
            "ip": str(self.runtime_dir / "k" / launched.kernel_id),
            **ports,
            "key": launched.key,
            "signature_scheme": launched.signature_scheme,
        }
        client.load_connection_info(info)
        client.start_channels()
        try:
            client.wait_for_ready(timeout=_TIMEOUT_S)
            yield client
        finally:
            client.stop_channels()


def hangs_up(sock: socket.socket) -> bool:
    """Return whether the peer says nothing more and ends the connection."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        # It did not read all that was sent.
        return True


@contextmanager
def supervisor_process(
    directory: Path, *options: str, program: tuple[str, ...] = ("-m", "enclave_kernel")
) -> Iterator[SupervisorProcess]:
    """Run a supervisor below `directory`, whose path must be short; stop it with SIGTERM.

    Args:
        directory: For everything it makes.
        options: Of its command line, further ones.
        program: What Python runs: the supervisor, perhaps after something that watches it.
    """
    runtime_dir = directory / "r"
    runtime_dir.mkdir(mode=0o711)
    path = directory / "supervisor.sock"
    log = directory / "supervisor.log"
    with software_nsm(directory) as nsm, log.open("wb") as output:
        command = [sys.executable, "-I", *program, "--listen", f"unix:{path}"]
        command += ["--nsm", nsm.endpoint, "--runtime-dir", str(runtime_dir), "--development"]
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
        try:
            _wait_for(path, process)
            yield SupervisorProcess(process.pid, path, runtime_dir, log, nsm)
        finally:
            process.terminate()
            try:
                process.wait(10)
            finally:
                process.kill()
                process.wait()


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(path))
                return
        except OSError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
    raise RuntimeError(f"the supervisor ended with status {process.returncode}")
