import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest

from enclave_parent_gateway.api import (
    ChannelAttested,
    ForgetKernel,
    GatewayStatus,
    HoldSlot,
    KernelState,
    Launch,
    Launched,
    PollKernel,
    SignalSlot,
    WaitKernel,
    encode_message,
)
from enclave_parent_gateway.backends.local import LocalBackend
from enclave_parent_gateway.errors import EnclaveNotRunningError, RefusedError
from enclave_parent_gateway.gateway_client import ask, ask_blocking
from enclave_parent_gateway.kernel_slot import is_own_peer
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.channel_binding import channel_user_data, public_key_of
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import Attest, Done, StatusRequest
from tests.support.enclave_home import EnclaveHome, wait_until
from tests.support.local_services import HOST_CREDENTIALS

_SLOT = "0123abcd-89abcdef"
_LAUNCH = Launch(_SLOT, b"k" * 32, "hmac-sha256", "/", {})


@pytest.fixture
def gateway(enclave: EnclaveHome) -> Path:
    return EnclavePaths.from_environment().gateway_socket


def _slots(gateway: Path) -> list[str]:
    status = ask_blocking(gateway, StatusRequest(), GatewayStatus)
    return [slot.slot for slot in status.slots]


def test_a_kernel_from_launch_to_forget(gateway: Path) -> None:
    launched = ask_blocking(gateway, _LAUNCH, Launched)
    assert launched.kernel_id.startswith(f"{_SLOT}-")
    assert ask_blocking(gateway, PollKernel(launched.kernel_id), KernelState).returncode is None
    for number in range(1, 6):
        path = Path(f"{launched.prefix}-{number}")
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
    again = ask_blocking(gateway, _LAUNCH, Launched)
    assert again.kernel_id != launched.kernel_id
    assert again.prefix == launched.prefix
    assert not Path(f"/proc/{launched.pid}").exists()
    ask_blocking(gateway, ForgetKernel(_SLOT), Done)
    assert not Path(f"/proc/{again.pid}").exists()
    assert not list(Path(launched.prefix).parent.glob(f"{_SLOT}*"))
    assert _SLOT not in _slots(gateway)


def test_an_unknown_kernel_is_dead_and_signals_to_it_are_fine(gateway: Path) -> None:
    for request in (PollKernel("ab-cd"), WaitKernel("ab-cd")):
        assert ask_blocking(gateway, request, KernelState).returncode == -9
    ask_blocking(gateway, SignalSlot("ab-cd", 2), Done)
    ask_blocking(gateway, ForgetKernel("ab-cd"), Done)


def test_attest(gateway: Path) -> None:
    nonce = os.urandom(32)
    reply = ask_blocking(gateway, Attest(nonce), ChannelAttested)
    assert nonce in reply.document
    assert channel_user_data(public_key_of(reply.certificate)) in reply.document


def test_a_client_that_hangs_up_gets_no_kernel(gateway: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(gateway))
        sock.sendall(encode_frame(encode_message(_LAUNCH)))
        assert wait_until(lambda: _SLOT in _slots(gateway))
    assert wait_until(lambda: _SLOT not in _slots(gateway))


@pytest.mark.parametrize(
    "sent", [encode_frame(b"\xc1"), b"\xff\xff\xff\xff", encode_frame(b"")], ids=str
)
def test_what_is_no_request_is_answered_as_such(gateway: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(gateway))
        sock.sendall(sent)
        decoder = FrameDecoder()
        data = sock.recv(65536)
        (frame,) = decoder.feed(data)
        assert b"failed" in frame
        assert sock.recv(1) == b""


def test_many_clients_at_once(gateway: Path) -> None:
    async def all_of_them() -> list[GatewayStatus]:
        return await asyncio.gather(
            *(ask(gateway, StatusRequest(), GatewayStatus) for _ in range(200))
        )

    assert all(status.enclave for status in asyncio.run(all_of_them()))


def test_a_kernel_that_cannot_start_is_refused_in_one_line(gateway: Path) -> None:
    launch = Launch(_SLOT, b"k" * 32, "hmac-sha256", "/nowhere/at/all", {})
    try:
        launched = ask_blocking(gateway, launch, Launched)
    except RefusedError as error:
        assert "\n" not in str(error)
        assert _SLOT not in _slots(gateway)
    else:
        # The enclave chose another working directory.
        assert Path(f"/proc/{launched.pid}").exists()
        ask_blocking(gateway, ForgetKernel(_SLOT), Done)


def test_without_a_gateway(tmp_path: Path) -> None:
    with pytest.raises(EnclaveNotRunningError, match="type: enclave up"):
        ask_blocking(tmp_path / "none", StatusRequest(), GatewayStatus)
    with pytest.raises(EnclaveNotRunningError, match="type: enclave up"):
        asyncio.run(ask(tmp_path / "none", StatusRequest(), GatewayStatus))


def test_the_local_enclave_uses_the_local_clouds_identity(
    enclave: EnclaveHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the developer's own, which the local cloud would not know.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    assert LocalBackend().credentials(EnclavePaths.from_environment()) == HOST_CREDENTIALS


def _connect_as(uid: int, path: Path) -> None:
    # Forked, not exec'd: that user may not be able to reach this interpreter.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("uid", "accepted"), [(0, True), (12345, False)])
def test_only_this_user_may_connect(tmp_path: Path, uid: int, accepted: bool) -> None:
    path = Path(f"/tmp/peer-{os.getpid()}")  # noqa: S108 (every user can reach it)
    answers: list[bool] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()

        def accept() -> None:
            peer, _ = listener.accept()
            with peer:
                answers.append(is_own_peer(peer))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            _connect_as(uid, path)
            thread.join(10)
        finally:
            path.unlink()
    assert answers == [accepted]


def test_a_held_slot_ends_with_whoever_holds_it(gateway: Path) -> None:
    slot = "feedbeef-00112233"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        holder.connect(str(gateway))
        holder.sendall(encode_frame(encode_message(HoldSlot(slot))))
        launch = Launch(slot, b"k" * 32, "hmac-sha256", "/", {})
        launched = ask_blocking(gateway, launch, Launched)
        assert slot in _slots(gateway)
    assert wait_until(lambda: slot not in _slots(gateway))
    assert not Path(f"/proc/{launched.pid}").exists()
