"""A notebook's process as the person at the keyboard has it, against the same without walls."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from enclave_protocol.messages import EnclaveStatus, KernelLaunched, SignalKernel, StatusRequest
from tests.support.enclave_home import run_code, wait_until
from tests.support.process_ids import kernel_pid
from tests.support.supervisor_process import Control, SupervisorProcess, supervisor_process
from tests.support.vault_link import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the walls need a supervisor of root's")

_SHARED = ["/tmp", "/dev/shm", "/var/tmp"]  # noqa: S108 (of the notebook)
_BREACHES = "from enclave_kernel.isolation.trials import breaches; print(breaches())"


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


@contextmanager
def notebook(
    supervisor: SupervisorProcess, control: Control, folder: str = "/"
) -> Iterator[BlockingKernelClient]:
    request = msgspec.structs.replace(supervisor.launch_request(), cwd=folder)
    assert isinstance(control.request(request), KernelLaunched)
    with supervisor.client(request) as client:
        yield client
    control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
    assert control.next_event().kernel_id == request.kernel_id


def test_what_must_be_refused_is_refused_and_would_succeed_without_walls(
    supervisor: SupervisorProcess, control: Control
) -> None:
    with notebook(supervisor, control) as client:
        assert run_code(client, _BREACHES) == "()\n"
    bare = subprocess.run(
        [sys.executable, "-c", _BREACHES], capture_output=True, text=True, check=True
    ).stdout
    for found in ("root can be regained", "a device can be made", "auditing opens", "ptrace"):
        assert found in bare
    status = control.request(StatusRequest())
    assert isinstance(status, EnclaveStatus)
    assert "notebook: user and group of its own" in status.isolation
    assert "notebook: system call deny-list" in status.isolation


def test_no_other_process_is_there(supervisor: SupervisorProcess, control: Control) -> None:
    code = f"""
import os
seen = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
print(all(open(f"/proc/{{pid}}/comm").read() for pid in seen), max(seen) < 100)
try:
    os.kill({supervisor.pid}, 0)
except OSError as error:
    print(type(error).__name__)
"""
    with notebook(supervisor, control) as client:
        assert run_code(client, code).split() == ["True", "True", "ProcessLookupError"]


def test_the_enclaves_sockets_and_folders_are_out_of_reach(
    supervisor: SupervisorProcess, control: Control
) -> None:
    paths = [supervisor.path, supervisor.path.with_name("nsm.sock"), supervisor.runtime_dir]
    assert all(path.exists() for path in paths)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        code = f"""
import os, socket
print([os.path.exists(path) for path in {[str(path) for path in paths]}])
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5)
except OSError as error:
    print(type(error).__name__)
"""
        with notebook(supervisor, control) as client:
            found = run_code(client, code)
    assert found.splitlines() == ["[False, False, False]", "ConnectionRefusedError"]


def test_two_notebooks_share_nothing(supervisor: SupervisorProcess, control: Control) -> None:
    listen = """
import os, socket
server = socket.socket(socket.AF_UNIX); server.bind(chr(0) + "meet-me"); server.listen()
for folder in ("/tmp", "/dev/shm", "/var/tmp"):
    open(folder + "/left", "w").write("here")
print(os.getuid())
"""
    look = """
import os, socket
found = [folder for folder in ("/tmp", "/dev/shm", "/var/tmp") if os.listdir(folder)]
try:
    socket.socket(socket.AF_UNIX).connect(chr(0) + "meet-me")
except OSError as error:
    found.append(type(error).__name__)
print(os.getuid(), *found)
"""
    with (
        notebook(supervisor, control) as first,
        notebook(supervisor, control) as second,
    ):
        one = run_code(first, listen).split()
        other = run_code(second, look).split()
        assert run_code(first, look).split()[1:] == _SHARED
    assert other[1:] == ["ConnectionRefusedError"]
    assert one[0] != other[0]
    assert "0" not in (one[0], other[0])


def test_the_notebooks_folder_is_its_own(
    supervisor: SupervisorProcess, control: Control, tmp_path: Path
) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "data.csv").chmod(0o600)
    with notebook(supervisor, control, str(tmp_path)) as client:
        code = "open('out.csv', 'w').write('c'); print(open('data.csv').read(), end='')"
        assert run_code(client, code) == "a,b\n"
    made = tmp_path / "out.csv"
    assert made.read_text() == "c"
    # As the folder's owner made it, readable as files usually are.
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (0, 0o644)


def test_no_file_becomes_another_users(
    supervisor: SupervisorProcess, control: Control, tmp_path: Path
) -> None:
    code = """
import os
done = []
for name, make in (
    ("chmod", lambda: os.chmod("made", 0o4755)),
    ("fchmod", lambda: os.fchmod(os.open("made", os.O_RDONLY), 0o2755)),
    ("open", lambda: os.open("new", os.O_CREAT | os.O_WRONLY, 0o4755)),
    ("mknod", lambda: os.mknod("node", 0o104755)),
):
    try:
        make()
        done.append(name)
    except PermissionError:
        pass
