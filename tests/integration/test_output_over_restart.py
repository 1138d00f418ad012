"""What a cell says while the gateway is down reaches its clients when the next one is there."""

import os
import queue
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

from tests.support.enclave_home import EnclaveHome, kernel, run_code
from tests.support.notebook_cells import start_cell

_EVERY_S = 0.1
_LINES = 120


def _another(manager: KernelManager) -> BlockingKernelClient:
    """Return a client with a session, and with that a routing id, of its own."""
    client: BlockingKernelClient = manager.client(session=Session(key=manager.session.key))
    return client


def _text_to_idle(client: BlockingKernelClient, request: str, *, timeout_s: float) -> str:
    """Return what a cell prints from here to its end."""
    printed = ""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        message = client.get_iopub_msg(timeout=left)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return printed
    raise AssertionError(f"no end of the cell after {printed[-200:]!r}")


def test_no_line_is_missing_for_two_clients(up: EnclaveHome) -> None:
    code = (
        f"import time\nfor number in range({_LINES}):\n"
        f"    print(number, flush=True)\n    time.sleep({_EVERY_S})"
    )
    with kernel() as (manager, client):
        other = _another(manager)
        other.start_channels()
        try:
            other.wait_for_ready(timeout=30)
            # Found out before, so that the kill falls between two lines.
            gateway = up.status()["pids"]["gateway"]
            request = start_cell(client, code)
            while "5" not in client.get_iopub_msg(timeout=10)["content"].get("text", ""):
                pass
            time.sleep(_EVERY_S / 3)
            os.kill(gateway, signal.SIGKILL)
            # Each looks all the time, as front-ends do: libzmq subscribes again only then.
            with ThreadPoolExecutor(2) as pool:
                rest = pool.submit(_text_to_idle, client, request, timeout_s=60)
                whole = pool.submit(_text_to_idle, other, request, timeout_s=60)
                assert up.run("up").returncode == 0
            assert [int(line) for line in rest.result().split()] == list(range(6, _LINES))
            assert [int(line) for line in whole.result().split()[1:]] == list(range(_LINES))
        finally:
            other.stop_channels()


def test_a_cell_that_ends_while_the_gateway_is_down(up: EnclaveHome) -> None:
    with kernel() as (_, client):
        run_code(client, "import time")
        gateway = up.status()["pids"]["gateway"]
        request = start_cell(client, "time.sleep(0.5); print('the end')")
        os.kill(gateway, signal.SIGKILL)
        time.sleep(1.5)
        assert up.run("up").returncode == 0
        assert _text_to_idle(client, request, timeout_s=20).endswith("the end\n")
        reply = client.get_shell_msg(timeout=10)
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["status"] == "ok"
        assert run_code(client, "print(2)") == "2\n"


def test_what_is_too_much_is_told_of(up: EnclaveHome) -> None:
    code = (
        "time.sleep(0.5)\nfrom IPython.display import display\n"
        "for number in range(40):\n"
        "    display({'text/plain': str(number) + ' ' * 2**20}, raw=True)"
    )
    with kernel() as (_, client):
        run_code(client, "import time")
        gateway = up.status()["pids"]["gateway"]
        request = start_cell(client, code)
        os.kill(gateway, signal.SIGKILL)
        time.sleep(2)
        assert up.run("up").returncode == 0
        said, numbers = "", []
        while True:
            message = client.get_iopub_msg(timeout=20)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                said += content["text"]
            if message["msg_type"] == "display_data":
                numbers.append(int(content["data"]["text/plain"]))
            if content.get("execution_state") == "idle":
                break
        assert "messages of output were lost while the gateway was down" in said
        # The newest are there, in order, and no more than the limit.
        assert numbers == list(range(40 - len(numbers), 40)) and 10 <= len(numbers) <= 16


def test_a_client_that_leaves_holds_up_nobody(up: EnclaveHome) -> None:
    with kernel() as (manager, client):
        other = _another(manager)
        other.start_channels()
        other.wait_for_ready(timeout=30)
        other.stop_channels()
        began = time.monotonic()
        assert run_code(client, "print(1)") == "1\n"
        assert time.monotonic() - began < 2
        with suppress(queue.Empty):
            while True:
                client.get_iopub_msg(timeout=0.1)
        later = _another(manager)
        later.start_channels()
        later.wait_for_ready(timeout=30)
        assert run_code(later, "print(2)") == "2\n"
        later.stop_channels()
