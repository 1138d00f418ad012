"""A kernel of the enclave through a real Jupyter server, as JupyterLab talks to it."""

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.session import Session
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from tests.support.enclave_home import EnclaveHome

pytest.importorskip("jupyter_server", reason="comes with JupyterLab: pip install -e '.[demo]'")
_TIMEOUT_S = 60.0


@dataclass
class Server:
    """A running server."""

    port: int
    token: str

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", data, method=method
        )
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None

    async def run(self, kernel_id: str, code: str) -> str:
        """Return what a cell prints."""
        request = HTTPRequest(
            f"ws://127.0.0.1:{self.port}/api/kernels/{kernel_id}/channels",
            headers={"Authorization": f"token {self.token}"},
        )
        connection = await websocket_connect(request)
        message = Session().msg("execute_request", {"code": code, "silent": False})
        message["channel"] = "shell"
        await connection.write_message(json.dumps(message, default=str))
        printed = ""
        while True:
            received = await connection.read_message()
            assert isinstance(received, str)
            answer = json.loads(received)
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            if answer["msg_type"] == "stream":
                printed += answer["content"]["text"]
            if answer["content"].get("execution_state") == "idle":
                connection.close()
                return printed


@pytest.fixture
def server(enclave: EnclaveHome) -> Iterator[Server]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    made = Server(port, secrets.token_hex(16))
    command = [sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser"]
    command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={made.token}"]
    command += [f"--ServerApp.root_dir={enclave.root}", "--ServerApp.port_retries=0"]
    process = subprocess.Popen(
        command, env=enclave.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                made.ask("GET", "status")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_TIMEOUT_S)


async def test_cells_run_over_encrypted_channels(enclave: EnclaveHome, server: Server) -> None:
    kernel_id = server.ask("POST", "kernels", {"name": "enclave"})["id"]
    file = enclave.root / "jupyter" / f"kernel-{kernel_id}.json"
    kept = json.loads(file.read_text())
    assert len(kept["curve_secretkey"]) == 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert Path(file.parent).stat().st_mode & 0o777 == 0o700
    assert await server.run(kernel_id, "x = 6; print(x * 7)") == "42\n"
    server.ask("POST", f"kernels/{kernel_id}/restart", {})
    assert await server.run(kernel_id, "print('x' in globals())") == "False\n"
    server.ask("DELETE", f"kernels/{kernel_id}")
    assert not file.exists()
