"""THREATS E.14: vsock, and the supervisor's own protocol.

Whether AF_VSOCK itself holds needs a virtual machine: here it is that nobody inside gets one.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from enclave_kernel.supervisor.transport import EndpointError, is_parent, listen
from enclave_protocol import messages
from enclave_protocol.frame import encode_frame
from enclave_protocol.messages import EnclaveStatus, StatusRequest
from tests.redteam import kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import Place, achieved
from tests.support.enclave_home import kernel, run_code
from tests.support.supervisor_process import hangs_up

_VSOCK = 40


@needs_root
def test_v01_v11_no_vsock_of_any_type(arena: Arena, hostile: Place) -> None:
    control = arena.plain().run(kernel_attacks.wide_arguments, [_VSOCK])
    assert {f"{_VSOCK} 1", f"{_VSOCK} 1 high"} <= achieved(control)
    outcome = hostile.run(kernel_attacks.wide_arguments, [_VSOCK])
    assert set(outcome.values()) == {"EPERM"} and len(outcome) == 8
    assert hostile.run(kernel_attacks.make_devices)["/dev/vsock"] == "ENOENT"


def test_v02_v05_only_the_parent_connects() -> None:
    with socket.socket(socket.AF_VSOCK) as sock:
        assert is_parent(sock, (3, 700)) and is_parent(sock, (2, 700))
        for address in ((16, 700), (1, 700), (4, 700), (-1, 700), (), "3", None):
            assert not is_parent(sock, address)


@pytest.mark.parametrize("port", [0, 1024, 5006, 65536, -1])
def test_v03_ports_that_anybody_may_take(port: int) -> None:
    with pytest.raises(EndpointError, match="expected 1 to 1023"):
        listen(f"vsock:{port}")


@contextmanager
def stream(arena: Arena) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(arena.supervisor.path))
        yield sock


def answers(arena: Arena) -> bool:
    with arena.supervisor.control() as control:
        return isinstance(control.request(StatusRequest()), EnclaveStatus)


@needs_root
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xc1", b"\x91" * 500, b"\xdf\xff\xff\xff\xff", b"x" * 600, b"\x80"),
        msgspec.msgpack.encode({"type": "open_control", "version": 1, "more": 1}),
        msgspec.msgpack.encode({"type": "open_channel", "kernel_id": "../x", "channel": "shell"}),
        msgspec.msgpack.encode({"type": "open_channel", "kernel_id": "%s\x1b[2J", "channel": "hb"}),
        msgspec.msgpack.encode({"type": "sync", "path": "../"}),
    ],
    ids=lambda payload: payload[:8].hex() or "empty",
)
def test_v07_what_is_no_message(modern: Arena, payload: bytes) -> None:
    """The root process closes the stream, says nothing, logs none of it, and goes on."""
    with stream(modern) as sock:
        sock.sendall(encode_frame(payload))
        assert hangs_up(sock)
    assert answers(modern)
    assert "\x1b" not in modern.supervisor.log.read_text()


@needs_root
def test_v07_lies_on_the_control_stream(modern: Arena) -> None:
    bodies = [
        {"type": "launch_kernel", "kernel_id": "../../etc", "key": b"k" * 32},
        {"type": "launch_kernel", "kernel_id": "ab", "key": b"", "signature_scheme": "hmac-sha256"},
        {"type": "signal", "kernel_id": "ab", "signum": 9},
        {"type": "sync", "path": "../"},
        {"type": "attest", "nonce": b"n" * 32, "user_data": b"x"},
        None,
        [1] * 100,
    ]
    for body in bodies:
        with modern.supervisor.control() as control:
            frame = encode_frame(msgspec.msgpack.encode({"body": body, "request_id": 1}))
            control.sock.sendall(frame)
            assert hangs_up(control.sock)
    assert answers(modern)


@needs_root
def test_v08_half_open_connections(modern: Arena) -> None:
    """Many that say nothing: a limited number is kept, and somebody who speaks is served."""
    quiet = []
    try:
        for _ in range(200):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            quiet.append(sock)
            try:
                sock.connect(str(modern.supervisor.path))
            except BlockingIOError:
                break
        deadline = time.monotonic() + 60
        served = False
        while not served and time.monotonic() < deadline:
            try:
                served = answers(modern)
            except OSError:
                time.sleep(0.2)
        assert served
    finally:
        for sock in quiet:
            sock.close()
    descriptors = len(os.listdir(f"/proc/{modern.supervisor.pid}/fd"))  # noqa: PTH208
    assert descriptors < 400


_FORGE = """
from enclave_kernel import session_messages as sm
link = get_ipython().kernel.supervisor_link
for number in ids:
    for message in (sm.InterruptVault(number), sm.UnloadVault(number)):
        link.send(sm.encode(message))
print([link.death_reason(number) for number in ids])
"""


def test_v09_the_vault_of_another_notebook(notebook: HostileNotebook) -> None:
    """An id is looked up among the asking notebook's own: even a right one leads nowhere."""
    vault_id = notebook.value("m._client._vault_id")
    ids = [vault_id, secrets.token_hex(8), "0" * 16]
    with kernel(cwd=str(notebook.folder)) as (_, client):
        assert run_code(client, f"ids = {ids!r}\n{_FORGE}").strip() == "[None, None, None]"
    assert notebook.value("m.predict([1.0]).tolist()") == [2.0]


def test_v10_no_command_for_files() -> None:
    """The supervisor has nothing that reads, writes, mounts or runs what it is told."""
    kinds = {kind.__name__ for kind in messages.Body.__args__}
    assert kinds <= {
        *("StatusRequest", "EnclaveStatus", "LaunchKernel", "KernelLaunched", "SignalKernel"),
        *("KernelEnded", "CredentialsRequest", "Credentials", "Attest", "Attested", "Shutdown"),
        *("Done", "Failed", "EgressWanted", "PublisherKey", "PinnedKey", "Ping"),
        "KernelCells",
    }
