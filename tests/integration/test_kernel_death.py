"""A kernel that needs more memory than it may have ends alone, and is told apart in the logs."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from traitlets.config import Config

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.notebook_cells import run_cell

_LIMIT_MIB = 256
_REASON = f"was ended because it needed more than its {_LIMIT_MIB} MiB of memory"
_ALLOCATE = "kept = []\nwhile True:\n    kept.append(bytearray(4_000_000))"


def _memory_groups_usable() -> bool:
    """Say whether this process may make memory control groups, by making one."""
    root = Path("/sys/fs/cgroup")
    if (root / "memory" / "memory.limit_in_bytes").exists():
        probe = root / "memory" / f"probe-{os.getpid()}"
    elif "memory" in (root / "cgroup.controllers").read_text().split():
        probe = root / f"probe-{os.getpid()}"
    else:
        return False
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


@pytest.fixture
def limited(own_home: EnclaveHome) -> Iterator[EnclaveHome]:
    """An enclave whose kernels may use 256 MiB each."""
    if not _memory_groups_usable():
        pytest.skip("this user may make no memory control groups here (root can)")
    result = own_home.run("up", "--memory", str(_LIMIT_MIB))
    assert result.returncode == 0, result.stderr
    supervisor = str(own_home.status()["pids"]["supervisor"])
    yield own_home
    assert own_home.run("down").returncode == 0
    groups = [
        *Path("/sys/fs/cgroup").glob("enclave-*"),
        *Path("/sys/fs/cgroup").glob("*/enclave-*"),
    ]
    # Those of enclaves that run now may be there, and of ones that tests killed and whose
    # successor has not swept them away yet; none of this enclave's.
    assert not [group for group in groups if group.name.split("-")[1] == supervisor], groups


def test_only_the_kernel_that_needs_too_much_dies(limited: EnclaveHome) -> None:
    assert "memory limit per kernel" in limited.status()["isolation"]
    with kernel() as (greedy, client), kernel() as (other, other_client):
        run_code(other_client, "x = 5")
        client.execute(_ALLOCATE)
        assert wait_until(lambda: not greedy.is_alive(), 30)
        assert greedy.provisioner is not None
        assert asyncio.run(greedy.provisioner.poll()) == -9
        logged = limited.run("logs").stdout.splitlines()
        assert len([line for line in logged if line.endswith(_REASON)]) == 2  # of both processes

        assert other.is_alive()
        assert run_code(other_client, "print(x)") == "5\n"
        # It may use what it has, and more than the other one left over.
        use = f"print(len(bytearray({_LIMIT_MIB // 2} * 2**20)))"
        assert run_code(other_client, use) == f"{_LIMIT_MIB // 2 * 2**20}\n"

        greedy.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert run_code(client, "kept") == "NameError: name 'kept' is not defined"


def test_what_a_kernel_starts_counts_and_dies_first(limited: EnclaveHome) -> None:
    with kernel() as (_, client):
        child = f"b = [bytearray(2**20) for _ in range(2 * {_LIMIT_MIB})]"
        command = f"[sys.executable, '-c', {child!r}]"
        code = f"import subprocess, sys\nprint(subprocess.run({command}).returncode)"
        assert run_code(client, code) == "-9\n"
        assert run_code(client, "print('alive')") == "alive\n"


async def test_jupyter_starts_a_fresh_kernel(limited: EnclaveHome) -> None:
    config = Config({"AsyncIOLoopKernelRestarter": {"time_to_dead": 0.3}})
    manager = AsyncIOLoopKernelManager(kernel_name="enclave", config=config)
    restarted = asyncio.Event()
    await manager.start_kernel()
    manager.add_restart_callback(restarted.set)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        # At once: Jupyter asks for new ports for a kernel that dies in its first 10 s, and the
        # client must not be left behind.
        client.execute(_ALLOCATE)
        await asyncio.wait_for(restarted.wait(), 30)
        await client.wait_for_ready(timeout=30)
        reply = await client.execute("kept", reply=True, timeout=30)
        assert reply["content"]["ename"] == "NameError"
        assert reply["content"]["execution_count"] == 1
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


def test_a_cell_that_stays_within_the_limit(limited: EnclaveHome) -> None:
    with kernel() as (manager, client):
        for _ in range(10):
            cell = run_cell(client, f"big = bytearray({_LIMIT_MIB // 2} * 2**20); del big")
            assert cell.error is None
        assert manager.is_alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_the_right_to_limit_memory_nothing_starts(own_home: EnclaveHome) -> None:
    uid = 65534
    probe = [sys.executable, "-I", "-c", "import enclave_kernel"]
    if subprocess.run(probe, user=uid, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("other users cannot read this environment")
    for folder in (own_home.root, own_home.root / "share"):
        os.chown(folder, uid, uid)
    up = subprocess.run(
        own_home.command("up", "--memory", str(_LIMIT_MIB)),
        env=own_home.environ | {"HOME": str(own_home.root)},
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert up.returncode == 1
    assert up.stderr.count("\n") == 1
    assert "no memory control group can be made in /sys/fs/cgroup: Permission denied" in up.stderr
    assert "start the enclave as root, or without a memory limit" in up.stderr
    assert not own_home.processes()
    # For the clean-up by root.
    os.chown(own_home.runtime, 0, 0)


def test_the_limit_is_explained(own_home: EnclaveHome) -> None:
    printed = " ".join(own_home.run("up", "--help").stdout.split())
    assert "--memory MIB" in printed
    assert "each kernel" in printed and "is ended" in printed and "no limit" in printed
