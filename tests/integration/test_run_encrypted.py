"""`%run_encrypted` through a real local enclave: the AWS sample's conventions, and refusals."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.notebook_cells import finish_cell, run_cell, vault_pids
from tests.support.package_owner import PackageOwner, open_folder, write_package

# As the AWS sample has it: a script, a model beside it, data in /dataset/, results in /output/.
_SCRIPT = """
import argparse
import os
import sys
parser = argparse.ArgumentParser()
parser.add_argument("-m", "--model")
parser.add_argument("-d", "--data")
parser.add_argument("-o", "--output")
options = parser.parse_args()
factor = int(open(options.model).read())
print("secret banner of", __name__, flush=True)
print("weights in progress", file=sys.stderr)
left_open = open(os.path.join(options.output, "left_open.txt"), "w")
left_open.write("flushed at the end")
os.makedirs(os.path.join(options.output, "deep"), exist_ok=True)
for name in sorted(os.listdir(options.data)):
    path = os.path.join(options.data, name)
    if os.path.isfile(path):
        text = open(path).read()
        with open(os.path.join(options.output, "deep", name + ".out"), "w") as out:
            out.write(str(int(text) * factor))
os.symlink("/etc/passwd", os.path.join(options.output, "link"))
open(os.path.join(options.data, "b.txt"), "w").write("changed by the script")
print("read", options.data, "wrote", options.output)
"""
_OTHERS = {
    "exit.py": "import sys; sys.exit(int(sys.argv[1]))",
    "says.py": "import sys; sys.exit('secret farewell')",
    "raises.py": "raise ValueError('secret value')",
    "quiet.py": "print('secret output')",
    "plant.py": "import sys; open(sys.argv[1] + '/.bashrc', 'w').write('evil')",
    "sleep.py": "import time; print('asleep', flush=True); time.sleep(60)",
    "helper.py": "VALUE = 42",
    "imports.py": "import helper; print(helper.VALUE, __file__.startswith('/vault-'))",
    "look.py": """
import os, sys
code = tuple({"/proc", "/usr", "/lib", "/opt", sys.prefix, *filter(None, sys.path)})
found = []
for base, _, files in os.walk("/"):
    if not base.startswith(code):
        found += [os.path.join(base, name) for name in files if name.endswith(".csv")]
print(found)
""",
}
_MANIFEST = """
[package]
name = "app"
version = "1.0"
[scripts]
classify = { file = "ml_algorithm.py", output = "text" }
quiet = { file = "quiet.py", output = "none" }
""" + "\n".join(
    f'{name[:-3]} = {{ file = "{name}", output = "text" }}'
    for name in _OTHERS
    if name not in ("quiet.py", "helper.py")
)


@pytest.fixture(scope="module")
def workspace(enclave: EnclaveHome) -> Iterator[Path]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        files = {"enclave.toml": _MANIFEST, "ml_algorithm.py": _SCRIPT, "model.h5": "7", **_OTHERS}
        source = write_package(folder / "source", files)
        owner.encrypt(source, owner.new_key(status["pcrs"]["0"]), folder / "app.encrypted")
        _remove(source)
        write_package(folder / "dataset", {"a.txt": "1", "b.txt": "2", "sub/c.txt": "3"})
        (folder / "dataset" / "away.txt").symlink_to("/etc/hostname")
        (folder / "private.csv").write_text("not for the script")
        yield folder


def _remove(folder: Path) -> None:
    """Remove the owner's plain files: the user never has them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.fixture
