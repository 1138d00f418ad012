import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import enclave_parent_gateway
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until


def test_without_its_extra_one_line_says_what_to_install() -> None:
    command = [sys.executable, "-S", "-m", "enclave_parent_gateway", "--help"]
    path = str(Path(enclave_parent_gateway.__file__).parents[1])
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": path}, timeout=60
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "enclave: there is no module click: pip install 'enclave-kernel[parent]'\n"
    )


def test_up_status_down(own_home: EnclaveHome) -> None:
    before = own_home.run("status")
    assert (before.returncode, before.stdout) == (3, "No enclave is up. Type: enclave up\n")
    assert own_home.status()["state"] == "down"

    first = own_home.run("up")
    assert first.returncode == 0, first.stderr
    last = first.stdout.splitlines()[-2:]
    assert last[1] == "NOT CONFIDENTIAL (local backend)"
    status = own_home.status()
    assert last[0] == f"PCR0 {status['pcrs']['0']}"
    assert len(status["pcrs"]["0"]) == 96
    assert status["state"] == "up"
    assert status["backend"] == "local"
    assert status["confidential"] is False
    assert status["kms_endpoint_url"].startswith("http://127.0.0.1:")
    assert status["kernels"] == []
    assert set(status["pids"]) == {"supervisor", "gateway", "nsm", "cloud"}
    assert status["runtime_dir"] == str(own_home.runtime)
    assert status["uptime_s"] >= 0
    assert status["isolation"]
    assert own_home.run("status").returncode == 0

    second = own_home.run("up")
    assert second.returncode == 0
    assert "was up already" in second.stdout
    assert own_home.status()["pids"] == status["pids"]

    logs = own_home.run("logs").stdout
    assert "gateway    " in logs
    assert "\nenclave_up 1.0\n" in own_home.run("metrics").stdout

    down = own_home.run("down")
    assert down.returncode == 0
    assert down.stdout.splitlines()[-1] == "The enclave is down."
    assert not own_home.processes()
    again = own_home.run("down")
    assert (again.returncode, again.stdout) == (0, "No enclave was up; nothing to do.\n")
    assert not (own_home.runtime / "metrics.sock").exists()
    scrape = own_home.run("metrics")
    assert (scrape.returncode, scrape.stdout) == (1, "") and "type: enclave up" in scrape.stderr


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(
    own_home: EnclaveHome, delay_s: float, signum: signal.Signals
) -> None:
    with subprocess.Popen(
        own_home.command("up"),
        env=own_home.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as up:
        time.sleep(delay_s)
        up.send_signal(signum)
        printed, _ = up.communicate(timeout=30)
    if b"NOT CONFIDENTIAL" in printed:  # it was done before the signal came
        assert own_home.status()["state"] == "up"
    else:
        assert not own_home.processes()
        assert own_home.status()["state"] == "down"


@pytest.mark.parametrize("delay_s", [0.2, 0.4])
def test_down_cleans_up_after_an_up_that_was_killed(own_home: EnclaveHome, delay_s: float) -> None:
    with subprocess.Popen(
        own_home.command("up"), env=own_home.environ, stdout=subprocess.DEVNULL
    ) as up:
        time.sleep(delay_s)
        up.kill()
    assert own_home.run("down").returncode == 0
    assert not own_home.processes()


def test_idle_enclave_goes_down(own_home: EnclaveHome) -> None:
    assert own_home.run("up", "--idle-timeout", "2").returncode == 0
    with kernel() as (_, client):
        time.sleep(3)
        assert run_code(client, "print('busy')") == "busy\n"
    wait_until(lambda: not own_home.processes(), 20)
    assert not own_home.processes(), own_home.run("logs").stdout
    assert own_home.status()["state"] == "down"
    assert "the enclave goes down" in own_home.run("logs").stdout


def test_up_keeps_an_enclave_that_a_notebook_started(own_home: EnclaveHome) -> None:
    with kernel():
        assert own_home.status()["idle_timeout_s"] == 300
        assert own_home.run("up").returncode == 0
        assert own_home.status()["idle_timeout_s"] == 0


def test_a_killed_gateway_comes_back_and_its_kernels_live_on(own_home: EnclaveHome) -> None:
    assert own_home.run("up").returncode == 0
    with kernel() as (manager, client):
        run_code(client, "x = 5")
        os.kill(own_home.status()["pids"]["gateway"], signal.SIGKILL)
        again = own_home.run("up")
        assert again.returncode == 0, again.stderr
        assert manager.is_alive()
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print(x)") == "5\n"


def test_logs_without_an_enclave(own_home: EnclaveHome) -> None:
    result = own_home.run("logs")
    assert result.returncode == 0
    assert "no enclave ran" in result.stdout


def test_logs_follow(own_home: EnclaveHome) -> None:
    assert own_home.run("up").returncode == 0
    with subprocess.Popen(
        own_home.command("logs", "-f"), env=own_home.environ, stdout=subprocess.PIPE, text=True
    ) as follow:
        assert follow.stdout is not None
        with kernel():
            lines = iter(follow.stdout.readline, "")
            assert any("started, pid" in line for line in lines)
        follow.send_signal(signal.SIGINT)
        follow.communicate(timeout=10)
        assert follow.returncode == 0


@pytest.mark.parametrize(
    "command", ["up", "status", "down", "logs", "metrics", "install-kernelspec"]
)
def test_help_has_an_example(own_home: EnclaveHome, command: str) -> None:
    result = own_home.run(command, "--help")
    assert result.returncode == 0
    assert f"enclave {command}" in result.stdout.split("Examples:")[1]


def test_errors_are_one_line(own_home: EnclaveHome, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for directory, text in ((tmp_path, "open to other users"), (tmp_path / ("x" * 90), "too long")):
        result = own_home.run("up", ENCLAVE_RUNTIME_DIR=str(directory))
        assert result.returncode == 1
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


def test_another_backend_than_these_is_not_offered(own_home: EnclaveHome) -> None:
    assert own_home.run("up", "--backend", "cloud").returncode == 2
    assert own_home.run("up", ENCLAVE_BACKEND="cloud").returncode == 2


def test_install_kernelspec(own_home: EnclaveHome, tmp_path: Path) -> None:
    result = own_home.run("install-kernelspec", "--prefix", str(tmp_path))
    assert result.returncode == 0
    folder = tmp_path / "share" / "jupyter" / "kernels" / "enclave"
    assert {"kernel.json", "logo-64x64.png"} <= {file.name for file in folder.iterdir()}
    assert own_home.run("install-kernelspec", "--user", "--sys-prefix").returncode == 2
