import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from enclave_kernel.process_usage import cpu_seconds, memory_bytes, process_tree

_BUSY = """
import subprocess, sys, time
held = bytearray(b"x") * 50_000_000
until = time.process_time() + 0.5
while time.process_time() < until:
    pass
command = [sys.executable, "-c", "print(1, flush=True); input()"]
child = subprocess.Popen(command, stdin=-1, stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
child.communicate(b"\\n")
"""


@contextmanager
def _busy() -> Iterator[tuple[int, int]]:
    """Yield the pids of a process that used 0.5 s and 50 MB, and of a child of it that sleeps."""
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def test_a_tree_with_what_it_used() -> None:
    with _busy() as (pid, child):
        assert set(process_tree(pid)) == {pid, child}
        assert {pid, child} < set(process_tree(os.getpid()))
        assert 0.45 < cpu_seconds([pid]) < 5
        assert memory_bytes([pid]) > 50_000_000 > memory_bytes([child]) > 1_000_000
        both = memory_bytes([pid, child])
        assert memory_bytes([pid]) < both < memory_bytes([pid]) + 40_000_000


def test_a_process_that_is_gone_uses_nothing() -> None:
    with _busy() as (pid, child):
        pass
    assert process_tree(pid) == (pid,)
    assert cpu_seconds([pid, child]) == 0 and memory_bytes([pid, child]) == 0
