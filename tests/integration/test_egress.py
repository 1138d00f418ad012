"""pip, boto3 and requests in a notebook, through the proxy."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from moto.server import ThreadedMotoServer

from enclave_parent_gateway.egress.destination import parse_destination
from enclave_parent_gateway.egress.package_index import package_index_rule
from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.notebook_cells import one_line, run_cell, start_cell
from tests.support.open_gateway import gateway_that_reaches

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only a walled notebook has to use the proxy"
)
PACKAGE = "asn1crypto"
_TIMEOUT_S = 120.0


def _index_addresses() -> list[str]:
    """Return where this machine's package index is; skip the test if it cannot be reached."""
    found: set[str] = set()
    for text in package_index_rule().hosts:
        destination = parse_destination(text)
        try:
            entries = socket.getaddrinfo(
                destination.host, destination.port, type=socket.SOCK_STREAM
            )
            socket.create_connection((destination.host, destination.port), 5).close()
        except OSError as error:
            pytest.skip(f"the package index {destination} cannot be reached from here: {error}")
        found |= {str(entry[4][0]) for entry in entries}
    return sorted(found)


def _certificates() -> str | None:
    """Return the certificates that pip trusts here, if it is set to others than its own."""
    command = [sys.executable, "-m", "pip", "config", "get"]
    for name in ("global.cert", ":env:.cert"):
        answer = subprocess.run([*command, name], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip()
    return None


@contextmanager
def _notebook(certificates: str | None = None) -> Iterator[BlockingKernelClient]:
    """Return a notebook whose pip knows no other source than its index."""
    settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if certificates is not None:
        settings["PIP_CERT"] = certificates
    with kernel(cwd="/") as (_, client):
        assert run_cell(client, f"import os; os.environ.update({settings!r})").error is None
        yield client


def test_pip_installs_a_real_package(enclave: EnclaveHome) -> None:
    addresses = _index_addresses()
    install = f"%pip install --no-cache-dir --no-deps --force-reinstall {PACKAGE}"
    with (
        gateway_that_reaches(enclave, addresses),
        _notebook(_certificates()) as client,
    ):
        refused = one_line(run_cell(client, install, _TIMEOUT_S))
        assert refused.startswith("EgressRefusedError: pip cannot go on: ")
        assert refused.endswith("on the parent instance type: enclave proxy allow pypi")
        try:
            assert enclave.run("proxy", "allow", "pypi").returncode == 0
            cell = run_cell(client, install, _TIMEOUT_S)
            assert cell.error is None and f"Successfully installed {PACKAGE}" in cell.printed, cell
        finally:
            enclave.run("proxy", "deny", "pypi")
        cell = run_cell(client, f"import {PACKAGE}; print({PACKAGE}.__file__)")
        assert cell.printed.startswith("/home/notebook/")
        log = enclave.run("proxy", "log").stdout
    carried = [line for line in log.splitlines() if " closed " in line and " 0 in," not in line]
    hosts = {str(parse_destination(text)) for text in package_index_rule().hosts}
    assert {line.split()[4] for line in carried} == hosts


_S3 = """
import boto3, hashlib
from botocore.config import Config
once = Config(retries={"mode": "standard", "total_max_attempts": 1})
keys = {"aws_access_key_id": "AKID", "aws_secret_access_key": "none"}
def s3(**more):
    return boto3.client("s3", region_name="eu-west-1", config=once, **keys, **more)
"""
_BUCKET = """
client = s3(endpoint_url={url!r})
client.create_bucket(
    Bucket="own-data", CreateBucketConfiguration={{"LocationConstraint": "eu-west-1"}}
)
data = os.urandom(20_000_000)
client.put_object(Bucket="own-data", Key="a/b.bin", Body=data)
print(client.get_object(Bucket="own-data", Key="a/b.bin")["Body"].read() == data)
"""


def test_boto3_reaches_s3(enclave: EnclaveHome) -> None:
    """An S3 on an address that notebooks do not take for their own machine."""
    storage = ThreadedMotoServer("127.0.0.7", port=0, verbose=False)
    storage.start()
    host, port = storage.get_host_and_port()
    try:
        with gateway_that_reaches(enclave, ["127.0.0.7/32"]), _notebook() as client:
            assert run_cell(client, _S3).error is None
            fill = _BUCKET.format(url=f"http://{host}:{port}")
            refused = run_cell(client, fill)
            assert refused.error is not None
            try:
                assert enclave.run("proxy", "allow", f"{host}:{port}").returncode == 0
                cell = run_cell(client, fill, _TIMEOUT_S)
                assert cell.error is None and cell.printed == "True\n", cell
            finally:
                enclave.run("proxy", "deny", f"{host}:{port}")
            lines = enclave.run("proxy", "log", "--json").stdout.splitlines()
    finally:
        storage.stop()
    closed = [json.loads(line) for line in lines if '"closed"' in line]
    ours = [entry for entry in closed if entry["destination"] == f"{host}:{port}"]
    assert sum(entry.get("bytes_out", 0) for entry in ours) > 20_000_000
    assert sum(entry.get("bytes_in", 0) for entry in ours) > 20_000_000


_MANY = """
import asyncio
async def one(number):
    reader, writer = await asyncio.open_connection("127.0.0.1", 3128)
    writer.write(b"CONNECT {0} HTTP/1.1\\r\\n\\r\\n")
    answer = await reader.readuntil(b"\\r\\n\\r\\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    arrived.append(number)
    while len(arrived) < 200:
        await asyncio.sleep(0.01)
    writer.write(bytes([number]) * 50_000)
    assert await reader.readexactly(50_000) == bytes([number]) * 50_000
    writer.close()
arrived = []
await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(200))), 50)
print(len(arrived))
"""


def test_200_connections_of_one_notebook_at_once(enclave: EnclaveHome) -> None:
    """All of the way: listener, announcements, streams, proxy; open at the same time."""

    def echo(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.7", 0), backlog=512) as listener:
        threading.Thread(target=accept, daemon=True).start()
        target = f"127.0.0.7:{listener.getsockname()[1]}"
        with gateway_that_reaches(enclave, ["127.0.0.7/32"]), _notebook() as client:
            try:
                assert enclave.run("proxy", "allow", target).returncode == 0
                cell = run_cell(client, _MANY.format(target), _TIMEOUT_S)
                assert cell.error is None and cell.printed == "200\n", cell
            finally:
                enclave.run("proxy", "deny", target)
            listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def notebook(enclave: EnclaveHome) -> Iterator[BlockingKernelClient]:
    with _notebook() as client:
        assert run_cell(client, _S3).error is None
        yield client


_GET = "import requests; requests.get('https://a.example')"
_WRAPPED = """
import requests
try:
    requests.get("https://a.example")
except OSError as error:
    raise RuntimeError("mine") from error
"""


@pytest.mark.parametrize(
    ("code", "allow"),
    [
        ("s3().list_buckets()", "s3"),
        ("s3(endpoint_url='https://a.example').list_buckets()", "a.example:443"),
        ("import urllib.request as r; r.urlopen('https://a.example')", "a.example:443"),
        (_GET, "a.example:443"),
        (_WRAPPED, "a.example:443"),
    ],
    ids=["s3", "endpoint", "urllib", "requests", "wrapped"],
)
def test_what_is_refused_is_said_in_one_line(
    notebook: BlockingKernelClient, code: str, allow: str
) -> None:
    cell = run_cell(notebook, code)
    assert cell.error is not None
    (line,) = [line for line in cell.printed.splitlines() if line.startswith("enclave: ")]
    assert line.endswith(f"type: enclave proxy allow {allow}")


def test_other_errors_are_left_alone(notebook: BlockingKernelClient) -> None:
    for code in ("1 / 0", "raise OSError('500 enclave: not the proxy')", "raise SystemError"):
        cell = run_cell(notebook, code)
        assert cell.error is not None and cell.printed == ""


_WHEEL = """
import pathlib, zipfile
folder = pathlib.Path("/tmp/wheels")
folder.mkdir(exist_ok=True)
name, lines = "{0}-99.0", "\\n".join
with zipfile.ZipFile(folder / (name + "-py3-none-any.whl"), "w") as wheel:
    wheel.writestr("{0}/__init__.py", "here = 'newer'")
    said = lines(["Metadata-Version: 2.1", "Name: {0}", "Version: 99.0", ""])
    wheel.writestr(name + ".dist-info/METADATA", said)
    said = lines(["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any", ""])
    wheel.writestr(name + ".dist-info/WHEEL", said)
    wheel.writestr(name + ".dist-info/RECORD", "")
"""


def test_own_packages_lie_above_those_of_the_image(notebook: BlockingKernelClient) -> None:
    """pip and python of a shell are the notebook's; the image's packages are there, and stay."""
    where = f"!python -c 'import sys, {PACKAGE}; print(sys.prefix, {PACKAGE}.__file__)'"
    cell = run_cell(notebook, f"{where}\n!pip --version\nimport sys; print(sys.executable)")
    prefix, image = cell.printed.splitlines()[0].split()
    assert prefix == "/home/notebook/.packages" and not image.startswith(prefix)
    assert cell.printed.splitlines()[-1].startswith(f"{prefix}/bin/python")
    assert run_cell(notebook, _WHEEL.format(PACKAGE)).error is None
    cell = run_cell(notebook, "%pip install --no-index /tmp/wheels/*.whl", _TIMEOUT_S)
    assert cell.error is None and "99.0" in cell.printed, cell
    cell = run_cell(notebook, f"import {PACKAGE}; print({PACKAGE}.here)\n{where}")
    assert cell.printed.startswith("newer") and cell.printed.split()[-1].startswith(prefix)
    again = run_cell(notebook, f"%pip uninstall -y {PACKAGE}\n{where}", _TIMEOUT_S)
    assert again.printed.split()[-1] == image


def test_pip_that_fails_for_another_reason(notebook: BlockingKernelClient) -> None:
    cell = run_cell(notebook, "%pip install --no-index no-such-package", _TIMEOUT_S)
    assert "No matching distribution" in cell.printed
    assert "No closing quotation" in run_cell(notebook, '%pip install "unclosed').printed


def test_while_the_gateway_is_gone(own_home: EnclaveHome) -> None:
    """One line that says so; the same notebook goes on with the next gateway."""
    assert own_home.run("up").returncode == 0
    with kernel(cwd="/") as (_, client):
        pid = own_home.status()["pids"]["gateway"]
        # The channels go with the gateway: the cell is under way when it dies.
        start_cell(client, f"import time; time.sleep(1); said = []\n{_ASK}")
        os.kill(pid, signal.SIGKILL)
        time.sleep(2.5)
        assert own_home.run("up").returncode == 0
        # Its channels connect again: what is printed before they did is lost.
        client.wait_for_ready(timeout=30)
        cell = run_cell(client, "print(said[0])")
        assert "502 enclave: the gateway on the parent instance does not answer" in cell.printed
        assert "a.example:443 is not allowed" in run_cell(client, f"{_ASK}\nprint(said[1])").printed


_ASK = """
import urllib.request
try:
    urllib.request.urlopen("https://a.example")
except OSError as error:
    said.append(str(error))
"""
