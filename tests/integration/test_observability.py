"""What the parent is told of a real enclave with kernels and a package: status, metrics, logs."""

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from prometheus_client.parser import text_string_to_metric_families

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.grader_package import publish_grader
from tests.support.local_services import HOST_CREDENTIALS
from tests.support.notebook_cells import finish_cell, one_line, run_cell, start_cell
from tests.support.package_owner import PackageOwner, open_folder
from tests.support.vault_link import ROOT

_MIB = 2**20


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    """A folder with a package that opens, and one that KMS refuses."""
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        publish_grader(owner, owner.new_key(status["pcrs"]["0"]), folder / "grader.encrypted")
        publish_grader(owner, owner.new_key("ab" * 48), folder / "refused.encrypted")
        yield folder


def _metrics(home: EnclaveHome) -> dict[tuple[str, ...], float]:
    """Scrape as Prometheus would through socat; return the samples by name and label values."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(home.runtime / "metrics.sock"))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    families = text_string_to_metric_families(body.decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def _usage(manager: KernelManager) -> dict[str, Any]:
    """Ask as jupyter-resource-usage's KernelUsageHandler does, which JupyterLab's panel asks."""
    # Of its own, as a notebook's page has: a client that connects under the name of another takes
    # its connections over, and `stop_channels` connects what never was.
    session = Session(key=manager.session.key, signature_scheme=manager.session.signature_scheme)
    client = manager.client(session=session)
    channel = client.control_channel
    request = client.session.msg("usage_request", {})
    channel.send(request)
    try:
        assert channel.socket is not None and channel.socket.poll(10_000)
        reply = channel.get_msg(timeout=0)
    finally:
        client.stop_channels()
    assert reply["msg_type"] == "usage_reply"
    assert reply["parent_header"]["msg_id"] == request["header"]["msg_id"]
    content: dict[str, Any] = reply["content"]
    return content


def _own(home: EnclaveHome, manager: KernelManager) -> dict[str, Any]:
    kernels = home.status()["kernels"]
    assert manager.kernel_id is not None
    (mine,) = (each for each in kernels if each["kernel_id"].startswith(manager.kernel_id[:8]))
    return dict(mine)


def test_status_of_a_kernel_and_its_vault(enclave: EnclaveHome, folder: Path) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        assert run_cell(client, "%load_encrypted grader.encrypted").error is None
        code = "import time\nheld = bytearray(b'x') * 200_000_000\nprint(len('x' * 300_000) * 'x')"
        run_cell(client, code)
        enough = 200_000_000
        assert wait_until(lambda: (_own(enclave, manager)["memory_bytes"] or 0) > enough, 15)
        report = enclave.status()
        jsonschema.validate(report, json.loads((ROOT / "docs/status.schema.json").read_bytes()))
        mine = _own(enclave, manager)
        (vault,) = mine["vaults"]
        assert set(vault) == {
            *("package", "version", "walled", "uptime_s", "memory_bytes", "cpu_percent")
        }
        assert (vault["package"], vault["version"]) == ("grader", "1.4")
        assert vault["walled"] is mine["walled"] is (os.geteuid() == 0)
        assert report["vault_count"] >= 1 and report["counts"]["loads"] >= 1
        assert (
            enough < mine["memory_bytes"] < 600_000_000 and mine["memory_bytes"] % (16 * _MIB) == 0
        )
        assert mine["cpu_s"] > 0 and mine["cpu_percent"] >= 0 and mine["uptime_s"] > 0
        assert set(mine["channels"]) == {"shell", "iopub", "stdin", "control", "hb"}
        assert mine["channels"]["iopub"]["bytes_from_kernel"] > 300_000
        assert mine["channels"]["shell"]["bytes_to_kernel"] > 0
        shown = enclave.run("status").stdout
        assert f"PCR0        {report['pcrs']['0']} (as expected)" in shown
        row = next(line for line in shown.splitlines() if "grader 1.4" in line)
        assert "stand" in row or os.geteuid() != 0
        assert "proxy       allows kms;" in shown
        run_cell(client, "%unload_encrypted grader")
        assert wait_until(lambda: _own(enclave, manager)["vaults"] == [])


def test_metrics_count_what_was_done(enclave: EnclaveHome, folder: Path) -> None:
    before = _metrics(enclave)
    assert before[("enclave_up",)] == 1
    with kernel(cwd=str(folder)) as (_, client):
        during = _metrics(enclave)
        assert during[("enclave_kernels",)] == before[("enclave_kernels",)] + 1
        assert run_cell(client, "%load_encrypted grader.encrypted").error is None
        line = one_line(run_cell(client, "%load_encrypted refused.encrypted"))
        assert line.startswith("KeyReleaseDeniedError")
        run_code(client, "print('x' * 100_000)")
        if os.geteuid() == 0:
            run_code(client, "import urllib.request as u; u.urlopen('http://denied.example/')")
        after = _metrics(enclave)
        assert after[("enclave_vaults",)] == before[("enclave_vaults",)] + 1

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grown("enclave_package_loads_total") == 1
    assert grown("enclave_package_refusals_total", "KeyReleaseDeniedError") == 1
    assert grown("enclave_kms_release_seconds_count") == 2
    assert grown("enclave_kms_release_seconds_bucket", "+Inf") == 2
    assert 0 < grown("enclave_kms_release_seconds_sum") < 60
    assert grown("enclave_channel_bytes_total", "iopub", "from_kernel") > 100_000
    assert grown("enclave_channel_bytes_total", "shell", "to_kernel") > 0
    assert grown("enclave_streams_opened_total", "iopub") >= 1
    if os.geteuid() == 0:
        assert grown("enclave_egress_connections_total", "denied") == 1
        assert grown("enclave_streams_opened_total", "egress") >= 1
    # The kernel's counts stay when it is gone.
    assert wait_until(lambda: _metrics(enclave)[("enclave_kernels",)] == before["enclave_kernels",])
    last = _metrics(enclave)
    for key in (key for key in after if key[0].endswith("_total")):
        assert last[key] >= after[key]
    printed = enclave.run("metrics").stdout
    assert {line.split(" ")[0].partition("{")[0] for line in printed.splitlines()} > {"enclave_up"}


def test_the_usage_panel_of_jupyterlab(enclave: EnclaveHome) -> None:
    with kernel() as (manager, client):
        before = _usage(manager)
        hold = "import subprocess, sys; held = bytearray(b'x') * 200_000_000"
        assert run_cell(client, hold).error is None
        child = "c = subprocess.Popen([sys.executable, '-c', 'h = bytearray(b\"x\") * 100_000_000;"
        child += " print(1, flush=True); input()'], stdin=-1, stdout=-1); c.stdout.readline()"
        assert run_cell(client, child).error is None
        _usage(manager)  # the processor's share is counted from here
        # The panel asks while a cell runs, too.
        spin = "import time\nt = time.time()\nwhile time.time() - t < 3: pass"
        request = start_cell(client, spin)
        time.sleep(1.5)
        busy = _usage(manager)
        assert finish_cell(client, request).error is None
        assert busy["kernel_memory"] - before["kernel_memory"] > 290_000_000
        assert 20 < busy["kernel_cpu"] < 400
        assert 0 <= busy["host_cpu_percent"] <= 100
        assert busy["cpu_count"] == os.cpu_count()
        memory = busy["host_virtual_memory"]
        assert memory["total"] > memory["available"] > 0 and 0 < memory["percent"] < 100
        # The panel takes an empty name for a kernel without an answer.
        assert busy["hostname"] == "enclave"
        assert socket.gethostname() not in json.dumps(busy)
        assert str(busy["pid"]) == run_code(client, "import os; print(os.getpid())").strip()
        run_cell(client, "c.communicate()")


def _secrets(manager: KernelManager, client: BlockingKernelClient) -> dict[str, str]:
    info = client.get_connection_info()
    keys = {name: info[name] for name in ("key", "curve_secretkey", "curve_publickey")}
    found = {name: key.decode() if isinstance(key, bytes) else key for name, key in keys.items()}
    return found | {
        "credentials": HOST_CREDENTIALS.secret_access_key,
        "source": "Not for the user's eyes",
        "variable": "canary-of-the-user",
        "file": "own-name-of-a-file",
    }


def test_no_secret_is_in_what_the_parent_is_told(enclave: EnclaveHome, folder: Path) -> None:
    copy = folder / "own-name-of-a-file.encrypted"
    copy.write_bytes((folder / "refused.encrypted").read_bytes())
    with kernel(cwd=str(folder)) as (manager, client):
        secrets = _secrets(manager, client)
        assert all(len(secret) >= 16 for secret in secrets.values())
        run_cell(client, "canary = 'canary-of-the-user'; print(canary)")
        assert run_cell(client, "%load_encrypted grader.encrypted").error is None
        run_cell(client, "grader.mean([canary])")
        one_line(run_cell(client, "%load_encrypted own-name-of-a-file.encrypted"))
        run_cell(client, "import logging, sys; logging.error(canary)")
        run_cell(client, "print(canary, file=sys.stderr)")
        _usage(manager)
        commands = (
            *(("status",), ("status", "--json"), ("metrics",), ("logs",), ("logs", "--json")),
            *(("proxy", "list", "--json"), ("proxy", "log", "--json")),
        )
        told = {" ".join(command): enclave.run(*command).stdout for command in commands}
        for path in (enclave.runtime / "log").iterdir():
            told[path.name] = path.read_text(errors="replace")
        raw = (enclave.runtime / "gateway.key").read_bytes()
        secrets |= {"gateway's key": raw.hex(), "the same": base64.b64encode(raw).decode()}
    refused = [line for line in told["logs --json"].splitlines() if '"refused"' in line]
    assert json.loads(refused[-1])["fields"]["kind"] == "KeyReleaseDeniedError"
    assert "loaded a package" in told["supervisor.log"] and "grader" in told["status"]
    for name, secret in secrets.items():
        assert [place for place, text in told.items() if secret in text] == [], name


def test_every_line_of_the_logs_is_json(enclave: EnclaveHome) -> None:
    with kernel():
        pass
    for name in ("supervisor", "gateway"):
        lines = (enclave.runtime / "log" / f"{name}.log").read_text().splitlines()
        assert lines
        for line in lines:
            assert {"time", "level", "logger", "message"} <= set(json.loads(line))
    events = [json.loads(line) for line in enclave.run("logs", "--json").stdout.splitlines()]
    assert {"started", "ended"} <= {each.get("fields", {}).get("event") for each in events}
