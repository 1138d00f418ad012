"""THREATS E.14, V-04 and V-06, and a man in the middle on the parent: a relay of the test's own
between the real gateway and the real supervisor."""

import asyncio
import queue
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from zmq.utils import z85

from enclave_infra.local_cloud.identities import HOST_SECRET_ACCESS_KEY
from enclave_kernel.supervisor.channel_identity import new_channel_identity
from enclave_parent_gateway.control_stream import ControlStream
from enclave_parent_gateway.gateway_identity import gateway_key
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.transport import tls_context
from enclave_protocol.channel_binding import public_key_of
from enclave_protocol.frame import encode_frame
from enclave_protocol.gateway_proof import make_proof
from enclave_protocol.messages import (
    PROTOCOL_VERSION,
    Body,
    Challenge,
    CurveKeys,
    Done,
    LaunchKernel,
    OpenControl,
    decode_attested,
    decode_challenge,
    encode,
)
from tests.support.enclave_home import EnclaveHome, kernel, new_home, run_code, wait_until
from tests.support.grader_package import publish_grader
from tests.support.package_owner import PackageOwner, open_folder
from tests.support.wire_tap import Flow, WireTap, tapped

LENGTH = struct.Struct(">I")


@pytest.fixture(scope="module")
def home() -> Iterator[EnclaveHome]:
    """An enclave of this module's own: what is between it and its gateway is ours."""
    with new_home() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.variables.items():
            patch.setenv(name, value)
        patch.delenv("ENCLAVE_BACKEND", raising=False)
        assert made.run("up").returncode == 0
        yield made


@pytest.fixture
def tap(home: EnclaveHome) -> Iterator[WireTap]:
    with tapped(home) as made:
        yield made
    # The next gateway finds the enclave where it belongs.
    assert wait_until(lambda: home.status()["state"] == "up")


@contextmanager
def plain_kernel() -> Iterator[BlockingKernelClient]:
    """A kernel whose channels are not encrypted: the positive control."""
    manager = KernelManager(kernel_name="enclave")
    stanza = manager.kernel_spec.metadata["kernel_provisioner"]  # type: ignore[union-attr]
    stanza["config"] = {"transport_encryption": "disabled"}
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# Reading


def test_the_wire_holds_nothing_that_was_said(home: EnclaveHome, tap: WireTap) -> None:
    """Code, output, keys, environment and credentials; and what a plain channel would show."""
    code, output, name = (f"cnry{secrets.token_hex(12)}" for _ in range(3))
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    show = f"c = {code!r}; print({output[:14]!r} + {output[14:]!r})"
    with open_folder() as folder:
        publish_grader(owner, owner.new_key(status["pcrs"]["0"]), folder / "g.encrypted")
        with kernel(cwd=str(folder), env={"JPY_SESSION_NAME": name}) as (manager, client):
            assert (
                run_code(client, "import os; print(os.environ['JPY_SESSION_NAME'])") == f"{name}\n"
            )
            assert run_code(client, show) == f"{output}\n"
            # The supervisor asks the gateway for credentials on the control stream.
            assert "Loaded grader" in run_code(client, "%load_encrypted g.encrypted")
            info: Any = manager.get_connection_info()
    secret = {
        "code": code.encode(),
        "output": output.encode(),
        "environment": name.encode(),
        "HMAC key": bytes(info["key"]),
        "Curve secret key": info["curve_secretkey"].encode(),
        "Curve public key": info["curve_publickey"].encode(),
        "Curve public key, raw": z85.decode(info["curve_publickey"]),
        "credentials": HOST_SECRET_ACCESS_KEY.encode(),
        "a message's type": b"execute_request",
    }
    assert len(tap.controls()) == 1
    assert len(tap.channels("shell")) >= 1 and len(tap.channels("iopub")) >= 1
    assert len(tap.wire) > 10_000
    assert [what for what, value in secret.items() if value in tap.wire] == []
    with plain_kernel() as client:
        assert run_code(client, show) == f"{output}\n"
    assert code.encode() in tap.wire and output.encode() in tap.wire
    assert b"execute_request" in tap.wire


