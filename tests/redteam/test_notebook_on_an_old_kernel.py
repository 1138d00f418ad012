"""A notebook's walls on a kernel that knows no system call newer than Linux 4.14's."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from enclave_kernel.isolation.seccomp import ARCHITECTURES
from enclave_protocol.messages import KernelLaunched, SignalKernel
from tests.redteam.conftest import needs_root
from tests.redteam.places import spawner
from tests.support.enclave_home import run_code
from tests.support.supervisor_process import SupervisorProcess, supervisor_process

pytestmark = needs_root

_PIDFD_OPEN = ARCHITECTURES[os.uname().machine].numbers["pidfd_open"]
_CELL = f"""
import ctypes, errno, os
from enclave_kernel.isolation.trials import breaches
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall({_PIDFD_OPEN}, -1, 0)
print(errno.errorcode[ctypes.get_errno()], breaches(), os.getuid() != 0, os.getcwd())
print(open("data.txt").read(), os.access(".", os.W_OK))
"""


@pytest.fixture(params=[True, False], ids=["linux-4.14", "this-kernel"])
def supervisor(request: pytest.FixtureRequest) -> Iterator[tuple[SupervisorProcess, bool]]:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        spawner(old_kernel=request.param) as old,
    ):
        running = supervisor_process(Path(directory))
        process = old.do(running.__enter__)
        try:
            yield process, request.param
        finally:
            running.__exit__(None, None, None)


def test_its_walls_stand_and_its_folder_is_there(
    supervisor: tuple[SupervisorProcess, bool],
) -> None:
    process, is_old = supervisor
    with (
        tempfile.TemporaryDirectory(prefix="nb-", dir="/tmp") as folder,
        process.control() as stream,
    ):
        Path(folder).chmod(0o755)
        (Path(folder) / "data.txt").write_text("mine")
        request = msgspec.structs.replace(process.launch_request(), cwd=folder)
        assert isinstance(stream.request(request), KernelLaunched)
        with process.client(request) as client:
            found = run_code(client, _CELL).splitlines()
        stream.request(SignalKernel(request.kernel_id, signal.SIGKILL))
        assert stream.next_event().returncode == -9
    # Without idmapped mounts the folder is what others may do with it.
    answer, state = found[0].split(" ", 1)
    assert (answer == "ENOSYS") == is_old
    assert state == f"() True {folder}"
    assert found[1] == f"mine {not is_old}"
