"""What a person sees in a cell while an encrypted package works."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.notebook_cells import Cell, gather, run_cell
from tests.support.package_owner import PackageOwner, open_folder, write_package

_MANIFEST = """
[package]
name = "trainer"
version = "1"
module = "trainer"
[exports]
functions = { fit = "fit(steps, name, pause=0.0)" }
[policy]
output = "{output}"
"""
_SOURCE = """
import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("trainer")


def fit(steps, name, pause=0.0):
    log.warning("layer secret-a")
    print("layer secret-b", file=sys.stderr)
    for step in tqdm(range(steps), desc="layer secret-c"):
        print(f"\\x1b[1m{name}\\x1b[0m {step}")
        time.sleep(pause)
    return steps
"""


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    """Return the user's folder with trainer-progress.encrypted and trainer-text.encrypted."""
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    key_arn = owner.new_key(status["pcrs"]["0"])
    with open_folder() as folder:
        for output in ("progress", "text"):
            manifest = _MANIFEST.replace("{output}", output)
            files = {"enclave.toml": manifest, "trainer.py": _SOURCE}
            file = folder / f"trainer-{output}.encrypted"
            owner.encrypt(write_package(file.with_suffix(""), files), key_arn, file)
        yield folder


def test_a_cell_shows_a_bar_and_only_what_the_owner_lets_it_show(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted trainer-progress.encrypted as quiet")
        run_cell(client, "%load_encrypted trainer-text.encrypted as talking")
        quiet = run_cell(client, "done = quiet.fit(5, 'step')")
        talking = run_cell(client, "done = talking.fit(3, 'step')")
    for cell, steps in ((quiet, 5), (talking, 3)):
        assert cell.error is None
        (line,) = cell.displayed
        assert line.startswith(f"100%|██████████| {steps}/{steps} [00:0")
        assert line.endswith("it/s]")
        assert "secret" not in repr(cell)
    assert quiet.printed == ""
    assert talking.printed == "step 0\nstep 1\nstep 2\n"


def test_captured_output_is_captured(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted trainer-text.encrypted as talking")
        cell = run_cell(client, "%%capture kept\ntalking.fit(2, 'step')")
        assert (cell.printed, cell.displayed) == ("", [])
        shown = run_cell(client, "print(repr(kept.stdout), len(kept.outputs) > 0)")
        assert shown.printed == "'step 0\\nstep 1\\n' True\n"


def new_subshell(client: BlockingKernelClient) -> str:
    message = client.session.msg("create_subshell_request")
    client.control_channel.send(message)
    reply = client.get_control_msg(timeout=30)
    subshell_id: str = reply["content"]["subshell_id"]
    return subshell_id


def start_in(client: BlockingKernelClient, subshell_id: str | None, code: str) -> str:
    content = {"code": code, "silent": False, "store_history": True, "stop_on_error": False}
    message = client.session.msg("execute_request", content)
    message["header"]["subshell_id"] = subshell_id
    client.shell_channel.send(message)
    request: str = message["header"]["msg_id"]
    return request


def finish_both(client: BlockingKernelClient, requests: list[str]) -> dict[str, Cell]:
    """Return what came of cells that run at the same time, each with what is its own."""
    messages: list[Any] = []
    idle: set[str] = set()
    while idle != set(requests):
        message = client.get_iopub_msg(timeout=60)
        messages.append(message)
        state = message["content"].get("execution_state")
        if state == "idle" and message["parent_header"].get("msg_id") in requests:
            idle.add(message["parent_header"]["msg_id"])
    return {request: gather(messages, request) for request in requests}


def test_two_subshells_keep_their_output_apart(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        for name in ("one", "two"):
            run_cell(client, f"%load_encrypted trainer-text.encrypted as {name}")
        subshell = new_subshell(client)
        requests = [
            start_in(client, None, "one.fit(12, 'first', 0.1)"),
            start_in(client, subshell, "two.fit(11, 'second', 0.1)"),
        ]
        cells = finish_both(client, requests)
    for request, name, steps in zip(requests, ("first", "second"), (12, 11), strict=True):
        cell = cells[request]
        assert cell.error is None
        assert cell.printed == "".join(f"{name} {step}\n" for step in range(steps))
        bar, result = cell.displayed
        assert bar.startswith(f"100%|██████████| {steps}/{steps} [")
        assert result == str(steps)
