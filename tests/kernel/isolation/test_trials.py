"""The trials find what is open: in a child of root's without walls, each of them succeeds."""

import os
import subprocess
import sys

import pytest

_TRY = """
from enclave_kernel.isolation.trials import vault_breaches
print(*vault_breaches(), sep=chr(10))
"""
_OPEN_TO_ROOT = {
    "root can be regained",
    "a device can be made",
    "a packet socket opens",
    "auditing opens",
    "a socket of family AF_UNIX opens",
    "a socket of family AF_INET opens",
    "a program can be started",
    "/proc/sys/kernel/core_pattern is writable",
    "the system call ptrace passes",
    "the system call mount passes",
    "the system call unshare passes",
    "the system call setns passes",
    "the system call process_vm_readv passes",
    "the system call pidfd_getfd passes",
    "the system call open_by_handle_at passes",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="what is open to root")
def test_without_walls_they_find_what_is_open() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _TRY], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(found) >= _OPEN_TO_ROOT
