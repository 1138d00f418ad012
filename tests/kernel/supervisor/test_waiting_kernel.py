"""The process that waits to be a kernel: used once, replaced, and never left behind."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_protocol.messages import EnclaveStatus, KernelLaunched, StatusRequest
from tests.support.supervisor_process import SupervisorProcess, supervisor_process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="told from helpers by its namespace")


@pytest.fixture
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        yield process


def _children(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()}


def _zygote(supervisor: SupervisorProcess) -> int:
    for child in _children(supervisor.pid):
        if b"enclave_kernel.zygote" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError("no zygote")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _forks(supervisor: SupervisorProcess) -> list[int]:
    """Return the zygote's forks; what its imports start for a moment is not in the namespaces."""
    zygote = _zygote(supervisor)
    outside = Path(f"/proc/{zygote}/ns/pid").readlink()
    found = []
    for child in _children(zygote):
        with contextlib.suppress(OSError):
            inside = Path(f"/proc/{child}/ns/pid").readlink()
            if inside != outside:
                found.append(child)
    return found


def _waiting(supervisor: SupervisorProcess) -> int:
    _until(lambda: len(_forks(supervisor)) == 1)
    return _forks(supervisor)[0]


def _prefixes(supervisor: SupervisorProcess) -> set[str]:
    return {path.name.rpartition("-")[0] for path in (supervisor.runtime_dir / "k").iterdir()}


def test_a_kernel_is_the_process_that_waited_and_another_takes_its_place(
    supervisor: SupervisorProcess,
) -> None:
    with supervisor.control() as control:
        waiting = _waiting(supervisor)
        _until(lambda: len(_prefixes(supervisor)) == 1)
        request = supervisor.launch_request()
        launched = control.request(request)
        assert isinstance(launched, KernelLaunched)
        assert launched.pid == waiting
        status = control.request(StatusRequest())
        assert isinstance(status, EnclaveStatus)
        assert [kernel.pid for kernel in status.kernels] == [waiting]
        _until(lambda: len(_forks(supervisor)) == 2)
        with supervisor.client(request) as client:
            reply = client.execute_interactive("import os; os.getpid()", timeout=30)
            assert reply["content"]["status"] == "ok"


def test_one_that_was_killed_is_not_missed(supervisor: SupervisorProcess) -> None:
    with supervisor.control() as control:
        waiting = _waiting(supervisor)
        _until(lambda: len(_prefixes(supervisor)) == 1)
        os.kill(waiting, signal.SIGKILL)
        _until(lambda: not _prefixes(supervisor))
        request = supervisor.launch_request()
        launched = control.request(request)
        assert isinstance(launched, KernelLaunched)
        assert launched.pid != waiting
        with supervisor.client(request) as client:
            assert client.execute_interactive("1", timeout=30)["content"]["status"] == "ok"


def test_nothing_of_it_is_left_when_the_supervisor_ends(supervisor: SupervisorProcess) -> None:
    waiting = _waiting(supervisor)
    os.kill(supervisor.pid, signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{waiting}").exists())