def test_the_wire_holds_nothing_of_the_workspace(home: EnclaveHome, tap: WireTap) -> None:
    """Neither names nor contents; and that they did go over it."""
    name, content = f"cnry{secrets.token_hex(12)}", secrets.token_hex(100_000)
    before = len(tap.wire)
    with open_folder() as folder:
        (folder / f"{name}.csv").write_text(content)
        done = home.run("sync", "-d", str(folder), "--once")
        assert done.returncode == 0, done
        with kernel(cwd=str(folder)) as (_, client):
            code = f"print(len(open('{name}.csv').read()) == {len(content)})"
            assert run_code(client, code) == "True\n"
            written = f"open('{name}.out', 'w').write({name!r} * 2)"
            run_code(client, written)
        assert home.run("sync", "-d", str(folder), "--once").returncode == 0
        assert (folder / f"{name}.out").read_text() == name * 2
    assert len(tap.wire) - before > len(content)
    for canary in (name, content[:64], content[-64:]):
        assert canary.encode() not in tap.wire


# Standing in the middle of TLS


@dataclass
class Impostor:
    """Ends the gateway's TLS itself, with a key of its own, and lets the real enclave attest.

    `document`: what it shows instead of the fresh one.
    """

    tap: WireTap
    document: bytes | None = None
    heard: bytearray = field(default_factory=bytearray)
    tries: int = 0

    def __call__(self, gateway: socket.socket) -> bool:
        threading.Thread(target=self._serve, args=(gateway,), daemon=True).start()
        return True

    def _serve(self, gateway: socket.socket) -> None:
        gateway.settimeout(20)
        with suppress(OSError), gateway:
            if read_frame(gateway) != encode(OpenControl(PROTOCOL_VERSION)):
                return
            self.tries += 1
            context = new_channel_identity().context
            with context.wrap_socket(gateway, server_side=True) as secured:
                nonce = decode_challenge(read_frame(secured)).nonce
                document = self.document or self.attested(nonce)
                secured.sendall(encode_frame(document))
                while data := secured.recv(65536):
                    self.heard += data

    def attested(self, nonce: bytes) -> bytes:
        """Return the real enclave's answer to this nonce, as a message."""
        sock = self.tap.connect()
        sock.sendall(encode_frame(encode(OpenControl(PROTOCOL_VERSION))))
        with tls_context().wrap_socket(sock) as enclave:
            enclave.sendall(encode_frame(encode(gateways_challenge(enclave, nonce))))
            return read_frame(enclave)


def gateways_challenge(enclave: ssl.SSLSocket, nonce: bytes) -> Challenge:
    """Return a challenge of root's, who reads the gateway's key: nobody else is answered."""
    key = gateway_key(EnclavePaths.from_environment())
    enclave_key = public_key_of(enclave.getpeercert(binary_form=True) or b"")
    proof = make_proof(key, purpose="control", nonce=nonce, enclave_key=enclave_key)
    return Challenge(nonce, key.public_key().public_bytes_raw(), proof)


