"""Signals to a held process reach it and nobody else."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from enclave_kernel.held_process import HeldProcess


@pytest.fixture(params=["pidfd", "before-linux-5.3"])
def older(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "pidfd":
        return False

    def missing(_pid: int, _flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    # What the kernel of an enclave answers; redteam/ runs whole vaults under such a kernel's calls.
    monkeypatch.setattr(os, "pidfd_open", missing)
    return True


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print(1, flush=True); "
    command = [sys.executable, "-c", code + "signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        yield process
        process.kill()


def test_it_gets_the_signal(sleeper: "subprocess.Popen[bytes]", older: bool) -> None:
    held = HeldProcess(sleeper.pid)
    held.signal(signal.SIGINT)
    assert sleeper.wait(10) == -signal.SIGINT
    held.close()
    held.close()


def test_whoever_gets_its_pid_does_not(
    sleeper: "subprocess.Popen[bytes]", older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "pass"])
    held = HeldProcess(other.pid)
    other.wait(10)
    # Its pid is another's now.
    monkeypatch.setattr(held, "_pid", sleeper.pid)
    held.signal(signal.SIGINT)
    assert sleeper.poll() is None
    held.close()


def test_a_process_that_is_gone_is_an_error(older: bool) -> None:
    other = subprocess.Popen([sys.executable, "-c", "pass"])
    other.wait(10)
    with pytest.raises(OSError):
        HeldProcess(other.pid)
