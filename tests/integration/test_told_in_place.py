"""A cell that runs when the enclave dies ends where it is, and whoever waits for it goes on.

With the gateway that started the kernel, and with one that was started again in between.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enclave_parent_gateway.backends.gateway_daemon import spawn_gateway
from enclave_parent_gateway.enclave_state import EnclaveState, read_state, write_state
from enclave_parent_gateway.last_word import ERROR_NAME
from enclave_parent_gateway.process_identity import stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.notebook_cells import finish_cell, start_cell, unasked

_TOLD_WITHIN_S = 2.0
_ENDED = "The enclave has ended, and with it this kernel and its variables"


def _one_cell(code: str) -> str:
    cell = {"cell_type": "code", "id": "one", "source": code, "metadata": {}, "outputs": []}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    return json.dumps(notebook | {"cells": [cell | {"execution_count": None}]})


def _restart_gateway(home: EnclaveHome) -> None:
    """Kill the gateway, and start another as `enclave up` does for an enclave without one."""
    before = home.status()["pids"]["gateway"]
    kernels = len(home.status()["kernels"])
    os.kill(before, signal.SIGKILL)
    assert home.run("up").returncode == 0
    now = home.status()
    assert now["pids"]["gateway"] != before
    assert len(now["kernels"]) == kernels


def _kill_enclave(home: EnclaveHome) -> None:
    os.kill(home.status()["pids"]["supervisor"], signal.SIGKILL)


@pytest.mark.parametrize("restarted", [False, True], ids=["same gateway", "another gateway"])
def test_a_running_cell_and_those_behind_it_end(up: EnclaveHome, restarted: bool) -> None:
    with kernel() as (manager, client):
        running = start_cell(client, "import time; time.sleep(300)")
        waiting = client.execute("print('never')")
        if restarted:
            _restart_gateway(up)
            assert manager.is_alive()
        pid = up.status()["pids"]["supervisor"]
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        ended: dict[str, list[str]] = {running: [], waiting: []}
        while not all(kinds[-1:] == ["idle"] for kinds in ended.values()):
            message = client.get_iopub_msg(timeout=began + _TOLD_WITHIN_S - time.monotonic())
            kinds = ended.get(message["parent_header"].get("msg_id", ""))
            if kinds is not None:
                state = message["content"].get("execution_state")
                kinds.append(state or message["msg_type"])
        assert [kinds.count("error") for kinds in ended.values()] == [1, 1]
        replies: dict[str, dict[str, Any]] = {}
        while len(replies) < 2:
            reply = client.get_shell_msg(timeout=1)
            replies[reply["parent_header"]["msg_id"]] = reply["content"]
        for request in (running, waiting):
            assert replies[request]["status"] == "error"
            assert replies[request]["ename"] == ERROR_NAME
            assert replies[request]["evalue"].startswith(_ENDED)
            assert "enclave up" in replies[request]["evalue"]
        assert wait_until(lambda: not manager.is_alive(), 2)
        assert manager.reason == "the enclave ended"  # type: ignore[attr-defined]
        assert run_code(client, "1").startswith(f"{ERROR_NAME}: {_ENDED}")


def test_after_a_restart_of_the_gateway_every_notebook_is_told(up: EnclaveHome) -> None:
    with kernel() as (_, one), kernel() as (_, other):
        run_code(one, "x = 1")
        _restart_gateway(up)
        assert run_code(one, "print(x)") == "1\n"
        assert run_code(other, "print(2)") == "2\n"
        pid = up.status()["pids"]["supervisor"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _TOLD_WITHIN_S
        for client in (one, other):
            assert _ENDED in unasked(client, deadline), up.run("logs").stdout
        assert "the enclave has ended; 2 notebooks are told" in up.run("logs").stdout


def test_what_has_ended_before_is_not_answered_again(up: EnclaveHome) -> None:
    with kernel() as (_, client):
        for number in range(3):
            assert run_code(client, f"print({number})") == f"{number}\n"
        finish_cell(client, client.execute("1 / 0\n"))
        # Refused by the kernel itself, being behind an error.
        first, second = client.execute("1 / 0"), client.execute("2")
        answered = {client.get_shell_msg(timeout=10)["parent_header"]["msg_id"] for _ in range(2)}
        assert answered == {first, second}
        time.sleep(0.3)
        _kill_enclave(up)
        assert _ENDED in unasked(client, time.monotonic() + 4)
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=1)


# Another notebook's client, its session, and a cell that this one has long been answered.
_LIE = """
from enclave_kernel.session_messages import CellsPending, encode
from enclave_protocol.messages import PendingCell

link = get_ipython().kernel.supervisor_link
lie = CellsPending((PendingCell(({identity!r},), {message_id!r}, {session!r}),))
get_ipython().kernel._cells.link = None
for _ in range(5000):
    link.send(encode(CellsPending(())))
    link.send(encode(lie))
