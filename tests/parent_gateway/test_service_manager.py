"""What systemd is told, by Type=notify."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from enclave_parent_gateway.service_manager import say_ready
from tests.support.enclave_home import EnclaveHome


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(30)
    return sock


def test_ready(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.getsockname()))
    say_ready()
    assert manager.recv(100) == b"READY=1"
    manager.close()
    # Nobody listens any more, or nobody ever did.
    say_ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    say_ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    say_ready()


def test_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0enclave-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@enclave-test-{os.getpid()}")
        say_ready()
        assert sock.recv(100) == b"READY=1"


def test_up_is_ready_when_kernels_can_be_started(
    own_home: EnclaveHome, manager: socket.socket
) -> None:
    environ = own_home.environ | {"NOTIFY_SOCKET": str(manager.getsockname())}
    with subprocess.Popen(
        own_home.command("up", "--wait"), env=environ, stdout=subprocess.DEVNULL
    ) as up:
        # One from the gateway, which it started, and one from itself.
        assert [manager.recv(100) for _ in range(2)] == [b"READY=1"] * 2
        assert own_home.status()["state"] == "up"
        up.terminate()
        assert up.wait(30) == 0
    manager.close()