os.chmod("made", 0o1755)
print(done, oct(os.stat("made").st_mode))
"""
    (tmp_path / "made").write_text("#!/bin/sh")
    with notebook(supervisor, control, str(tmp_path)) as client:
        assert run_code(client, code) == "[] 0o101755\n"


def test_its_init_is_closed_to_it(supervisor: SupervisorProcess, control: Control) -> None:
    code = """
import os
opened = []
for name in ("mem", "environ", "maps", "fd"):
    try:
        os.listdir("/proc/1/fd") if name == "fd" else os.open(f"/proc/1/{name}", os.O_RDONLY)
        opened.append(name)
    except OSError:
        pass
os.open("/proc/self/mem", os.O_RDWR)  # and its own tools work
print(opened)
"""
    with notebook(supervisor, control) as client:
        assert run_code(client, code) == "[]\n"


_FORGE = """
import os, socket
ran = True
from enclave_kernel.session_messages import KernelWalled, encode
from enclave_protocol.frame import encode_frame
for descriptor in range(3, 64):
    try:
        sock = socket.socket(fileno=os.dup(descriptor))
        sock.send(encode_frame(encode(KernelWalled(("forged",)))))
    except OSError:
        pass
"""


def test_an_option_cannot_say_what_stands(supervisor: SupervisorProcess, control: Control) -> None:
    line = f"exec(bytes.fromhex('{_FORGE.encode().hex()}'))"
    request = msgspec.structs.replace(
        supervisor.launch_request(), arguments=(f"--IPKernelApp.exec_lines={line}",)
    )
    assert isinstance(control.request(request), KernelLaunched)
    with supervisor.client(request) as client:
        assert run_code(client, "print(ran)") == "True\n"
        status = control.request(StatusRequest())
    assert isinstance(status, EnclaveStatus)
    assert not [wall for wall in status.isolation if "forged" in wall]
    assert "notebook: user and group of its own" in status.isolation
    control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
    assert control.next_event().kernel_id == request.kernel_id


@pytest.mark.parametrize(
    "folder", [ROOT, ROOT / "kernel" / "enclave_kernel", ROOT / "infra", Path("/usr/lib")]
)
def test_the_enclaves_code_cannot_be_changed(
    supervisor: SupervisorProcess, control: Control, folder: Path
) -> None:
    code = f"""
import os
for path in ({str(folder)!r}, {str(ROOT)!r}, {str(ROOT / "kernel")!r}, {sys.prefix!r}):
    try:
        os.rename(path + "/enclave_kernel", path + "/moved")
    except OSError:
        pass
    try:
        open(path + "/planted", "w")
        print("planted", path)
    except OSError:
        pass
print("tried")
"""
    with notebook(supervisor, control, str(folder)) as client:
        assert run_code(client, code) == "tried\n"


def test_state_of_the_enclave_in_the_notebooks_folder_is_hidden(
    supervisor: SupervisorProcess, control: Control
) -> None:
    folder = supervisor.runtime_dir.parent
    code = f"""
import os
print(os.listdir({str(supervisor.runtime_dir)!r}))
try:
    os.rename({str(supervisor.runtime_dir)!r}, "elsewhere")
except OSError:
    print("stays")
"""
    with notebook(supervisor, control, str(folder)) as client:
        assert run_code(client, code) == "[]\nstays\n"


def test_a_daemon_of_a_cell_ends_with_its_kernel(
    supervisor: SupervisorProcess, control: Control
) -> None:
    code = "__import__('subprocess').Popen(['setsid', 'sleep', '300']).pid"
    with notebook(supervisor, control) as client:
        daemon = kernel_pid(client, code)
        assert Path(f"/proc/{daemon}").exists()
    assert wait_until(lambda: not Path(f"/proc/{daemon}").exists())


@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_how_a_kernel_ended_is_known(
    supervisor: SupervisorProcess, control: Control, code: str, returncode: int
) -> None:
    request = supervisor.launch_request()
    control.request(request)
    with supervisor.client(request) as client:
        client.execute(code)
        ended = control.next_event()
    assert (ended.kernel_id, ended.returncode) == (request.kernel_id, returncode)


def test_interrupts_and_children_work_as_on_any_machine(
    supervisor: SupervisorProcess, control: Control
) -> None:
    request = supervisor.launch_request()
    control.request(request)
    with supervisor.client(request) as client:
        assert run_code(client, "!echo from a child").strip() == "from a child"
        pool = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    print(sum(pool.map(abs, range(10))))
"""
        assert run_code(client, pool) == "45\n"
        client.execute("import time; time.sleep(60)")
        time.sleep(0.5)
        control.request(SignalKernel(request.kernel_id, signal.SIGINT))
        reply = client.get_shell_msg(timeout=20)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert run_code(client, "print('alive')") == "alive\n"
    control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
    assert control.next_event().returncode == -9
