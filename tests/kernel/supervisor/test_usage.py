"""What kernels and vaults use, as the supervisor shows it: in steps, and on a clock."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from enclave_kernel.isolation.control_groups import ControlGroupError, ControlGroups, GroupLimits
from enclave_kernel.supervisor.usage import (
    KERNEL_PERIOD_S,
    VAULT_PERIOD_S,
    KernelMeter,
    UsageClock,
    VaultMeter,
    cpu_step,
    memory_step,
)

_MIB = 2**20
_HOLDER = "import sys; held = bytearray(b'x') * 100_000_000; print(1, flush=True); sys.stdin.read()"


@pytest.fixture
def holder() -> Iterator[int]:
    """Return the pid of a process that holds 100 MB and does nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid


def test_steps_of_memory() -> None:
    assert memory_step(0) == memory_step(64 * _MIB) == 64 * _MIB
    assert memory_step(64 * _MIB + 1) == 128 * _MIB
    assert memory_step(3 * 2**30) == 4 * 2**30
    assert memory_step(2**60) == 2**40


def test_steps_of_processors() -> None:
    assert cpu_step(0) == cpu_step(0.99) == 0
    assert cpu_step(1) == cpu_step(25) == 25
    assert cpu_step(26) == 50 and cpu_step(101) == 200
    assert cpu_step(1e9) == 25 * 2**10


def test_what_a_vault_can_tell_with_its_use() -> None:
    """The number that docs/decisions/usage_of_vaults.md names: a quarter of a bit each second."""
    memory = {memory_step(size * _MIB) for size in range(1, 2**20, 61)}
    processors = {cpu_step(percent / 2) for percent in range(60_000)}
    bits = math.log2(len(memory) * len(processors))
    assert bits / VAULT_PERIOD_S < 0.27


def test_a_kernel_is_shown_in_steps_of_16_mib(holder: int) -> None:
    meter = KernelMeter(holder, None)
    assert meter.seen is None
    meter.look()
    seen = meter.seen
    assert seen is not None and seen.memory_bytes % (16 * _MIB) == 0
    assert 100_000_000 < seen.memory_bytes < 160_000_000
    assert seen.cpu_s is not None and seen.cpu_s > 0


def test_a_vault_is_shown_in_steps_from_its_second_look_on(holder: int) -> None:
    meter = VaultMeter(holder, None)
    meter.look()
    # Who loads a package right before a look would see how it begins.
    assert meter.seen is None
    meter.look()
    assert meter.seen is not None
    assert (meter.seen.memory_bytes, meter.seen.cpu_percent) == (128 * _MIB, 0)
    assert meter.seen.cpu_s is None


class _Watched:
    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> None:
        self.looks += 1


async def test_vaults_are_looked_at_less_often_and_never_on_demand() -> None:
    kernel, vault, asked = _Watched(), _Watched(), 0

    def vaults() -> list[_Watched]:
        nonlocal asked
        asked += 1
        return [vault]

    clock = UsageClock(lambda: [kernel], vaults, period_s=0.01)
    running = asyncio.create_task(clock.run())
    every = round(VAULT_PERIOD_S / KERNEL_PERIOD_S)
    assert every == 6
    while kernel.looks < 3 * every:
        await asyncio.sleep(0.005)
    running.cancel()
    assert vault.looks == asked == kernel.looks // every == 3


def test_many_that_are_in_groups_take_no_time(holder: int) -> None:
    """256 kernels in an enclave, whose groups do not tell of processors (version 1)."""
    try:
        groups = ControlGroups(f"enclave-test-{os.getpid()}", GroupLimits(2**30))
    except ControlGroupError as error:
        pytest.skip(str(error))
    group = groups.create("one")
    try:
        group.add(holder)
        meters = [KernelMeter(holder, group) for _ in range(256)]
        began = time.process_time()
        for meter in meters:
            meter.look()
        took_s = time.process_time() - began
        assert meters[0].seen is not None and meters[0].seen.cpu_s is not None
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
        group.remove()
        groups.close()
    # Of the 5 s between two looks; a look through all of /proc for each would take seconds.
    assert took_s < 0.5
