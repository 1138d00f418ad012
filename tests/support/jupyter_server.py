"""A real Jupyter server, spoken to as JupyterLab does."""

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jupyter_client.session import Session
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.enclave_home import EnclaveHome

__all__ = ["Server", "running_server"]

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

    async def begin(self, kernel_id: str, code: str) -> None:
        """Run a cell, and return once the kernel is at it."""
        connection, request = await self._send(kernel_id, code)
        while True:
            answer = await _next(connection, request)
            if answer["content"].get("execution_state") == "busy":
                connection.close()
                return

    async def run(self, kernel_id: str, code: str) -> str:
        """Return what a cell prints."""
        connection, request = await self._send(kernel_id, code)
        printed = ""
        while True:
            answer = await _next(connection, request)
            if answer["msg_type"] == "stream":
                printed += answer["content"]["text"]
            if answer["content"].get("execution_state") == "idle":
                connection.close()
                return printed

    async def _send(self, kernel_id: str, code: str) -> tuple[WebSocketClientConnection, str]:
        request = HTTPRequest(
            f"ws://127.0.0.1:{self.port}/api/kernels/{kernel_id}/channels",
            headers={"Authorization": f"token {self.token}"},
        )
        connection = await websocket_connect(request)
        message = Session().msg("execute_request", {"code": code, "silent": False})
        message["channel"] = "shell"
        await connection.write_message(json.dumps(message, default=str))
        return connection, str(message["header"]["msg_id"])


async def _next(connection: WebSocketClientConnection, request: str) -> dict[str, Any]:
    """Return the next message that answers a request."""
    while True:
        received = await connection.read_message()
        assert isinstance(received, str)
        answer: dict[str, Any] = json.loads(received)
        if answer["parent_header"].get("msg_id") == request:
            return answer


@contextmanager
def running_server(enclave: EnclaveHome) -> Iterator[Server]:
    """Run a server whose kernels are in this enclave, and end it."""
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
