"""A kernel of the enclave through a real Jupyter server, as JupyterLab talks to it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome
from tests.support.jupyter_server import Server, running_server

pytest.importorskip("jupyter_server", reason="comes with JupyterLab: pip install -e '.[demo]'")


@pytest.fixture
def server(enclave: EnclaveHome) -> Iterator[Server]:
    with running_server(enclave) as server:
        yield server


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
