"""`enclave-owner try DIR --script report.ipynb`: a notebook for its owner, and as users run it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.notebook_source import notebook_source
from tests.support.package_owner import write_package
from tests.support.trial_run import trial_folder, try_package

_SECRET = "canary-51cc08"
_CODE = "import sys\nprint('sum', sum(range(rows)))"
_PARAMETERS = "rows = 3\ndata = None\n"
_PICTURE = f"""
import numpy as np
from IPython.display import HTML, display
from PIL import Image
display(HTML("<b>{_SECRET}</b>"))
print("{_SECRET}", file=sys.stderr)
Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8))"""
_FAILING = "def check(limit):\n    raise KeyError(SECRET)\n\n\ncheck(rows)"
_SHOWING = "print('before')\n"


def _manifest(output: str = "text", policy: str = "") -> str:
    return f'[scripts]\nreport = {{ file = "report.ipynb", output = "{output}" }}\n{policy}'


@pytest.fixture
def folder() -> Iterator[Path]:
    with trial_folder() as folder:
        write_package(folder / "dataset", {"a.txt": "1", "b.txt": "2"})
        yield folder


def _write(folder: Path, manifest: str, *cells: str, **files: str) -> None:
    shutil.rmtree(folder / "app", ignore_errors=True)
    notebook = notebook_source(*cells, parameters=_PARAMETERS)
    write_package(folder / "app", {"report.ipynb": notebook, "enclave.toml": manifest, **files})


def _run(folder: Path, *arguments: str) -> tuple[Mapping[str, Any], int]:
    result = try_package(folder, folder / "app", "--json", "--script", "report", "--", *arguments)
    assert result.stderr == ""
    (step,) = json.loads(result.stdout)["steps"]
    return step, result.returncode


def _outputs(side: Mapping[str, Any]) -> list[str]:
    return [cell["output"] for cell in side["cells"]]


def test_both_sides_with_parameters(folder: Path) -> None:
    listing = "import os\nprint(sys.argv, data, sorted(os.listdir(data)))\nrows * 2"
    _write(folder, _manifest(), _CODE, listing)
    before = sorted(folder.rglob("*"))
    step, code = _run(folder, "-p", "rows", "5", "-p", "data", "/dataset/", "-v")
    assert (code, step["notes"]) == (0, [])
    owner, user = step["owner"], step["user"]
    shown = ["", "sum 10\n", "['report.ipynb', '-v'] /dataset/ ['a.txt', 'b.txt']\n10\n"]
    assert _outputs(owner) == _outputs(user) == shown
    assert [cell["source"] for cell in owner["cells"]] == [_PARAMETERS, _CODE, listing]
    assert [cell["source"] for cell in user["cells"]] == ["", "", ""]
    assert (user["files"], user["notebook"]) == (["/output/report.ipynb"], "/output/report.ipynb")
    assert owner["exit_code"] == user["exit_code"] == 0
    # Not even IPython's own folder is left.
    assert sorted(folder.rglob("*")) == before
    # Without them the defaults count; the notebook goes where a script's files go.
    step, code = _run(folder, "-o", "/results/", "-p", "data", "'/none/'", "-p", "rows", "2")
    assert code == 1
    assert step["user"]["files"] == ["/results/report.ipynb"]
    assert _outputs(step["user"])[1] == "sum 1\n"


def test_pictures_and_what_does_not_leave(folder: Path) -> None:
    _write(folder, _manifest(), _CODE, _PICTURE)
    step, code = _run(folder)
    assert code == 0
    owner, user = step["owner"]["cells"][2], step["user"]["cells"][2]
    assert user["output"] == owner["output"]
    assert owner["output"].count("[image]") == 1
    assert owner["stderr"] == f"{_SECRET}\n"
    assert _SECRET not in json.dumps(step["user"])
    assert step["notes"] == [
        "the user gets no text/html, of code cell 3: only text and pixels leave"
    ]


def test_a_failing_cell(folder: Path) -> None:
    _write(
        folder,
        _manifest(),
        f"SECRET = '{_SECRET}'\n{_SHOWING}",
        f"\n\n{_FAILING}",
        "print('never')",
        **{"incidents.key": "5f" * 32},
    )
    step, code = _run(folder)
    assert code == 1
    owner, user = step["owner"], step["user"]
    assert owner["exit_code"] == user["exit_code"] == 1
    # The whole error, with cell and line as editors count them, and no frame of IPython's.
    assert owner["error"] == f"KeyError: '{_SECRET}'"
    assert owner["traceback"].startswith("Traceback (most recent call last):\n")
    assert (
        'File "report.ipynb, code cell 3", line 7, in <module>\n    check(rows)'
        in (owner["traceback"])
    )
    assert (
        'File "report.ipynb, code cell 3", line 4, in check\n    raise KeyError(SECRET)'
        in (owner["traceback"])
    )
    assert "IPython" not in owner["traceback"] and "plain_notebook" not in owner["traceback"]
    assert _outputs(owner) == ["", "before\n", ""]
    # The user: type and incident, in the cell that raised, and nothing of the code.
    incident = user["incident"]
    assert f"[incident {incident}]" in user["error"]
    before, failed = _outputs(user)[1:]
    assert before == "before\n"
    assert failed.startswith("EncryptedPackageError: KeyError in <encrypted app ")
    assert f"[incident {incident}]" in failed
    assert _SECRET not in json.dumps(user) and "check" not in json.dumps(user)
    assert user["place"] == "report.ipynb, code cell 3, line 4"
    # What the user reports, reproduced.
    result = try_package(folder, folder / "app", "--incident", incident, "--script", "report.ipynb")
    assert result.returncode == 0
    assert f"incident {incident} arose at report.ipynb, code cell 3, line 4" in result.stdout
    assert f"incident {incident} is reproduced by the script report.ipynb" in result.stdout
    # Not with parameters under which it does not raise.
    _write(folder, _manifest(), "if rows == 3:\n    1 / 0", **{"incidents.key": "5f" * 32})
    other = _run(folder)[0]["user"]["incident"]
    again = ("--incident", other, "--script", "report.ipynb", "--", "-p", "rows", "4")
    result = try_package(folder, folder / "app", *again)
    assert result.returncode == 1
    assert f"incident {other} is not reproduced" in result.stdout


def test_a_leak_is_in_the_users_column(folder: Path) -> None:
    leaking = f"WEIGHTS = ['{_SECRET}']\nprint('loaded')\nWEIGHTS"
    policy = '[policy]\noutput = "none"\n'
    _write(folder, _manifest("text", policy), leaking)
    step, code = _run(folder)
    assert code == 0
    assert _outputs(step["user"])[1] == f"loaded\n['{_SECRET}']\n"
    assert step["notes"] == [
        'the user sees outputs of code cell 2: [scripts] report has output = "text", whatever '
        '[policy] output = "none" says of calls'
    ]
    result = try_package(folder, folder / "app", "--script", "report.ipynb")
    assert result.returncode == 0
    # The right half of 140 columns.
    for_user = [line[70:] for line in result.stdout.splitlines() if line[-1:] == "│"]
    assert any(_SECRET in line for line in for_user), result.stdout
    assert any("/output/report.ipynb: 2 code cells, none with source" in x for x in for_user)
    assert not any("WEIGHTS" in line for line in for_user)
    assert "! the user sees outputs of code cell 2" in result.stdout
    # The same notebook where its line of [scripts] does not say text.
    _write(folder, _manifest("progress", policy), leaking)
    step, code = _run(folder)
    assert code == 0
    assert _outputs(step["user"]) == ["", ""]
    assert _SECRET not in json.dumps(step["user"])
    assert step["notes"] == ['the user gets no outputs: [scripts] report has output = "progress"']
    # The bar is all there is.
    assert "100%" in step["user"]["output"]


def test_displays_exit_and_runs_that_differ(folder: Path) -> None:
    replaced = (
        "from IPython.display import clear_output, display\n"
        "print('gone')\nclear_output(wait=True)\nprint('stays')\n"
        "shown = display('first', display_id=True)\nprint('between')\nshown.update('last')\n"
        "'quiet';"
    )
    awaited = "import asyncio, os\nawait asyncio.sleep(0)\nos.getpid()"
    coloured = "print('\\x1b[31mred\\x1b[0m')\nprint('1 of 2\\r2 of 2')\nexit()"
    _write(folder, _manifest(), replaced, awaited, coloured, "print('never')")
    step, code = _run(folder)
    assert code == 0
    owner, user = _outputs(step["owner"]), _outputs(step["user"])
    assert owner[1] == user[1] == "stays\n'last'\nbetween\n"
    assert owner[2].strip().isdigit() and owner[2] != user[2]
    assert len(owner) == len(user) == 4
    assert step["notes"] == ["the two runs differ: the user has other outputs of code cell 3"]
    _write(folder, _manifest(), "sys = __import__('sys')\nsys.exit(3)")
    step, code = _run(folder)
    assert code == 1
    assert step["owner"]["exit_code"] == step["user"]["exit_code"] == 3


def test_wrong_input_is_one_line(folder: Path) -> None:
    _write(folder, _manifest(), _CODE)
    app = folder / "app"

    def error(*arguments: str) -> str:
        result = try_package(folder, app, *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        return line.removeprefix("enclave-owner: ")

    assert error("--script", "report", "--", "-p", "row", "1") == (
        "report.ipynb: its notebook has no parameter 'row'; did you mean 'rows'?; "
        "parameters: data, rows"
    )
    assert error("--script", "report", "--", "-p", "rows") == (
        "report.ipynb: -p needs a name and a value: -p alpha 1"
    )
    (app / "draft.ipynb").write_text(notebook_source("1"))
    assert error("--script", "draft.ipynb") == (
        f"draft.ipynb is not declared in [scripts] of {app}/enclave.toml, so no user can run it; "
        "declared: report.ipynb"
    )
    assert error("--script", "none.ipynb") == (
        "the package has no script 'none.ipynb'; it has: report.ipynb"
    )
    (app / "report.ipynb").write_text("no notebook")
    assert "report.ipynb is no notebook" in error("--script", "report")
    cell = {"cell_type": "code"}
    broken = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (app / "report.ipynb").write_text(json.dumps(broken))
    assert "report.ipynb: is no valid notebook" in error("--script", "report")
