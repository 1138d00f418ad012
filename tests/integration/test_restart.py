"""Restart and run all: every cell again, in a fresh process, for a client that never left."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.grader_package import publish_grader
from tests.support.notebook_cells import finish_cell, run_cell
from tests.support.package_owner import PackageOwner, open_folder

_CELLS = (
    "import os\nfirst = 'first' not in globals()\nprint(first)",
    "%load_encrypted grader.encrypted as g",
    "print(g.mean([1, 2, 6]))",
    "1 / 0",
    "print(os.getpid() > 0, _)",
    "7",
    "print(_)",
)


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        publish_grader(owner, owner.new_key(status["pcrs"]["0"]), folder / "grader.encrypted")
        yield folder


@pytest.mark.parametrize("now", [False, True])
def test_restart_and_run_all(folder: Path, now: bool) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        # A cell before the notebook's own, so that the counts differ from the second run's.
        run_cell(client, "leftover = 1")
        runs = []
        for _ in range(2):
            # All of them at once, as a front-end does, which waits for the kernel before.
            requests = [client.execute(code, stop_on_error=False) for code in _CELLS]
            runs.append([finish_cell(client, request, 60) for request in requests])
            manager.restart_kernel(now=now)
            client.wait_for_ready(timeout=30)
        assert [cell.printed for cell in runs[0]] == [cell.printed for cell in runs[1]]
        for run in runs:
            assert run[0].printed == "True\n"
            assert run[1].printed.startswith("Loaded grader 1.4 as g: ")
            assert run[2].printed == "3.0\n"
            assert [cell.error.name for cell in run if cell.error] == ["ZeroDivisionError"]
            assert run[5].displayed == ["7"] and run[6].printed == "7\n"
        assert [cell.execution_count for cell in runs[0]] == list(range(2, 9))
        assert [cell.execution_count for cell in runs[1]] == list(range(1, 8))
