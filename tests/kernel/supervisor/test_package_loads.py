"""Loads that are asked for in bursts, cancelled, or wrong: the supervisor keeps its footing."""

import itertools
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from enclave_protocol.key_slot import KeySlot
from enclave_protocol.messages import (
    EnclaveStatus,
    KernelLaunched,
    LaunchKernel,
    SignalKernel,
    StatusRequest,
)
from enclave_protocol.package_header import encode_header
from tests.support.example_package import FILES, KEY_ARN, make_label
from tests.support.supervisor_process import (
    Control,
    Refused,
    SupervisorProcess,
    supervisor_process,
)

_BURST = """
from enclave_kernel import session_messages
from enclave_kernel.session_messages import CancelLoad, LoadPackage
from enclave_protocol.frame import encode_frame
import time
link = get_ipython().kernel.supervisor_link
def send(message):
    link._sock.sendall(encode_frame(session_messages.encode(message)))
for round in range(5):
    for number in range(20):
        send(LoadPackage(1 + round * 20 + number, "x", header))
    time.sleep(0.003)
    for number in range(20):
        send(CancelLoad(1 + round * 20 + number))
        send(CancelLoad(1 + round * 20 + number))
"""


@pytest.fixture
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        yield process


def _vaults(supervisor: SupervisorProcess) -> int:
    return len(list((supervisor.runtime_dir / "v").iterdir()))


def _launch(supervisor: SupervisorProcess, control: Control) -> LaunchKernel:
    request = supervisor.launch_request()
    assert isinstance(control.request(request), KernelLaunched)
    return request


def test_a_burst_of_cancelled_loads_makes_no_herd_of_vaults(supervisor: SupervisorProcess) -> None:
    header = encode_header(make_label(FILES), KeySlot(KEY_ARN, b"wrapped"))
    with supervisor.control() as control:
        hostile = _launch(supervisor, control)
        with supervisor.client(hostile) as client:
            code = f"header = {header!r}\n{_BURST}"
            assert client.execute_interactive(code, timeout=30)["content"]["status"] == "ok"
        most = 0
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            most = max(most, _vaults(supervisor))
            time.sleep(0.02)
        # The one that loads, the spare, and one that is just ending.
        assert most <= 4
        control.request(SignalKernel(hostile.kernel_id, signal.SIGKILL))
        assert control.next_event().kernel_id == hostile.kernel_id
        deadline = time.monotonic() + 10
        while _vaults(supervisor) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_running_out_of_descriptors_does_not_make_it_deaf(supervisor: SupervisorProcess) -> None:
    deadline = time.monotonic() + 10
    # Once the spare vault is there, no descriptor comes or goes by itself.
    while "vault: " not in supervisor.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    soft, hard = resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{supervisor.pid}/fd").iterdir()}
    # The limit is one of numbers: the lowest free one must be over it.
    free = next(number for number in itertools.count() if number not in used)
    resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (free, hard))
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(supervisor.path))
        time.sleep(0.5)
        resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (soft, hard))
        with supervisor.control() as control:
            assert isinstance(control.request(StatusRequest()), EnclaveStatus)
    assert "a stream was not accepted" in supervisor.log.read_text()


def test_a_kernels_options_cannot_switch_signatures_off(supervisor: SupervisorProcess) -> None:
    with supervisor.control() as control:
        request = msgspec.structs.replace(
            supervisor.launch_request(), arguments=("--Session.key=",)
        )
        with pytest.raises(Refused, match="ended with status 1"):
            control.request(request)
        honest = msgspec.structs.replace(
            supervisor.launch_request(), arguments=("--ZMQInteractiveShell.colors=nocolor",)
        )
        assert isinstance(control.request(honest), KernelLaunched)


def test_an_environment_of_many_long_variables_is_taken(supervisor: SupervisorProcess) -> None:
    with supervisor.control() as control:
        request = supervisor.launch_request()
        environ = {f"LONG_{number}": "x" * 4000 for number in range(200)}
        request = msgspec.structs.replace(request, environ=request.environ | environ)
        assert isinstance(control.request(request), KernelLaunched)
        with supervisor.client(request) as client:
            code = "import os; assert len(os.environ['LONG_199']) == 4000"
            assert client.execute_interactive(code, timeout=20)["content"]["status"] == "ok"
