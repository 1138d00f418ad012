"""THREATS E.18: the Jupyter layer, from outside and from a notebook."""

import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from enclave_protocol.messages import KernelLaunched, LaunchKernel, SignalKernel
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import NotebookPlace, achieved
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.notebook_cells import run_cell, vault_pids
from tests.support.supervisor_process import Refused


@needs_root
@pytest.mark.parametrize("key", [b"", b"k" * 31])
def test_j01_no_kernel_without_signatures(modern: Arena, key: bytes) -> None:
    raw = msgspec.to_builtins(modern.supervisor.launch_request(), builtin_types=(bytes,))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(raw | {"key": key}, LaunchKernel)
    request = modern.supervisor.launch_request()
    for option in (
        "--Session.key=",
        "--Session.signature_scheme=none",
        "--Session.keyfile=/dev/null",
    ):
        hostile = msgspec.structs.replace(request, arguments=(option,))
        with modern.supervisor.control() as control, pytest.raises(Refused):
            control.request(hostile)


@needs_root
def test_j02_v06_forged_and_repeated_messages(modern: Arena) -> None:
    with modern.supervisor.control() as control:
        request = modern.supervisor.launch_request()
        assert isinstance(control.request(request), KernelLaunched)
        with modern.supervisor.client(request) as honest:
            run_code(honest, "count = 0")
            honest.execute("count += 1")
            assert wait_until(lambda: run_code(honest, "print(count)").strip() == "1", 30)
            # Without the key.
            forged = _client_of(honest, key=b"another key of the same length..")
            forged.execute("count += 100")
            # The same bytes a second time.
            sent: list[Any] = []
            original = honest.session.serialize
            honest.session.serialize = lambda *a, **k: sent.append(original(*a, **k)) or sent[-1]  # type: ignore[func-returns-value]
            honest.execute("count += 1")
            socket: Any = honest.shell_channel.socket
            socket.send_multipart(sent[0])
            time.sleep(1)
            assert run_code(honest, "print(count)").strip() == "2"
            forged.stop_channels()
        control.request(SignalKernel(request.kernel_id, 9))


def _client_of(client: BlockingKernelClient, key: bytes) -> BlockingKernelClient:
    other = BlockingKernelClient()
    info: Any = client.get_connection_info()
    other.load_connection_info(info | {"key": key})
    other.start_channels()
    return other


def test_j03_connection_files(enclave: EnclaveHome) -> None:
    """On the parent, for its owner; so is what the gateway keeps of it. The enclave has none."""
    with kernel() as (manager, client):
        path = Path(manager.connection_file)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        key = client.session.key
        assert key in path.read_bytes()
        holding = [
            found
            for found in enclave.root.rglob("*")
            if found.is_file() and key in found.read_bytes()
        ]
        (voice,) = holding
        assert stat.S_IMODE(voice.stat().st_mode) == 0o600
        assert stat.S_IMODE(voice.parent.stat().st_mode) == 0o700
        for file in (path, voice):
            code = f"import os; print(os.path.exists({str(file)!r}))"
            assert run_code(client, code).strip() == ("True" if os.geteuid() else "False")
    assert wait_until(lambda: not voice.exists())


@needs_root
def test_j04_v04_other_people_on_the_parent(notebook: HostileNotebook, modern: Arena) -> None:
    """No tunnel listens on TCP, and its Unix sockets are for their owner."""
    runtime = notebook.home.runtime
    paths = sorted(str(path) for path in runtime.rglob("*") if path.is_socket())
    assert len(paths) >= 6  # the gateway's, and five channels
    assert achieved(modern.plain(1_980_005).run(attacks.connect_to, paths)) == set()
    assert achieved(modern.plain().run(attacks.connect_to, paths))
    gateway = notebook.home.status()["pids"]["gateway"]
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{gateway}/fd").iterdir()}  # noqa: PTH115
    listening = [
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert not {f"socket:[{inode}]" for inode in listening} & sockets


@needs_root
def test_j05_the_channels_of_another_kernel(user: NotebookPlace, modern: Arena) -> None:
    with modern.another_notebook():
        folder = modern.supervisor.runtime_dir / "k"
        paths = sorted(str(path) for path in folder.iterdir())
        assert len(paths) >= 5
        assert achieved(user.run(attacks.connect_to, paths)) == set()
        assert achieved(modern.plain().run(attacks.connect_to, paths[:1]))


def test_j06_comms(notebook: HostileNotebook) -> None:
    """A hostile comm_open reaches the user's kernel only; the vault knows nothing of comms."""
    session = notebook.client.session
    for target, module in (("os", "os"), ("marked", "subprocess"), ("\x1b[2J", "..")):
        content = {"comm_id": "x" * 32, "target_name": target, "target_module": module, "data": {}}
        notebook.client.shell_channel.send(session.msg("comm_open", content))
    shown = notebook.cell("print(m.predict([1.0]))")
    assert shown.text.strip() == "[2.]" and notebook.clean(shown)
    loaded = notebook.value("m.run('import sys; result = sorted(sys.modules)')")
    assert not {"comm", "ipykernel", "zmq", "IPython"} & set(loaded)


@needs_root
def test_j07_the_debugger(notebook: HostileNotebook, modern: Arena, user: NotebookPlace) -> None:
    """A debugger in the notebook is the user's own; the vault's process is not even there."""
    for pid in (modern.payload_pid, notebook.vault_pid):
        outcome = user.run(attacks.ptrace, pid)
        assert set(outcome.values()) <= {"EPERM", "ESRCH"}
    code = f"import os; print(os.path.exists('/proc/{notebook.vault_pid}/mem'))"
    if notebook.vault_pid > 1000:
        assert notebook.cell(code).text.strip() == "False"


def test_j08_what_requests_tell(notebook: HostileNotebook) -> None:
    client = notebook.client
    requests = [
        *(client.inspect(name, detail_level=1) for name in ("m", "m.predict", "m.Model")),
        *(client.complete(text, len(text)) for text in ("m.", "m.Model.")),
        client.history(raw=False, output=True, hist_access_type="range", start=0, stop=500),
        client.history(raw=True, output=True, hist_access_type="search", pattern="*", n=500),
        client.is_complete("m.predict("),
        client.kernel_info(),
        client.comm_info(),
    ]
    for request in requests:
        assert not notebook.marked.found_in_bytes(str(notebook.ask(request)))


def test_j11_j12_a_restart_ends_vaults(enclave: EnclaveHome, notebook: HostileNotebook) -> None:
    for end in ("restart", "crash"):
        before = vault_pids(enclave)
        manager: KernelManager
        with kernel(cwd=str(notebook.folder)) as (manager, client):
            assert run_cell(client, "%load_encrypted marked.encrypted as m").error is None
            mine = vault_pids(enclave) - before
            assert mine
            if end == "crash":
                client.execute("import os; os._exit(1)")
                assert wait_until(lambda manager=manager: not manager.is_alive(), 30)
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            assert "NameError" in run_code(client, "m.best()")
            assert "No encrypted package is loaded" in run_code(client, "%encrypted")
        # One of those that were there may have been the spare, and another is by now.
        assert wait_until(lambda before=before: len(vault_pids(enclave)) <= len(before), 60)
    assert notebook.value("m.predict([1.0]).tolist()") == [2.0]
