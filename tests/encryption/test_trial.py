"""`enclave-owner try`: what the owner sees of a package beside what its user would see."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.package_owner import write_package
from tests.support.trial_run import COMMAND, trial_folder, try_cells, try_package

_SECRET = "canary-3f0b77"
_MANIFEST = """
[package]
name = "scorer"
version = "1.2.0"
module = "scorer"
[exports.functions]
score = "score(rows, *, threshold=0.5)"
fail = "fail()"
refuse = "refuse()"
leak = "leak()"
table = "table()"
number = "number()"
nothing = "nothing()"
rows = "rows(n)"
later = "async later(x)"
make = "make()"
die = "die()"
optimise = "optimise(objective)"
big_endian = "big_endian()"
quit = "quit()"
[exports.classes]
Model = { init = "Model(size=1)", methods = ["predict(x)", "broken()"], attributes = ["size"] }
[exports.returns]
nothing = "none"
rows = "iter"
make = "Model"
[policy]
errors = ["ValueError"]
callbacks = { objective = "(x: float)" }
"""
_SOURCE = f'''
import os, sys
import numpy as np
SECRET = "{_SECRET}"


class Model:
    def __init__(self, size=1):
        self.size = size

    def predict(self, x):
        return x * self.size

    def broken(self):
        raise OSError(SECRET)


def score(rows, *, threshold=0.5, undeclared=None):
    print(SECRET, "printed")
    print(SECRET, "warned", file=sys.stderr)
    os.write(1, b"written")
    return [row > threshold for row in rows]


def fail():
    raise KeyError(SECRET)


def refuse():
    raise ValueError("at least one row")


def leak():
    return {{"model": Model()}}


def table():
    import pandas as pd
    kinds = pd.Categorical(["a", "b"], categories=["a", "b", SECRET])
    frame = pd.DataFrame({{"kind": kinds, "n": [1, 2]}})
    frame.attrs["source"] = SECRET
    return frame


def number():
    return os.getpid() + (0.5 if os.getpid() > 100 else 0)


def nothing():
    return SECRET


def rows(n):
    yield from range(n)


async def later(x):
    return x + 1


def make():
    return Model(7)


def die():
    os._exit(5)


def quit():
    sys.exit(SECRET)


def optimise(objective):
    return objective(2.0) + 1


def big_endian():
    return np.arange(3, dtype=">i4")
'''


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with trial_folder() as folder:
        write_package(folder / "scorer", {"scorer.py": _SOURCE, "enclave.toml": _MANIFEST})
        yield folder


def _run(folder: Path, *cells: str) -> tuple[list[Mapping[str, Any]], int]:
    return try_cells(folder, folder / "scorer", *cells)


def _user_texts(step: Mapping[str, Any]) -> str:
    return json.dumps(step["user"])


def test_results_cross_and_the_owner_sees_the_truth(folder: Path) -> None:
    steps, code = _run(
        folder,
        "score([1, 0])",
        "scorer.score([1]), sum(rows(5)), await later(1)",
        "model = Model(size=3)\nmodel.predict(2) + model.size",
        "make().size",
        "optimise(lambda x: x * 10)",
        "len",
        "None",
    )
    assert code == 0
    first, _, *rest = steps
    assert first["owner"]["stdout"] == f"{_SECRET} printed\nwritten"
    assert first["owner"]["stderr"] == f"{_SECRET} warned\n"
    assert (first["owner"]["result"], first["owner"]["type"]) == ("[True, False]", "list")
    assert first["user"]["result"] == "[True, False]"
    assert first["user"]["output"] == first["user"]["stderr"] == ""
    assert [call["name"] for call in first["calls"]] == ["score"]
    assert [step["user"]["result"] for step in rest[:3]] == ["9", "7", "21.0"]
    assert all(_SECRET not in _user_texts(step) for step in steps)
    assert all(step["notes"] == [] for step in steps)


def test_functions_of_the_user(folder: Path) -> None:
    steps, code = _run(folder, "optimise(lambda x: 1 / 0)", "def f(): pass\noptimise(f)", "score?")
    assert code == 1
    for step, error in zip(steps[:2], ("ZeroDivisionError", "TypeError"), strict=True):
        assert step["user"]["error"] == step["owner"]["error"]
        assert step["user"]["error"].startswith(error)
        assert step["calls"][0]["error"] == step["user"]["error"]
        assert step["user"]["incident"] == ""
        assert "callback" not in step["user"]["traceback"]
    assert "Signature: score(rows, *, threshold=0.5)" in steps[2]["user"]["output"]
    assert steps[2]["owner"]["error"].startswith("SyntaxError")
    assert "IPython" in steps[2]["notes"][0]
    result = try_package(folder, folder / "scorer", "-c", "optimise(lambda x: 1 / 0)")
    assert result.stdout.count("caught") == 0


def test_the_package_by_its_name_needs_no_import(folder: Path) -> None:
    steps, code = _run(folder, "scorer.score([1, 0])")
    assert code == 0
    assert steps[0]["user"]["result"] == "[True, False]"


def test_an_incident_has_its_traceback_beside_it(folder: Path) -> None:
    caught = "try:\n    fail()\nexcept Exception as error:\n    kept = error\nscore([1])"
    steps, code = _run(folder, "fail()", caught, "Model().broken()", "quit()")
    assert code == 1
    for step in (steps[0], steps[2], steps[3]):
        assert not step["crossed"]
        incident = step["user"]["incident"]
        assert len(incident) == 16
        assert f"[incident {incident}]" in step["user"]["error"]
        assert "<encrypted scorer 1.2.0>" in step["user"]["traceback"]
        assert _SECRET not in _user_texts(step)
        assert step["calls"][-1]["incident"] == incident
    assert steps[0]["owner"]["error"] == f"KeyError: '{_SECRET}'"
    assert "raise KeyError(SECRET)" in steps[0]["owner"]["traceback"]
    assert "scorer.py" in steps[0]["owner"]["traceback"]
    assert "plain_run" not in steps[0]["owner"]["traceback"]
    assert "raise OSError(SECRET)" in steps[2]["owner"]["traceback"]
    # The cell got over it; the call did not cross all the same.
    failed, scored = steps[1]["calls"]
    assert not steps[1]["crossed"]
    assert steps[1]["user"]["error"] == ""
    assert failed["incident"] and "raise KeyError(SECRET)" in failed["owner_traceback"]
    assert scored["error"] == scored["owner_error"] == ""


def test_what_the_policy_lets_out_and_what_it_refuses(folder: Path) -> None:
    steps, code = _run(
        folder, "refuse()", "leak()", "score([1], undeclared=2)", "score(object())", "Model.hidden"
    )
    assert code == 1
    refused, leaked, undeclared, argument, hidden = steps
    assert refused["user"]["error"] == refused["owner"]["error"] == "ValueError: at least one row"
    assert refused["user"]["incident"] == ""
    assert "cannot leave the encrypted package" in leaked["user"]["error"]
    assert "scorer.Model" in leaked["owner"]["cannot_leave"]
    assert any("key 'model'" in note for note in leaked["notes"])
    assert "Model" not in _user_texts(leaked)
    assert undeclared["user"]["error"].startswith("TypeError")
    assert undeclared["owner"]["result"] == "[True]"
    assert argument["user"]["error"].startswith("ValueRefusedError: argument 'rows'")
    assert hidden["user"]["error"].startswith("AttributeError")


def test_what_is_lost_at_the_boundary_is_named(folder: Path) -> None:
    large = "import numpy\nnumpy.zeros(2**20 + 1)"
    steps, code = _run(folder, "table()", "big_endian()", "number()", "nothing()", large, "Model()")
    assert code == 0
    table, array, number, nothing, uncompared, handle = (step["notes"] for step in steps)
    assert (uncompared, handle) == (["not compared: more than 8 MiB"], [])
    assert len(table) == 2
    assert all(note.startswith("lost at the boundary: ") for note in table)
    assert "attrs" in table[0] and "['kind'] has categories that no row has" in table[1]
    assert array == ["lost at the boundary: the array has dtype int32 for the user, >i4 for you"]
    assert [note.partition(":")[0] for note in number] == ["the two runs differ"]
    assert len(nothing) == 1 and "the user gets no value" in nothing[0]
    assert _SECRET not in "".join(map(_user_texts, steps))


def test_a_call_that_ends_its_process(folder: Path) -> None:
    steps, code = _run(folder, "die()", "score([1])")
    assert code == 1
    died, after = steps
    assert died["owner"]["error"] == "the process ended by itself with exit code 5"
    assert died["user"]["error"].startswith("VaultDiedError")
    assert "exit code 5" in died["user"]["error"]
    assert after["user"]["error"].startswith("VaultDiedError")


def test_text_and_progress_as_the_policy_has_them(folder: Path) -> None:
    source = (
        "import tqdm\nfrom enclave_kernel import vault\n"
        "def work():\n    print('half way')\n    vault.progress(0.5)\n"
        "    return sum(tqdm.tqdm(range(5)))\n"
    )
    manifest = '[exports]\nfunctions = {{ work = "work()" }}\n[policy]\noutput = "{}"\n'
    for output in ("text", "progress", "none"):
        package = folder / f"output-{output}"
        write_package(package, {"work.py": source, "enclave.toml": manifest.format(output)})
        steps, code = try_cells(folder, package, "work()")
        assert code == 0
        shown = steps[0]["user"]["output"]
        assert ("half way" in shown) == (output == "text")
        assert ("50%" in shown) == (output != "none")
        assert ("5/5" in shown) == (output != "none")
        assert steps[0]["owner"]["stdout"] == "half way\n"
        assert "5/5" in steps[0]["owner"]["stderr"]


def test_code_that_cannot_be_imported(folder: Path) -> None:
    package = folder / "broken"
    source = f"raise RuntimeError('{_SECRET}')\ndef f(): pass\n"
    manifest = '[exports]\nfunctions = { f = "f()" }\n'
    write_package(package, {"broken.py": source, "enclave.toml": manifest})
    result = try_package(folder, package, "--json", "-c", "f()")
    assert result.returncode == 1
    (step,) = json.loads(result.stdout)["steps"]
    assert step["kind"] == "load"
    assert f"[incident {step['user']['incident']}]" in step["user"]["error"]
    assert "broken-0.0.0.encrypted" in step["user"]["error"]
    assert f"RuntimeError: {_SECRET}" in step["owner"]["traceback"]
    assert _SECRET not in _user_texts(step)


def test_two_columns_or_one_below_the_other(folder: Path) -> None:
    wide = try_package(folder, folder / "scorer", "-c", "score([1])", "-c", "fail()")
    assert wide.returncode == 1
    assert wide.stderr == ""
    (titles,) = {line for line in wide.stdout.splitlines() if "the user sees" in line}
    assert "you see" in titles
    assert "scorer 1.2.0" in wide.stdout and "walls: " in wide.stdout
    assert "[incident" in wide.stdout and "KeyError" in wide.stdout
    narrow = try_package(
        folder,
        folder / "scorer",
        "-c",
        "score([1])",
        command=["env", "COLUMNS=60", *COMMAND],
    )
    assert narrow.returncode == 0
    assert not any(
        "the user sees" in line and "you see" in line for line in narrow.stdout.splitlines()
    )
    assert "the user sees" in narrow.stdout


def test_cells_from_a_file_and_from_the_prompt(folder: Path) -> None:
    (folder / "cell.py").write_text("limit = 0.25\nscore([limit], threshold=limit)\n")
    result = try_package(
        folder, folder / "scorer", "--json", "-f", "cell.py", "-c", "score([limit])"
    )
    assert result.returncode == 0
    steps = json.loads(result.stdout)["steps"][1:]
    assert [step["user"]["result"] for step in steps] == ["[False]", "[False]"]
    typed = "score([1])\nfor _ in range(2):\n    print(score([0]))\n\nawait later(41)\n"
    result = try_package(folder, folder / "scorer", typed=typed)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the user sees") == 3
    assert ">>>" not in result.stdout
    assert result.stdout.count("[False]") == 4
    assert result.stdout.count("42") == 2


def test_wrong_usage_and_wrong_manifests_are_one_line(folder: Path) -> None:
    package = folder / "scorer"
    for wrong in (["x"], ["--json"], ["--script", "a.py", "-c", "1"]):
        assert try_package(folder, package, *wrong).returncode == 2
    missing = try_package(folder, package, "-f", "none.py")
    assert missing.returncode == 1
    assert missing.stderr == "enclave-owner: none.py: cannot be read: No such file or directory\n"
    misspelt = folder / "misspelt"
    write_package(misspelt, {"a.py": "", "enclave.toml": "[polcy]\n"})
    result = try_package(folder, misspelt, "-c", "1")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "did you mean 'policy'?" in result.stderr


def test_nothing_is_written_beside_the_package(folder: Path) -> None:
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    steps, _ = _run(folder, "score([1])")
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert steps


@pytest.mark.skipif(os.geteuid() != 0, reason="walls need root")
def test_the_walls_are_those_of_an_enclave(folder: Path) -> None:
    result = try_package(folder, folder / "scorer", "--json", "-c", "1")
    document = json.loads(result.stdout)
    walls = document["walls"]
    assert document["missing_walls"] == ["control group"]
    assert "system call allow-list" in walls
    assert "user and group of its own" in walls
