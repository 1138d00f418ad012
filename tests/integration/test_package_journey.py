"""From an owner's folder to a notebook's result, through a real local enclave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.grader_package import publish_grader, publish_slow
from tests.support.notebook_cells import finish_cell, run_cell, start_cell, vault_pid, vault_pids
from tests.support.package_owner import PUBLISHER, PackageOwner, open_folder, publisher_fingerprint
from tests.support.vault_link import payload_pid

_LOADED = (
    "Loaded grader 1.4 as {}: Grader, best, mean, nap, vault_number.\n"
    f'Publisher "{PUBLISHER}", key {publisher_fingerprint()} (pinned).\n'
)
_GRADED = "rows = np.array([[1.0, 0, 0], [0, 1, 1]]); print(grader.Grader(0.5).grade(rows))"


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    """Return the user's folder, in which grader.encrypted and slow.encrypted are."""
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    key_arn = owner.new_key(status["pcrs"]["0"])
    with open_folder() as folder:
        publish_grader(owner, key_arn, folder / "grader.encrypted")
        publish_slow(owner, key_arn, folder / "slow.encrypted")
        yield folder


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_user_works_with_a_package(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        loaded = run_cell(client, "import numpy as np\n%load_encrypted grader.encrypted")
        assert loaded.printed == _LOADED.format("grader")
        assert loaded.error is None
        assert run_cell(client, "grader").displayed == ["<encrypted grader 1.4>"]
        assert run_code(client, _GRADED) == "[1.5 5.5]\n"
        scaled = "print(grader.Grader(bias=1).grade([[1, 1, 1]], scale=2.0))"
        assert run_code(client, scaled) == "[13.]\n"
        assert run_code(client, "print(grader.mean([1, 2, 3], weights=[0, 0, 1]))") == "3.0\n"
        by_reference = "best = grader.best(); print(best.bias, best.shifted(by=1).bias, best)"
        assert run_code(client, by_reference) == "6.0 7.0 <encrypted grader 1.4: Grader object>\n"


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("grader.mean(value=[1])", "TypeError", "value"),
        ("grader.mean()", "TypeError", "values"),
        ("grader.Grader(1, 2)", "TypeError", ""),
        ("grader.Grader().grade([[1, 2]])", "ValueError", "rows of 3 numbers are needed"),
        ("grader.mean(print)", "ValueRefusedError", ""),
        ("grader.mean('x')", "EncryptedPackageError", "incident"),
    ],
)
def test_errors_of_calls(folder: Path, code: str, name: str, text: str) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted grader.encrypted")
        error = run_cell(client, code).error
        assert error is not None
        assert error.name == name
        assert text in error.value
        shown = "\n".join(error.traceback)
        assert "np.average" not in shown and "/enclave_kernel/" not in shown
        assert run_code(client, "print(grader.mean([4]))") == "4.0\n"


