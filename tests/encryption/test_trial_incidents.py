"""What `enclave-owner try --incident` makes of the number that a user reports."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.package_owner import write_package
from tests.support.trial_run import trial_folder, try_cells, try_package

_KEY = "5f" * 32
_SECRET = "canary-90d1"
_MANIFEST = """
[exports]
functions = { score = "score(rows)", fetch = "fetch()", rows = "rows(n)" }
returns = { rows = "iter" }
[scripts]
run = { file = "run.py" }
"""
_SOURCE = f"""from scorer.checks import check


def score(rows):
    check(rows)
    return [1 / row for row in rows]


def fetch():
    return open("{{}}/a-file").read()


def rows(n):
    for i in range(n):
        yield 1 / (3 - i)  # {_SECRET}
"""
_CHECKS = f"""
def check(rows):
    if not rows:
        raise KeyError("{_SECRET}")
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with trial_folder() as folder:
        (folder / "a-file").write_text("of the owner's")
        files = {
            "scorer/__init__.py": _SOURCE.replace("{}", str(folder)),
            "scorer/checks.py": _CHECKS,
            "run.py": "import os\nprint(os.path.exists('incidents.key'))\n\nint('x')\n",
            "enclave.toml": _MANIFEST,
            "incidents.key": f"{_KEY}\n",
        }
        write_package(folder / "scorer", files)
        yield folder


def _look_up(folder: Path, incident: str, *more: str) -> tuple[Mapping[str, Any], int]:
    result = try_package(folder, folder / "scorer", "--json", "--incident", incident, *more)
    assert result.stderr == ""
    return json.loads(result.stdout), result.returncode


def test_from_the_id_to_the_line_and_to_the_call(folder: Path) -> None:
    steps, _ = try_cells(
        folder, folder / "scorer", "score([])", "score([1, 0])", "list(rows(5))", "fetch()"
    )
    incidents = [step["user"]["incident"] for step in steps]
    places = [step["user"]["place"] for step in steps]
    assert places[:3] == ["scorer/checks.py:4", "scorer/__init__.py:6", "scorer/__init__.py:15"]
    # Of what failed for the user only, the owner has no traceback of the own run.
    if os.geteuid() == 0:
        assert steps[3]["owner"]["error"] == ""
        assert places[3] == steps[3]["calls"][0]["place"] == "scorer/__init__.py:10"
    found, code = _look_up(folder, incidents[0])
    assert code == 0
    assert found["incident"] == {
        "id": incidents[0],
        "path": "scorer/checks.py",
        "line": 4,
        "source": f'raise KeyError("{_SECRET}")',
    }
    assert "steps" not in found
    found, code = _look_up(folder, f" {incidents[0].upper()}\n", "-c", "score([1])", "-c", "1")
    assert (code, found["incident"]["reproduced"], found["crossed"]) == (1, False, True)
    # Another id, and the same line.
    found, code = _look_up(folder, incidents[0], "-c", "try:\n  score(())\nexcept Exception: 1")
    assert (code, found["incident"]["reproduced"], found["crossed"]) == (0, True, False)
    assert found["steps"][1]["calls"][0]["incident"] != incidents[0]


def test_for_people(folder: Path) -> None:
    steps, _ = try_cells(folder, folder / "scorer", "score([])")
    incident = steps[0]["user"]["incident"]
    result = try_package(folder, folder / "scorer", "--incident", incident)
    assert result.returncode == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == f"incident {incident} arose at scorer/checks.py:4"
    assert lines[-1].endswith(f' 4         raise KeyError("{_SECRET}")')
    result = try_package(
        folder, folder / "scorer", "--incident", incident, "-c", "score([1])", "-c", "score([])"
    )
    assert result.returncode == 0
    assert ", arose at scorer/checks.py:4" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        f"incident {incident} is reproduced by the cell score([])"
    )


def test_an_incident_of_a_script(folder: Path) -> None:
    arguments = ("--json", "--script", "run")
    result = try_package(folder, folder / "scorer", *arguments)
    (step,) = json.loads(result.stdout)["steps"]
    assert step["user"]["place"] == "run.py:4"
    # The key is no file of the package's for those that name one.
    assert (step["owner"]["stdout"], step["user"]["output"]) == ("True\n", "False")
    found, code = _look_up(folder, step["user"]["incident"], "--script", "run")
    assert (code, found["incident"]["reproduced"]) == (0, True)


def test_an_incident_of_an_import(folder: Path) -> None:
    package = folder / "broken"
    files = {
        "broken.py": f"\n\nraise RuntimeError('{_SECRET}')\ndef f(): pass\n",
        "enclave.toml": '[exports]\nfunctions = { f = "f()" }\n',
        "incidents.key": _KEY,
    }
    write_package(package, files)
    result = try_package(folder, package, "--json", "-c", "f()")
    (step,) = json.loads(result.stdout)["steps"]
    assert step["user"]["place"] == "broken.py:3"


def test_wrong_ids_are_one_line(folder: Path) -> None:
    package = folder / "scorer"
    result = try_package(folder, package, "--incident", "0123456789abcdef")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and "is not of this code" in result.stderr
    result = try_package(folder, package, "--incident", "KeyError")
    assert result.returncode == 2 and "16 hex digits" in result.stderr
    keyless = folder / "keyless"
    write_package(keyless, {"a.py": ""})
    result = try_package(folder, keyless, "--incident", "0123456789abcdef")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert f"openssl rand -hex 32 > {keyless}/incidents.key" in result.stderr
    write_package(keyless, {"incidents.key": "a key"})
    result = try_package(folder, keyless, "-c", "1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and "incidents.key holds no key" in result.stderr
