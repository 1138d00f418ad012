"""Loops, `await`, `async for` and callbacks with an encrypted package, as typed into cells."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel, run_code
from tests.support.notebook_cells import finish_cell, run_cell, start_cell
from tests.support.package_owner import PackageOwner, open_folder, write_package

_MANIFEST = """
[package]
name = "streams"
version = "1"
module = "streams"
[exports.functions]
rows = "rows(n)"
tokens = "async tokens(text, wait=0.0)"
answer = "async answer(question, wait=0.0)"
tune = "tune(objective, steps)"
[exports.returns]
rows = "iter"
tokens = "iter"
[policy]
output = "text"
callbacks = { objective = "(x: ndarray, step: int)" }
"""
_SOURCE = """
import asyncio

import numpy as np


def rows(n):
    for number in range(n):
        yield np.full(2, number)


async def tokens(text, wait=0.0):
    for token in text.split():
        await asyncio.sleep(wait)
        print("made", token)
        yield token


def tune(objective, steps):
    best = 1e9
    for step in range(steps):
        best = min(best, objective(np.full(2, float(step)), step))
        print("best", best)
    return best


async def answer(question, wait=0.0):
    print("thinking")
    await asyncio.sleep(wait)
    return question + "!"
"""


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    """Return the user's folder, in which streams.encrypted is."""
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    key_arn = owner.new_key(status["pcrs"]["0"])
    with open_folder() as folder:
        files = {"enclave.toml": _MANIFEST, "streams.py": _SOURCE}
        file = folder / "streams.encrypted"
        owner.encrypt(write_package(folder / "streams", files), key_arn, file)
        yield folder


def test_loops_and_await_in_cells(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        run_cell(client, "%load_encrypted streams.encrypted")
        loop = "print([int(row.sum()) for row in streams.rows(4)])"
        assert run_code(client, loop) == "[0, 2, 4, 6]\n"
        cell = run_cell(client, "await streams.answer('yes')")
        assert (cell.printed, cell.displayed) == ("thinking\n", ["'yes!'"])
        together = (
            "import asyncio\n"
            "print(await asyncio.gather(*(streams.answer(word) for word in ('a', 'b'))))"
        )
        assert run_code(client, together).endswith("['a!', 'b!']\n")
        cell = run_cell(
            client, "async for token in streams.tokens('x y'):\n    print('got', token)"
        )
        assert cell.error is None
        assert sorted(cell.printed.splitlines()) == ["got x", "got y", "made x", "made y"]

        request = start_cell(client, "await streams.answer('never', wait=600)")
        time.sleep(0.5)
        manager.interrupt_kernel()
        error = finish_cell(client, request).error
        assert error is not None and error.name in ("CancelledError", "KeyboardInterrupt")
        # The same vault, free for the next call.
        assert "again!" in run_code(client, "print(await streams.answer('again'))")
        assert "running" in run_code(client, "%encrypted")


_OBJECTIVE = """
def objective(x, step):
    print("step", step)
    if step == 2:
        {action}
    return float(x.sum())
"""


def test_callbacks_in_cells(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        run_cell(client, "%load_encrypted streams.encrypted")
        run_cell(client, _OBJECTIVE.format(action="pass"))
        cell = run_cell(client, "streams.tune(objective, 2)")
        assert cell.displayed == ["0.0"]
        assert cell.printed == "step 0\nbest 0.0\nstep 1\nbest 0.0\n"

        run_cell(client, _OBJECTIVE.format(action="raise LookupError('mine')"))
        error = run_cell(client, "streams.tune(objective, 5)").error
        assert error is not None and (error.name, error.value) == ("LookupError", "mine")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        # The user's own line, the package as one frame, and nothing of this project or the owner.
        assert "raise LookupError" in shown and "<encrypted streams 1>" in shown
        assert "/enclave_kernel/" not in shown and "best = min" not in shown

        error = run_cell(client, "streams.tune(objective, print)").error
        assert error is not None and "argument 'steps'" in error.value

        run_cell(client, _OBJECTIVE.format(action="import time; time.sleep(600)"))
        request = start_cell(client, "streams.tune(objective, 5)")
        time.sleep(1.0)
        manager.interrupt_kernel()
        error = finish_cell(client, request).error
        assert error is not None and error.name == "KeyboardInterrupt"
        assert "step" in run_code(client, "print(streams.tune(objective, 1))")