def test_a_name_that_is_not_exported(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted grader.encrypted")
        exports = "Grader, best, mean, nap, vault_number"
        message = f"<encrypted grader 1.4> exports no 'np'; it exports {exports}"
        assert run_code(client, "grader.np") == f"AttributeError: {message}"
        assert run_code(client, "print(hasattr(grader, 'models'), dir(grader))") == (
            f"False {exports.split(', ')}\n"
        )


def test_help_and_the_table(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted grader.encrypted as g")
        helped = run_code(client, "help(g.mean)")
        assert "mean(values, *, weights=None)" in helped
        assert "Return the weighted mean of a row." in helped
        helped = run_code(client, "help(g.Grader)")
        assert "grade(self, rows, *, scale=1.0)" in helped
        assert "Return one grade per row." in helped
        assert "Grades rows of numbers." in run_code(client, "print(g.__doc__)")
        inspected = client.inspect("g.mean", reply=True, timeout=10)["content"]
        assert inspected["found"]
        assert "weighted mean" in inspected["data"]["text/plain"]
        completed = client.complete("g.me", reply=True, timeout=10)["content"]["matches"]
        assert [name.rpartition(".")[2] for name in completed] == ["mean"]

        header, row = run_code(client, "%encrypted").splitlines()
        assert header.split()[:3] == ["NAME", "PACKAGE", "STATE"]
        assert row.split()[:4] == ["g", "grader", "1.4", "running"]
        assert "grader.encrypted" in row
        assert run_code(client, "made = g.best()\n%unload_encrypted g") == "Unloaded grader 1.4.\n"
        assert run_code(client, "g") == "NameError: name 'g' is not defined"
        assert run_code(client, "made.bias").startswith("VaultDiedError: <encrypted grader 1.4> ")
        assert "No encrypted package is loaded" in run_code(client, "%encrypted")


def notebook(*cells: str) -> nbformat.NotebookNode:
    made: nbformat.NotebookNode = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    made.metadata["kernelspec"] = {
        "name": "enclave",
        "display_name": "Python 3 (enclave)",
        "language": "python",
    }
    return made


def printed(executed: nbformat.NotebookNode) -> list[str]:
    """Return what each cell printed."""
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in executed.cells]


_CELLS = ("import numpy as np\n%load_encrypted grader.encrypted", _GRADED)


def test_nbconvert_executes_a_notebook(enclave: EnclaveHome, folder: Path) -> None:
    path = folder / "report.ipynb"
    nbformat.write(notebook(*_CELLS), path)  # type: ignore[no-untyped-call]
    before = vault_pids(enclave)
    jupyter = Path(sys.executable).parent / "jupyter"
    result = subprocess.run(
        [jupyter, "nbconvert", "--to", "notebook", "--execute", "--inplace", str(path)],
        cwd="/",
        env=enclave.environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    executed = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert printed(executed) == [_LOADED.format("grader"), "[1.5 5.5]\n"]
    assert [cell.execution_count for cell in executed.cells] == [1, 2]
    assert wait_until(lambda: len(vault_pids(enclave) - before) <= 1)
    assert enclave.status()["kernels"] == []


def _papermill(
    enclave: EnclaveHome, folder: Path, *options: str
) -> tuple[int, str, nbformat.NotebookNode]:
    """Run `papermill grade.ipynb done.ipynb` in `folder`."""
    command = [sys.executable, "-m", "papermill", "grade.ipynb", "done.ipynb", *options]
    result = subprocess.run(
        command,
        cwd=folder,
        env=enclave.environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    executed = nbformat.read(folder / "done.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return result.returncode, result.stderr, executed


def test_papermill_passes_parameters(enclave: EnclaveHome, folder: Path) -> None:
    made = notebook("row = [0, 0, 0]", _CELLS[0], "print(grader.Grader().grade([row]))")
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, folder / "grade.ipynb")  # type: ignore[no-untyped-call]
    for row, expected in (("[1, 1, 1]", "[6.]\n"), ("[2, 0, 0]", "[2.]\n")):
        status, errors, executed = _papermill(enclave, folder, "-y", f"row: {row}")
        assert status == 0, errors
        assert printed(executed) == ["", "", _LOADED.format("grader"), expected]
    status, errors, executed = _papermill(enclave, folder, "-p", "row", "none")
    assert status == 1
    # What the package raised, in the terminal and in the notebook.
    (error,) = (one for one in executed.cells[-1].outputs if one.output_type == "error")
    assert error.ename == "ValueError" and f"ValueError: {error.evalue}" in errors
    assert enclave.status()["kernels"] == []


def test_two_notebooks_use_one_package(enclave: EnclaveHome, folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, one), kernel(cwd=str(folder)) as (_, two):
        requests = [
            client.execute("%load_encrypted grader.encrypted\nprint(grader.vault_number())")
            for client in (one, two)
        ]
        numbers = [
            int(finish_cell(client, request).printed.splitlines()[-1])
            for client, request in zip((one, two), requests, strict=True)
        ]
        first, second = (vault_pid(enclave, number) for number in numbers)
        assert first != second
        assert {first, second} <= vault_pids(enclave)
        vaults = [each["vaults"] for each in enclave.status()["kernels"]]
        packages = [[(vault["package"], vault["version"]) for vault in each] for each in vaults]
        assert packages == [[("grader", "1.4")], [("grader", "1.4")]]
        run_cell(one, "%unload_encrypted grader")
        assert wait_until(lambda: not exists(first))
        assert run_code(two, "print(grader.vault_number())") == f"{numbers[1]}\n"


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_ends_the_vaults(enclave: EnclaveHome, folder: Path, now: bool) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        load = "%load_encrypted grader.encrypted as {0}\nprint({0}.vault_number())"
        vaults = [
            vault_pid(enclave, int(run_cell(client, load.format(name)).printed.splitlines()[-1]))
            for name in "ab"
        ]
        assert set(vaults) <= vault_pids(enclave)
        manager.restart_kernel(now=now)
        client.wait_for_ready(timeout=30)
        assert wait_until(lambda: not any(map(exists, vaults)))
        # One that has no package yet waits for the next load.
        assert wait_until(lambda: len(vault_pids(enclave)) <= 1)
        assert "No encrypted package is loaded" in run_code(client, "%encrypted")
        assert "NameError" in run_code(client, "a")
        again = run_cell(client, load.format("a"))
        assert again.error is None
    assert wait_until(lambda: len(vault_pids(enclave)) <= 1)


def test_a_vault_that_is_killed_does_not_take_the_notebook_along(
    enclave: EnclaveHome, folder: Path
) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        run_cell(client, "kept = 5\n%load_encrypted grader.encrypted")
        run_cell(client, "made = grader.best()")
        number = int(run_code(client, "print(grader.vault_number())"))
        os.kill(payload_pid(vault_pid(enclave, number)), signal.SIGKILL)
        for code in ("grader.mean([1])", "made.bias"):
            error = run_cell(client, code).error
            assert error is not None
            assert error.name == "VaultDiedError"
            assert "it was killed" in error.value
            assert "load it again with %load_encrypted" in error.value
        assert "ended" in run_code(client, "%encrypted")
        assert manager.is_alive()
        assert run_code(client, "print(kept)") == "5\n"
        assert run_code(client, "%load_encrypted grader.encrypted") == _LOADED.format("grader")
        assert run_code(client, "print(grader.mean([1, 3]))") == "2.0\n"


def test_a_vault_killed_during_a_call(enclave: EnclaveHome, folder: Path) -> None:
    with kernel(cwd=str(folder)) as (_, client):
        run_cell(client, "%load_encrypted grader.encrypted")
        pid = vault_pid(enclave, int(run_code(client, "print(grader.vault_number())")))
        request = start_cell(client, "grader.nap(60)")
        time.sleep(0.3)
        os.kill(payload_pid(pid), signal.SIGKILL)
        error = finish_cell(client, request, 10).error
        assert error is not None and error.name == "VaultDiedError"
        assert run_code(client, "print('alive')") == "alive\n"


def test_interrupting_a_call(folder: Path) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        run_cell(client, "%load_encrypted grader.encrypted")
        pid = run_code(client, "print(grader.vault_number())")
        for _ in range(3):
            request = start_cell(client, "grader.nap(60)")
            time.sleep(0.3)
            began = time.monotonic()
            manager.interrupt_kernel()
            error = finish_cell(client, request, 10).error
            assert error is not None and error.name == "KeyboardInterrupt"
            assert time.monotonic() - began < 2
            # The same vault, in working order.
            assert run_code(client, "print(grader.vault_number())") == pid


def test_interrupting_a_load(enclave: EnclaveHome, folder: Path) -> None:
    with kernel(cwd=str(folder)) as (manager, client):
        run_cell(client, "%load_encrypted grader.encrypted")
        for delay_s in (0.0, 0.05, 0.2, 1.5):
            request = start_cell(client, "%load_encrypted slow.encrypted")
            time.sleep(delay_s)
            began = time.monotonic()
            manager.interrupt_kernel()
            error = finish_cell(client, request, 10).error
            assert error is not None and error.name == "KeyboardInterrupt"
            assert time.monotonic() - began < 2
            assert "NameError" in run_code(client, "slow")
            assert run_code(client, "print(grader.mean([1]))") == "1.0\n"
            # The one of grader, and one that waits for the next load.
            assert wait_until(lambda: len(vault_pids(enclave)) <= 2), delay_s
        assert len(run_code(client, "%encrypted").splitlines()) == 2
