"""Control groups as the kernel applies them. As root, where the system has them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from enclave_kernel.isolation.control_groups import ControlGroupError, ControlGroups, GroupLimits

LIMIT = 64 * 2**20


@pytest.fixture
def groups() -> Iterator[ControlGroups]:
    try:
        made = ControlGroups(
            f"enclave-test-{os.getpid()}", GroupLimits(LIMIT, tasks=20, devices=True)
        )
    except ControlGroupError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def run_inside(groups: ControlGroups, code: str) -> tuple[subprocess.CompletedProcess[str], bool]:
    group = groups.create("one")
    command = [sys.executable, "-I", "-S", "-c", f"input(); {code}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        group.add(process.pid)
        output, errors = process.communicate("\n", timeout=30)
    over = group.killed_for_memory()
    group.remove()
    completed = subprocess.CompletedProcess(command, process.returncode, output, errors)
    return completed, over


def test_the_most_memory_it_had(groups: ControlGroups) -> None:
    group = groups.create("peak")
    code = f"input(); x = b'x' * {LIMIT // 2}; del x"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, text=True
    ) as process:
        group.add(process.pid)
        process.communicate("\n", timeout=30)
    peak = group.peak_bytes()
    group.remove()
    # Version 2 keeps it since Linux 5.19.
    assert peak is None or LIMIT // 2 < peak <= LIMIT


def test_one_that_needs_too_much_memory_is_killed_and_that_is_known(groups: ControlGroups) -> None:
    for size, returncode in ((LIMIT // 4, 0), (LIMIT * 2, -9)):
        completed, over = run_inside(groups, f"x = b'x' * {size}")
        assert (completed.returncode, over) == (returncode, returncode != 0)


def test_a_fork_bomb_ends_at_the_limit(groups: ControlGroups) -> None:
    code = """
import os, signal, time
made = []
try:
    while len(made) < 100:
        pid = os.fork()
        if not pid: time.sleep(60)
        made.append(pid)
except BlockingIOError:
    print(len(made), flush=True)
for pid in made: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
"""
    group = groups.create("probe")
    limited = "pids" in group.controllers
    group.remove()
    if not limited:
        pytest.skip("no pids controller")
    completed, _ = run_inside(groups, f"exec({code!r})")
    assert completed.stdout.strip() == "19"


def test_only_harmless_devices_open(groups: ControlGroups) -> None:
    group = groups.create("probe")
    limited = "devices" in group.controllers
    group.remove()
    if not limited:
        pytest.skip("no devices controller of version 1")
    code = "[open('/dev/' + n, 'rb').close() for n in ('null','zero','full','random','urandom')]"
    completed, _ = run_inside(groups, code)
    assert completed.returncode == 0, completed.stderr
    completed, _ = run_inside(groups, "open('/dev/kmsg', 'rb')")
    assert "PermissionError" in completed.stderr


def test_a_name_is_there_once(groups: ControlGroups) -> None:
    group = groups.create("one")
    with pytest.raises(FileExistsError):
        groups.create("one")
    group.remove()
    groups.create("one").remove()


def test_what_its_processes_use(groups: ControlGroups) -> None:
    code = """
import os, time
input()
held = bytearray(b'x') * 40_000_000
pid = os.fork()
until = time.process_time() + 0.3
while time.process_time() < until: pass
if pid: print(pid, flush=True); input(); os.waitpid(pid, 0)
else: time.sleep(60)
"""
    group = groups.create("used")
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert (group.pids(), group.memory_bytes()) == ((), 0)
        group.add(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        pids, memory, seconds = group.pids(), group.memory_bytes(), group.cpu_seconds()
        os.kill(child, signal.SIGKILL)
        process.communicate("\n", timeout=30)
    group.remove()
    assert set(pids) == {process.pid, child}
    # What both share counts once.
    assert memory is not None and 40_000_000 <= memory < 60_000_000
    # Version 1 does not tell: whoever asks adds up what the processes have.
    assert seconds is None or 0.5 < seconds < 5
    assert group.pids() == () and group.memory_bytes() is None