print("said")
"""


def test_a_notebook_lies_about_its_own_cells_only(up: EnclaveHome) -> None:
    with kernel() as (_, victim), kernel() as (_, liar):
        request = victim.execute("1")
        assert finish_cell(victim, request).error is None
        session = victim.session
        lie = {"identity": session.bsession, "message_id": request, "session": session.session}
        assert run_code(liar, _LIE.format(**lie)) == "said\n"
        assert run_code(victim, "print(2)") == "2\n"
        while victim.shell_channel.msg_ready():
            victim.get_shell_msg(timeout=1)
        time.sleep(0.2)
        _kill_enclave(up)
        assert _ENDED in unasked(victim, time.monotonic() + 4)
        with pytest.raises(queue.Empty):
            victim.get_shell_msg(timeout=1)


@pytest.mark.parametrize("restarted", [False, True], ids=["same gateway", "another gateway"])
def test_nbclient_ends_with_the_reason(up: EnclaveHome, restarted: bool, tmp_path: Path) -> None:
    """What nbconvert and papermill run notebooks with."""
    sign = tmp_path / "runs"
    code = f"open({str(sign)!r}, 'w').close()\nimport time; time.sleep(300)"
    path = tmp_path / "long.ipynb"
    path.write_text(_one_cell(code))
    client = (
        "import nbformat, sys; from nbclient import NotebookClient;"
        "NotebookClient(nbformat.read(sys.argv[1], 4), kernel_name='enclave', timeout=None,"
        f"resources={{'metadata': {{'path': {str(tmp_path)!r}}}}}).execute()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", client, str(path)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert wait_until(sign.exists, 60)
        if restarted:
            _restart_gateway(up)
        _kill_enclave(up)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"{ERROR_NAME}: {_ENDED}" in said


def test_nbconvert_ends_with_the_reason(up: EnclaveHome, tmp_path: Path) -> None:
    pytest.importorskip("nbconvert", reason="comes with: pip install -e '.[demo]'")
    sign = tmp_path / "runs"
    code = f"open({str(sign)!r}, 'w').close()\nimport time; time.sleep(300)"
    path = tmp_path / "long.ipynb"
    path.write_text(_one_cell(code))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(path)]
    command += ["--ExecutePreprocessor.kernel_name=enclave", "--ExecutePreprocessor.timeout=-1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(sign.exists, 60)
        _kill_enclave(up)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.rstrip().endswith("restart the kernel.")
    assert f"{ERROR_NAME}: {_ENDED}" in said


def test_the_gateway_dies_with_the_enclave_and_comes_back_alone(up: EnclaveHome) -> None:
    """As systemd does it: the next gateway finds no enclave, and the notebooks' keys."""
    with kernel() as (_, client):
        run_code(client, "x = 1")
        state = read_state(up.runtime / "enclave.json")
        assert state is not None
        os.kill(state.processes["gateway"].pid, signal.SIGKILL)
        os.kill(state.processes["supervisor"].pid, signal.SIGKILL)
        paths = EnclavePaths(up.runtime, up.runtime / "state")
        gateway = spawn_gateway(paths, state, 0.0)
        write_state(up.runtime / "enclave.json", state.with_process("gateway", gateway.identity))
        assert _ENDED in unasked(client, time.monotonic() + 5), up.run("logs").stdout


def test_a_gateway_whose_enclave_is_not_up_yet_tells_nobody(own_home: EnclaveHome) -> None:
    paths = EnclavePaths.at(own_home.runtime, own_home.runtime / "state")
    booting = EnclaveState("local", time.time(), f"unix:{own_home.runtime}/enclave.sock")
    gateway = spawn_gateway(paths, booting, 0.0)
    try:
        log = paths.log("gateway")
        assert wait_until(lambda: "no enclave has answered yet" in log.read_text(), 10)
        assert "notebooks are told" not in log.read_text()
        assert "the enclave has ended" not in log.read_text()
    finally:
        stop_process(gateway.identity, grace_s=5)


def test_keys_are_this_users_and_go_with_the_kernel(up: EnclaveHome) -> None:
    with kernel() as (_, client):
        (file,) = (up.runtime / "k").glob("*.voice")
        assert file.stat().st_mode & 0o777 == 0o600
        assert client.session.key in file.read_bytes()
        gateway_log = (up.runtime / "log" / "gateway.log").read_bytes()
        assert client.session.key not in gateway_log
        _restart_gateway(up)
        assert file.exists()
    assert not list((up.runtime / "k").glob("*.voice*"))


def test_nothing_is_made_of_a_damaged_file(up: EnclaveHome) -> None:
    with kernel() as (_, client):
        run_code(client, "x = 1")
        (file,) = (up.runtime / "k").glob("*.voice")
        file.write_bytes(b"\xc1" + file.read_bytes()[:40])
        _restart_gateway(up)
        assert run_code(client, "print(x)") == "1\n"
        assert not file.exists()