def read_frame(sock: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    return exactly(LENGTH.unpack(exactly(4))[0])


@pytest.mark.parametrize(
    ("replayed", "expected"),
    [(False, "stands between gateway and enclave"), (True, "may be a replay")],
)
def test_a_key_of_its_own_gets_no_message(
    home: EnclaveHome, tap: WireTap, replayed: bool, expected: str
) -> None:
    """The enclave's own document does not help: it names another key, or answers another nonce."""
    impostor = Impostor(tap)
    if replayed:
        impostor.document = impostor.attested(b"n" * 32)
    tap.divert = impostor
    for flow in tap.controls():
        flow.cut()
    assert wait_until(lambda: home.status()["state"] == "untrusted")
    assert expected in home.status()["refusal"]
    with pytest.raises(Exception, match=expected), kernel():
        pass
    assert impostor.tries > 0
    assert impostor.heard == b""
    tap.divert = lambda _sock: False
    assert wait_until(lambda: home.status()["state"] == "up")


async def test_without_the_check_it_would_hear_everything(tap: WireTap, tmp_path: Path) -> None:
    """The positive control: the same impostor, against TLS alone."""
    impostor = Impostor(tap)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threading.Thread(target=lambda: impostor(listener.accept()[0]), daemon=True).start()

    async def nothing() -> None:
        return

    async def answer(_body: Body) -> Body:
        return Done()

    stream = ControlStream(
        f"unix:{tmp_path / 's'}",
        check=lambda document, *, certificate, nonce: None,
        on_connected=nothing,
        on_event=lambda _: None,
        on_gone=lambda: None,
        answer=answer,
    )
    running = asyncio.create_task(stream.run())
    key, curve = secrets.token_bytes(32), CurveKeys(b"p" * 40, secrets.token_hex(20).encode())
    try:
        async with asyncio.timeout(10):
            while not stream.connected:
                await asyncio.sleep(0.01)
        launch = LaunchKernel("ab", key, "hmac-sha256", "/", {}, curve=curve)
        with suppress(Exception):
            await stream.request(launch, timeout_s=0.3)
        assert key in impostor.heard and curve.secret_key in impostor.heard
    finally:
        running.cancel()
        listener.close()


# Altering, replaying, splicing


@contextmanager
def connected(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    """A new client of a kernel that runs."""
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        yield client
    finally:
        client.stop_channels()


def counted(client: BlockingKernelClient) -> str:
    return run_code(client, "print(count)")


def begin(client: BlockingKernelClient) -> None:
    assert run_code(client, "count = 0; print(count)") == "0\n"


@pytest.mark.parametrize("to_enclave", [True, False])
def test_a_control_stream_that_is_altered_ends(
    home: EnclaveHome, tap: WireTap, to_enclave: bool
) -> None:
    with kernel() as (_, client):
        begin(client)
        altered: list[int] = []

        def flip(flow: Flow, direction: bool, data: bytes) -> bytes:
            if not flow.is_control or direction is not to_enclave or altered:
                return data
            altered.append(len(data))
            return data[:-1] + bytes([data[-1] ^ 1])

        (first,) = tap.controls()
        tap.change = flip
        home.status()
        assert first.ended.wait(10) and altered
        # The gateway connects and attests anew; the kernel has not noticed.
        assert wait_until(lambda: home.status()["state"] == "up")
        assert len(tap.controls()) > 1
        assert counted(client) == "0\n"


@pytest.mark.parametrize("to_enclave", [True, False])
def test_a_channel_that_is_altered_carries_nothing_else(tap: WireTap, to_enclave: bool) -> None:
    with kernel() as (manager, client):
        begin(client)
        altered: list[int] = []

        def flip(flow: Flow, direction: bool, data: bytes) -> bytes:
            if direction is not to_enclave or getattr(flow.opened, "channel", "") != "shell":
                return data
            altered.append(len(data))
            return data[:-1] + bytes([data[-1] ^ 1])

        tap.change = flip
        client.execute("count += 1")
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=2)
        assert altered
        tap.change = lambda _flow, _to_enclave, data: data
        # ZeroMQ may give such a connection up for good; Jupyter's next one works.
        client.stop_channels()
        with connected(manager) as again:
            # Either the cell never arrived, or it ran as it was: nothing was made of it.
            assert counted(again) == ("0\n" if to_enclave else "1\n")


def test_v06_what_was_recorded_is_refused(tap: WireTap) -> None:
    with kernel() as (_, client):
        begin(client)
        run_code(client, "count += 1")
        recorded = [*tap.controls(), *tap.channels("shell"), *tap.channels("control")]
        for flow in recorded:
            with tap.connect() as sock:
                with suppress(OSError):
                    sock.sendall(flow.to_enclave)
                    sock.shutdown(socket.SHUT_WR)
                answer = bytearray()
                with suppress(OSError):
                    while data := sock.recv(65536):
                        answer += data
                # Greetings and a handshake that leads nowhere; never what was answered then.
                assert len(answer) < 4096
        assert counted(client) == "1\n"


def test_half_a_stream_into_another(home: EnclaveHome, tap: WireTap) -> None:
    """What the gateway says in its TLS session, put into one that the attacker has opened."""
    spoken: list[bytes] = []

    def keep(flow: Flow, direction: bool, data: bytes) -> bytes:
        if flow.is_control and direction:
            spoken.append(data)
        return data

    tap.change = keep
    home.status()
    assert spoken
    impostor = Impostor(tap)
    sock = tap.connect()
    sock.sendall(encode_frame(encode(OpenControl(PROTOCOL_VERSION))))
    raw = socket.fromfd(sock.fileno(), sock.family, sock.type)
    with raw, tls_context().wrap_socket(sock) as own:
        own.sendall(encode_frame(encode(gateways_challenge(own, b"n" * 32))))
        decode_attested(read_frame(own))
        raw.sendall(spoken[-1])
        with suppress(ssl.SSLError, ConnectionResetError):
            assert own.recv(65536) == b""
    assert impostor.heard == b""
    assert home.status()["state"] == "up"


def test_channels_led_to_another_kernel(tap: WireTap) -> None:
    """Every kernel has keys of its own: what is for one is nothing to another."""
    with kernel() as (manager, client), kernel() as (_, other):
        begin(client)
        begin(other)
        first, second = (flow.opened.kernel_id for flow in tap.channels("shell")[:2])  # type: ignore[union-attr]
        assert first != second
        client.stop_channels()
        led: list[str] = []

        def lead(flow: Flow, direction: bool, data: bytes) -> bytes:
            if direction and first.encode() in data[:200]:
                led.append(flow.opened.channel)  # type: ignore[union-attr]
                return data.replace(first.encode(), second.encode(), 1)
            return data

        tap.change = lead
        lost = manager.client()
        lost.start_channels()
        lost.execute("count += 1")
        with pytest.raises(queue.Empty):
            lost.get_shell_msg(timeout=2)
        lost.stop_channels()
        assert {"shell", "iopub"} <= set(led)
        tap.change = lambda _flow, _to_enclave, data: data
        assert counted(other) == "0\n"
        with connected(manager) as again:
            assert counted(again) == "0\n"


def test_channels_led_to_another_of_the_same_kernel(tap: WireTap) -> None:
    """ZMTP's socket types do not match, where they differ."""
    with kernel() as (manager, client):
        begin(client)
        client.stop_channels()

        def lead(_flow: Flow, direction: bool, data: bytes) -> bytes:
            return data.replace(b"\xa5shell", b"\xa5iopub", 1) if direction else data

        tap.change = lead
        lost = manager.client()
        lost.start_channels()
        lost.execute("count += 1")
        with pytest.raises(queue.Empty):
            lost.get_shell_msg(timeout=2)
        lost.stop_channels()
        tap.change = lambda _flow, _to_enclave, data: data
        with connected(manager) as again:
            assert counted(again) == "0\n"


# Impersonating Jupyter


@pytest.mark.parametrize("knows", ["nothing", "another key", "the server's key"])
def test_v04_a_client_that_is_not_jupyter(home: EnclaveHome, knows: str) -> None:
    """To be heard on a channel takes the Curve key, and to be obeyed the HMAC key as well."""
    assert home
    with kernel() as (manager, client):
        begin(client)
        info: Any = manager.get_connection_info()
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            if knows != "nothing":
                public, secret = zmq.curve_keypair()
                sock.curve_publickey, sock.curve_secretkey = public, secret
                known = knows == "the server's key"
                sock.curve_serverkey = info["curve_publickey"].encode() if known else public
            sock.connect(f"ipc://{info['ip']}-1")
            session = Session(key=secrets.token_bytes(32))
            message = session.msg(
                "execute_request",
                {"code": "count += 1", "silent": False, "user_expressions": {}},
            )
            session.send(sock, message)
            assert sock.poll(2000) == 0
        assert counted(client) == "0\n"
