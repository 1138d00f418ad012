"""JupyterLab's kernel usage panel: its server extension, asked as the panel asks it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.enclave_home import EnclaveHome
from tests.support.jupyter_server import Server, running_server

pytest.importorskip("jupyter_server", reason="comes with JupyterLab: pip install -e '.[demo]'")
_MIB = 2**20


@pytest.fixture(scope="module")
def server(enclave: EnclaveHome) -> Iterator[Server]:
    with running_server(enclave) as server:
        yield server


def _usage(server: Server, kernel_id: str) -> dict[str, Any]:
    answer = server.ask("GET", f"metrics/v1/kernel_usage/get_usage/{kernel_id}")
    assert answer["kernel_id"] == kernel_id
    content: dict[str, Any] = answer["content"]
    return content


async def test_the_panel_shows_the_kernel_in_the_enclave(server: Server) -> None:
    kernel_id = server.ask("POST", "kernels", {"name": "enclave"})["id"]
    try:
        assert await server.run(kernel_id, "print(1)") == "1\n"
        before = _usage(server, kernel_id)
        # No answer of a stand-in: the panel says "timeout" or "not_supported" then.
        assert "reason" not in before
        assert before["hostname"] == "enclave"
        assert before["kernel_memory"] > 10 * _MIB
        await server.run(kernel_id, f"kept = bytearray(b'x') * {200 * _MIB}")
        after = _usage(server, kernel_id)
        grown = after["kernel_memory"] - before["kernel_memory"]
        assert 190 * _MIB < grown < 400 * _MIB
        burn = "import time\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass"
        await server.run(kernel_id, burn)
        busy = _usage(server, kernel_id)
        assert 5 < busy["kernel_cpu"] < 200
        for name in ("cpu_count", "host_cpu_percent", "host_virtual_memory", "host_usage_flag"):
            assert name in busy
        assert busy["host_virtual_memory"]["total"] > after["kernel_memory"]
    finally:
        server.ask("DELETE", f"kernels/{kernel_id}")


async def test_it_shows_a_kernel_whose_cell_runs(server: Server) -> None:
    kernel_id = server.ask("POST", "kernels", {"name": "enclave"})["id"]
    try:
        await server.run(kernel_id, "import threading, time")
        await server.begin(kernel_id, "time.sleep(60)")
        assert _usage(server, kernel_id)["kernel_memory"] > 10 * _MIB
    finally:
        server.ask("DELETE", f"kernels/{kernel_id}")
