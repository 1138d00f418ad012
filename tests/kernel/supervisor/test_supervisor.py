"""The supervisor as a process: kernels come and go, and no stream can harm it."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.channel_binding import channel_user_data, public_key_of
from enclave_protocol.messages import (
    Attest,
    Attested,
    EnclaveStatus,
    KernelLaunched,
    LaunchKernel,
    OpenChannel,
    OpenControl,
    Shutdown,
    SignalKernel,
    StatusRequest,
)
from tests.support.supervisor_process import (
    Control,
    Refused,
    SupervisorProcess,
    hangs_up,
    supervisor_process,
)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        yield process


@pytest.fixture
def control(supervisor: SupervisorProcess) -> Iterator[Control]:
    with supervisor.control() as stream:
        yield stream


def _status(control: Control) -> EnclaveStatus:
    status = control.request(StatusRequest())
    assert isinstance(status, EnclaveStatus)
    return status


def _launch(supervisor: SupervisorProcess, control: Control) -> tuple[LaunchKernel, int]:
    request = supervisor.launch_request()
    launched = control.request(request)
    assert isinstance(launched, KernelLaunched)
    return request, launched.pid


def _end(control: Control, request: LaunchKernel) -> None:
    control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
    assert control.next_event().kernel_id == request.kernel_id


def test_a_kernel_runs_code_and_is_gone_after_its_shutdown(
    supervisor: SupervisorProcess, control: Control
) -> None:
    request, pid = _launch(supervisor, control)
    with supervisor.client(request) as client:
        reply = client.execute_interactive("x = 6 * 7", timeout=20)
        assert reply["content"]["status"] == "ok"
        assert request.kernel_id in {kernel.kernel_id for kernel in _status(control).kernels}
        client.shutdown()
    ended = control.next_event()
    assert (ended.kernel_id, ended.returncode) == (request.kernel_id, 0)
    assert not _status(control).kernels
    # The process that waits for the next kernel has some, too.
    assert not list((supervisor.runtime_dir / "k").glob(f"{request.kernel_id}*"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_kernels_draw_different_random_numbers_and_hold_no_descriptor_of_another(
    supervisor: SupervisorProcess, control: Control
) -> None:
    code = (
        "import os, random, uuid\n"
        "links = sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
        " if os.path.lexists(f'/proc/self/fd/{fd}'))\n"
        "print(random.random(), uuid.uuid4(), len([x for x in links if x.startswith('socket:')]))"
    )
    outputs = []
    requests = [_launch(supervisor, control)[0] for _ in range(2)]
    for request in requests:
        with supervisor.client(request) as client:
            seen: list[str] = []
            client.execute_interactive(
                code,
                timeout=20,
                output_hook=lambda message, seen=seen: seen.append(
                    message["content"].get("text", "")
                ),
            )
            outputs.append("".join(seen).split())
    for request in requests:
        _end(control, request)
    first, second = outputs
    assert first[0] != second[0]
    assert first[1] != second[1]
    # The second was forked while the first ran: it must not have more sockets than the first.
    assert first[2] == second[2]


def test_an_id_in_use_is_refused(supervisor: SupervisorProcess, control: Control) -> None:
    request, _ = _launch(supervisor, control)
    with pytest.raises(Refused, match="runs already") as refused:
        control.request(request)
    assert refused.value.kind == "KernelLaunchError"
    _end(control, request)


def test_the_supervisor_attests_a_nonce_and_no_key(control: Control) -> None:
    attested = control.request(Attest(nonce=b"n" * 32))
    assert isinstance(attested, Attested)
    document = decode_signed_document(attested.document).document
    assert document.nonce == b"n" * 32
    assert document.public_key is None
    assert document.user_data == channel_user_data(
        public_key_of(control.sock.getpeercert(binary_form=True) or b"")
    )


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xc1",
        b"x" * 600,
        b"\x81\xa4type\xa7unknown",
    ],
)
def test_a_stream_without_an_open_message_is_closed(
    supervisor: SupervisorProcess, control: Control, first: bytes
) -> None:
    with supervisor.open(first) as sock:
        assert hangs_up(sock)
    assert _status(control).kernels == ()


def test_another_protocol_version_is_closed(supervisor: SupervisorProcess) -> None:
    with supervisor.open(OpenControl(version=1)) as sock:
        assert sock.recv(1) == b""


def test_a_channel_of_no_kernel_is_closed(supervisor: SupervisorProcess) -> None:
    with supervisor.open(OpenChannel("00", "shell")) as sock:
        assert sock.recv(1) == b""


def test_an_idle_connection_is_closed_in_time(supervisor: SupervisorProcess) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(15)
        sock.connect(str(supervisor.path))
        started = time.monotonic()
        assert sock.recv(1) == b""
        assert time.monotonic() - started > 1


def test_a_frame_of_4_gib_on_the_control_stream_ends_it_and_nothing_else(
    supervisor: SupervisorProcess,
) -> None:
    with supervisor.control() as hostile:
        hostile.sock.sendall(b"\xff\xff\xff\xff")
        assert hostile.sock.recv(1) == b""
    with supervisor.control() as stream:
        assert _status(stream).version


def test_a_reply_nobody_waits_for_and_a_signal_to_no_kernel_are_harmless(
    control: Control,
) -> None:
    control.request(SignalKernel("00ff", signal.SIGINT))
    assert _status(control).kernels == ()


def test_shutdown_leaves_no_process_and_no_file() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        with process.control() as control:
            _, pid = _launch(process, control)
            control.request(Shutdown())
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() or list(process.runtime_dir.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not process.path.exists()


def test_the_supervisors_death_takes_every_kernel_with_it() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
        process.control() as control,
    ):
        _, pid = _launch(process, control)
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _is_alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    "frames",
    [
        "b'\\xff' * 8",
        "encode_frame(b'\\xc1')",
        "encode_frame(session_messages.encode(UnloadVault('00112233445566ff'))) * 1000",
        "encode_frame(session_messages.encode(LoadPackage(1, 'x', b'no header'))) * 40",
        "encode_frame(session_messages.encode(KernelReady())) * 100",
    ],
)
def test_what_a_kernel_forges_harms_nobody_else(
    supervisor: SupervisorProcess, control: Control, frames: str
) -> None:
    hostile, _ = _launch(supervisor, control)
    honest, _ = _launch(supervisor, control)
    code = (
        "from enclave_kernel import session_messages\n"
        "from enclave_kernel.session_messages import KernelReady, LoadPackage, UnloadVault\n"
        "from enclave_protocol.frame import encode_frame\n"
        "link = get_ipython().kernel.supervisor_link\n"
        f"link._sock.sendall({frames})"
    )
    with supervisor.client(hostile) as client:
        assert client.execute_interactive(code, timeout=20)["content"]["status"] == "ok"
    with supervisor.client(honest) as client:
        assert client.execute_interactive("x = 1", timeout=20)["content"]["status"] == "ok"
    assert {info.kernel_id for info in _status(control).kernels} >= {honest.kernel_id}
    for request in (hostile, honest):
        control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
    ended = {control.next_event().kernel_id for _ in range(2)}
    assert ended == {hostile.kernel_id, honest.kernel_id}
