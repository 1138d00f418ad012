"""The processes of `enclave-owner try`: whose they are, and that none outlives it."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package_owner import write_package
from tests.support.trial_run import (
    COMMAND,
    descendants,
    environment,
    start_times,
    trial_folder,
    try_cells,
    try_package,
)

_WAIT_S = 90
_MANIFEST = '[exports]\nfunctions = { wait = "wait()", spawn = "spawn()", one = "one()" }\n'
_SOURCE = """
import subprocess, time
def wait():
    time.sleep(1000)
def spawn():
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)
def one():
    return 1
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with trial_folder() as folder:
        write_package(folder / "slow", {"slow.py": _SOURCE, "enclave.toml": _MANIFEST})
        (folder / "marks").mkdir(mode=0o777)
        yield folder


def _marked(folder: Path, call: str) -> str:
    """Return a cell that leaves a mark on each side before it calls."""
    marks = str(folder / "marks")
    return f"import os\nopen({marks!r} + f'/{{os.getpid()}}', 'w').close()\n{call}"


def _await_marks(folder: Path, process: "subprocess.Popen[str]", number: int) -> None:
    deadline = time.monotonic() + _WAIT_S
    while len(list((folder / "marks").iterdir())) < number:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def _start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, str(folder / "slow"), *arguments],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _await_ends(processes: dict[int, str]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while left := processes.items() & start_times().items():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


# C code that holds Python's lock, on both sides: their own readers cannot end them.
_LOCKED = "import re; re.match('(a+)+$', 'a' * 40 + 'b')"


@pytest.mark.parametrize(
    ("call", "stop"),
    [
        *itertools.product(["wait()", "spawn()"], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]),
        (_LOCKED, signal.SIGINT),
    ],
)
def test_however_it_ends_no_process_is_left(folder: Path, call: str, stop: signal.Signals) -> None:
    process = _start(folder, "-c", _marked(folder, call))
    try:
        _await_marks(folder, process, 2)
        started = descendants(process.pid)
        # Two sides and a vault; what the owner's code starts may be on its way.
        assert len(started) >= 3
        # As Ctrl-C does it: all of the terminal's processes.
        os.killpg(process.pid, stop)
        for _ in range(3 if stop == signal.SIGINT else 0):
            # Impatience interrupts no cleaning up.
            time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, stop)
        _, errors = process.communicate(timeout=_WAIT_S)
    finally:
        process.kill()
        process.wait()
    if stop == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert errors == "enclave-owner: interrupted; nothing was written\n"
    _await_ends(started)


def test_at_the_prompt_an_interrupt_ends_the_cell(folder: Path) -> None:
    process = _start(folder)
    try:
        assert process.stdin is not None
        cell = _marked(folder, "wait()").replace("\n", "; ")
        process.stdin.write(f"one()\n{cell}\n")
        process.stdin.flush()
        _await_marks(folder, process, 2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate("one() + 98764\n", timeout=_WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert errors == ""
    assert process.returncode == 1
    assert output.count("KeyboardInterrupt") >= 2
    assert output.count("98765") == 2


def test_without_what_an_enclave_has_one_line_says_what_to_install(
    folder: Path, tmp_path: Path
) -> None:
    environment_folder = tmp_path / "environment"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(environment_folder)], check=True
    )
    (packages,) = environment_folder.glob("lib/python3*/site-packages")
    (installed,) = Path(sys.prefix).glob("lib/python3*/site-packages")
    for path in installed.iterdir():
        if not path.name.lower().startswith(("ipython", "ipykernel")):
            (packages / path.name).symlink_to(path)
    command = [str(environment_folder / "bin" / "python"), *COMMAND[1:]]
    result = try_package(folder, folder / "slow", "-c", "one()", command=command)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "enclave-owner: `try` needs what an enclave has installed, and here there is no module "
        "IPython: pip install 'enclave-kernel[owner,enclave]'\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_another_user(folder: Path) -> None:
    uid = 65534
    probe = [sys.executable, "-I", "-c", "import enclave_kernel"]
    if subprocess.run(probe, user=uid, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("other users cannot read this environment")
    os.chown(folder / "tmp", uid, uid)
    result = try_package(
        folder,
        folder / "slow",
        "-c",
        "one()",
        user=uid,
        group=uid,
        extra_groups=[],
    )
    assert result.returncode == 0, result.stderr
    assert "user and group of its own" not in result.stdout.partition("only in an enclave")[0]
    assert "no new privileges" in result.stdout
    missing = " ".join(result.stdout.partition("only in an enclave: ")[2].split())
    assert missing.startswith(
        "user and group of its own; no capabilities; namespaces; read-only root, own /proc, /dev "
        "and /tmp; system call allow-list; control group (run as root for more)"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="without root a vault sees what its user sees")
def test_the_vault_sees_nothing_of_the_directory(folder: Path) -> None:
    look = "import os\ndef look(path):\n    return os.path.exists(path)\n"
    manifest = '[exports]\nfunctions = { look = "look(path)" }\n'
    write_package(folder / "look", {"look.py": look, "enclave.toml": manifest})
    steps, _ = try_cells(folder, folder / "look", f"look({str(folder / 'look')!r})")
    assert steps[0]["owner"]["result"] == "True"
    assert steps[0]["user"]["result"] == "False"
    assert steps[0]["notes"] == [
        "the two runs differ: the value is False for the user, True for you"
    ]
