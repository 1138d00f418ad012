"""`enclave-owner try DIR --script`: a script for its owner, and as `%run_encrypted` runs it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.package_owner import write_package
from tests.support.trial_run import trial_folder, try_package

_SECRET = "canary-77ab01"
_SCRIPT = f"""
import argparse, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("-m", "--model")
parser.add_argument("-d", "--data")
parser.add_argument("-o", "--output")
parser.add_argument("--code", type=int, default=0)
options = parser.parse_args()
factor = int(open(options.model).read())
print("reading", options.data)
print("{_SECRET}", file=sys.stderr)
for name in sorted(os.listdir(options.data)):
    path = os.path.join(options.data, name)
    with open(os.path.join(options.output, name), "w") as out:
        out.write(str(int(open(path).read()) * factor))
    open(path, "w").write("changed by the script")
os.mkdir(os.path.join(options.output, "run"))
open(os.path.join(options.output, "run", "log.txt"), "w").write(str(os.getpid()))
os.symlink("/etc/hostname", os.path.join(options.output, "link"))
if options.code == 99:
    raise RuntimeError("{_SECRET}")
sys.exit(options.code)
"""
_MANIFEST = """
[scripts]
classify = { file = "classify.py", output = "text" }
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with trial_folder() as folder:
        files = {"classify.py": _SCRIPT, "model.h5": "7", "enclave.toml": _MANIFEST}
        write_package(folder / "app", files)
        write_package(folder / "dataset", {"a.txt": "1", "b.txt": "2"})
        write_package(folder / "elsewhere", {"dataset/a.txt": "5"})
        yield folder


def _run(folder: Path, *arguments: str) -> tuple[Mapping[str, Any], int]:
    result = try_package(folder, folder / "app", "--json", *arguments)
    assert result.stderr == ""
    (step,) = json.loads(result.stdout)["steps"]
    assert step["kind"] == "script"
    return step, result.returncode


_ARGUMENTS = ("-m", "model.h5", "-d", "/dataset/", "--output=/results/")


def test_both_sides_on_copies(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    step, code = _run(folder, "--script", "classify", "--", *_ARGUMENTS)
    assert code == 0
    owner, user = step["owner"], step["user"]
    assert owner["stdout"] == "reading /dataset/\n"
    assert user["output"] == "reading /dataset/"
    assert _SECRET in owner["stderr"] and _SECRET not in json.dumps(user)
    assert owner["exit_code"] == user["exit_code"] == 0
    assert user["files"] == ["/results/a.txt", "/results/b.txt", "/results/run/log.txt"]
    # Each side has its own process number; the rest is the same.
    assert step["notes"] == [
        "/results/run/log.txt has other contents for the user: the two runs differ"
    ]
    assert (folder / "dataset" / "a.txt").read_text() == "1"
    assert sorted(folder.rglob("*")) == before


def test_exit_codes_and_errors(folder: Path) -> None:
    step, code = _run(folder, "--script", "classify.py", "--", *_ARGUMENTS, "--code", "3")
    assert code == 1
    assert step["owner"]["exit_code"] == step["user"]["exit_code"] == 3
    step, code = _run(folder, "--script", "classify.py", "--", *_ARGUMENTS, "--code", "99")
    assert code == 1
    assert f"[incident {step['user']['incident']}]" in step["user"]["error"]
    assert f"RuntimeError: {_SECRET}" in step["owner"]["traceback"]
    assert "runpy" not in step["owner"]["traceback"]
    assert _SECRET not in json.dumps(step["user"])
    step, code = _run(folder, "--script", "classify.py", "--", "-d", "/none/", "-m", "model.h5")
    assert code == 1
    assert "/none is not in the workspace" in step["user"]["error"]


def test_a_compiled_program(folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = (
        "#include <stdio.h>\n"
        "int main(int count, char **words) {\n"
        '    printf("%s has %d\\n", words[0], count);\n'
        f'    fprintf(stderr, "{_SECRET}\\n");\n'
        '    return fopen(words[1], "r") ? 7 : 8;\n'
        "}\n"
    )
    (folder / "tool.c").write_text(source)
    app = folder / "app"
    command = [compiler, "-o", str(app / "tool"), str(folder / "tool.c")]
    subprocess.run(command, check=True)
    (app / "enclave.toml").write_text(
        '[scripts]\ntool = { file = "tool" }\n[policy]\nnative = true\n'
    )
    step, code = _run(folder, "--script", "tool", "--", "/dataset/a.txt")
    assert code == 1
    owner, user = step["owner"], step["user"]
    assert owner["stdout"] == "tool has 2\n" and user["output"] == "tool has 2"
    assert owner["exit_code"] == user["exit_code"] == 7
    assert owner["stderr"] == f"{_SECRET}\n" and _SECRET not in json.dumps(user)
    assert step["notes"] == []


def test_a_script_that_is_not_there(folder: Path) -> None:
    result = try_package(folder, folder / "app", "--script", "nope.py")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "enclave-owner: the package has no script 'nope.py'; it has: classify.py\n"
    )


def test_a_script_that_no_user_can_run(folder: Path) -> None:
    (folder / "app" / "other.py").write_text("print(1)")
    result = try_package(folder, folder / "app", "--script", "other.py")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"enclave-owner: other.py is not declared in [scripts] of {folder}/app/enclave.toml, so "
        "no user can run it; declared: classify.py\n"
    )


def test_another_workspace(folder: Path) -> None:
    more = ("--workspace", "elsewhere", "--script", "classify.py", "--", *_ARGUMENTS)
    step, code = _run(folder, *more)
    assert code == 0
    assert step["user"]["files"] == ["/results/a.txt", "/results/run/log.txt"]


def test_for_people(folder: Path) -> None:
    result = try_package(folder, folder / "app", "--script", "classify", "--", *_ARGUMENTS)
    assert result.returncode == 0
    assert "script classify.py -m model.h5" in result.stdout
    assert "/results/a.txt" in result.stdout
    assert os.sep + "owner-workspace" not in result.stdout
