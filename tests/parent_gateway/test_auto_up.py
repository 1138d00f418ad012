import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from enclave_parent_gateway.auto_up import ensure_up
from enclave_parent_gateway.errors import EnclaveNotRunningError, EnclaveStartError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.process_ids import kernel_pid

_TWO_KERNELS = """
import asyncio
from jupyter_client.manager import start_new_async_kernel
async def one():
    manager, client = await start_new_async_kernel(kernel_name="enclave")
    client.stop_channels()
    return await manager.is_alive()
async def main():
    print(await asyncio.gather(one(), one()))
asyncio.run(main())
"""


def test_kernels_at_once_get_one_enclave(own_home: EnclaveHome) -> None:
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_KERNELS],
            env=own_home.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [server.communicate(timeout=90)[0] for server in servers] == ["[True, True]\n"] * 3
    supervisors = [
        line for line in own_home.processes().values() if "-m enclave_kernel --listen" in line
    ]
    assert len(supervisors) == 1
    status = own_home.status()
    assert len(status["kernels"]) == 6
    assert status["idle_timeout_s"] == 300


def test_after_down_the_kernel_is_dead_and_the_next_start_works(own_home: EnclaveHome) -> None:
    with kernel() as (manager, client):
        pid = kernel_pid(client)
        child = kernel_pid(client, "__import__('subprocess').Popen(['sleep', '300']).pid")
        status = own_home.status()
        assert own_home.run("down").returncode == 0
        assert not own_home.processes()
        for each in (pid, child, *status["pids"].values()):
            assert wait_until(lambda each=each: not Path(f"/proc/{each}").exists(), 5), each
        assert not manager.is_alive()
        manager.interrupt_kernel()
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert run_code(client, "print('up again')") == "up again\n"


def test_a_supervisor_that_died_is_replaced(own_home: EnclaveHome) -> None:
    with kernel() as (manager, client):
        pid = kernel_pid(client)
        os.kill(own_home.status()["pids"]["supervisor"], signal.SIGKILL)
        assert wait_until(lambda: not manager.is_alive())
        assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
        broken = own_home.run("status")
        assert broken.returncode == 3
        assert "does not answer" in broken.stdout
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert run_code(client, "print('back')") == "back\n"


def test_another_backend_is_not_started(
    own_home: EnclaveHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCLAVE_BACKEND", "nitro")
    manager = KernelManager(kernel_name="enclave")
    with pytest.raises(EnclaveNotRunningError, match="enclave up --backend nitro") as caught:
        manager.start_kernel()
    assert "\n" not in str(caught.value)
    assert not own_home.processes()


def test_a_failed_start_is_one_line(own_home: EnclaveHome, monkeypatch: pytest.MonkeyPatch) -> None:
    # The durable state cannot be made: a file is in its place.
    own_home.runtime.mkdir(mode=0o700)
    monkeypatch.setenv("ENCLAVE_STATE_DIR", "/dev/null/state")
    with pytest.raises(Exception, match="/dev/null/state cannot be made") as caught:
        KernelManager(kernel_name="enclave").start_kernel()
    assert "\n" not in str(caught.value)
    assert not own_home.processes()


async def test_who_only_looks_starts_no_enclave(own_home: EnclaveHome) -> None:
    """A notebook's server that polls its kernel while `enclave down` runs."""
    paths = EnclavePaths.from_environment()
    with pytest.raises(EnclaveStartError, match="the enclave has ended"):
        await ensure_up(paths, idle_timeout_s=5, revive=True)
    assert not own_home.processes()