def notebook(workspace: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with kernel(cwd=str(workspace)) as both:
        yield both


def _run(client: BlockingKernelClient, line: str) -> tuple[str, str]:
    """Return what was printed, and the error's line."""
    cell = run_cell(client, f"%run_encrypted app.encrypted {line}", 60)
    return cell.printed, "" if cell.error is None else "\n".join(cell.error.traceback)


def test_the_samples_command_line(
    workspace: Path, notebook: tuple[KernelManager, BlockingKernelClient]
) -> None:
    _, client = notebook
    (workspace / "output").mkdir()
    (workspace / "output" / "kept.txt").write_text("mine")
    printed, error = _run(client, "ml_algorithm.py -m model.h5 -d /dataset/ -o /output/")
    assert error == ""
    assert printed == (
        "secret banner of __main__\n"
        "read /dataset/ wrote /output/\n"
        "Wrote /output/deep/a.txt.out, /output/deep/b.txt.out, /output/left_open.txt\n"
    )
    assert (workspace / "output" / "deep" / "a.txt.out").read_text() == "7"
    assert (workspace / "output" / "deep" / "b.txt.out").read_text() == "14"
    assert (workspace / "output" / "left_open.txt").read_text() == "flushed at the end"
    assert (workspace / "output" / "kept.txt").read_text() == "mine"
    # Links stay in the vault, and the inputs are the user's.
    assert not (workspace / "output" / "link").is_symlink()
    assert (workspace / "dataset" / "b.txt").read_text() == "2"
    assert run_code(client, "print(_exit_code)") == "0\n"
    # Again, under the script's name, over what is there.
    printed, error = _run(client, "classify --model=model.h5 --data=/dataset --output=/output")
    assert (error, "Wrote /output/deep/a.txt.out" in printed) == ("", True)
    assert not list(workspace.glob(".enclave-*"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("exit.py 3", "exit.py ended with exit code 3"),
        ("says.py", "says.py ended with exit code 1"),
        ("ml_algorithm.py --unknown", "ml_algorithm.py ended with exit code 2"),
    ],
)
def test_exit_codes(
    notebook: tuple[KernelManager, BlockingKernelClient], line: str, expected: str
) -> None:
    _, client = notebook
    printed, error = _run(client, line)
    assert (printed, error) == ("", f"ScriptFailedError: {expected}")
    assert run_code(client, "print(_exit_code)") == f"{expected[-1]}\n"


def test_an_exception_shows_its_type_and_an_incident(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    printed, error = _run(notebook[1], "raises.py")
    assert printed == ""
    assert "ended with exit code 1" in error
    assert "ValueError" in error
    assert "incident" in error
    assert "secret" not in error


def test_output_that_the_owner_does_not_show(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    assert _run(notebook[1], "quiet.py") == ("", "")


def test_modules_beside_the_script_can_be_imported(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    printed, error = _run(notebook[1], "imports.py")
    assert (printed.split()[:1], error) == (["42"], "")


def test_it_sees_nothing_that_was_not_named(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    assert _run(notebook[1], "look.py") == ("[]\n", "")
    printed, _ = _run(notebook[1], "look.py /private.csv")
    assert "private.csv" in printed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nothing.py", "the package has no script 'nothing.py'; it has: "),
        ("helper.py", "the package has no script 'helper.py'"),
        ("exit.py 0 /missing/file", "/missing/file is not in the workspace"),
        ("plant.py /output/", "/output/.bashrc, whose name could run code"),
    ],
)
def test_what_is_refused_says_so_in_one_line(
    workspace: Path,
    notebook: tuple[KernelManager, BlockingKernelClient],
    line: str,
    expected: str,
) -> None:
    _, error = _run(notebook[1], line)
    assert expected in error
    assert "\n" not in error
    assert not list(workspace.rglob(".bashrc"))
    assert not list(workspace.glob(".enclave-*"))


def test_usage(notebook: tuple[KernelManager, BlockingKernelClient]) -> None:
    cell = run_cell(notebook[1], "%run_encrypted app.encrypted")
    assert cell.printed.startswith("UsageError: usage: %run_encrypted")


def test_interrupt_ends_it_and_leaves_no_vault(
    notebook: tuple[KernelManager, BlockingKernelClient], enclave: EnclaveHome
) -> None:
    manager, client = notebook
    before = set(vault_pids(enclave))
    request = client.execute("%run_encrypted app.encrypted sleep.py", stop_on_error=False)
    assert wait_until(lambda: _has_printed(client, "asleep"), 30)
    manager.interrupt_kernel()
    cell = finish_cell(client, request, 30)
    assert cell.error is not None
    assert cell.error.name == "KeyboardInterrupt"
    assert run_code(client, "print('alive')") == "alive\n"
    assert wait_until(lambda: len(set(vault_pids(enclave)) - before) <= 1)


def _has_printed(client: BlockingKernelClient, text: str) -> bool:
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["msg_type"] == "stream" and text in message["content"]["text"]:
            return True
