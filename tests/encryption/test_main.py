"""`enclave-owner` where it hardly can begin: modules missing, streams closed, Ctrl-C at once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import enclave_encryption

_TIMEOUT_S = 60
_COMMAND = [sys.executable, "-m", "enclave_encryption"]


def _run(arguments: Sequence[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        arguments,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Return a folder to import from that has the owner's package, and nothing it needs."""
    (tmp_path / "enclave_encryption").symlink_to(Path(enclave_encryption.__file__).parent)
    return tmp_path


def test_without_its_extra_one_line_says_what_to_install(alone: Path) -> None:
    command = [sys.executable, "-S", *_COMMAND[1:], "--help"]
    result = _run(command, PYTHONPATH=str(alone))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "enclave-owner: there is no module click: pip install 'enclave-kernel[owner]'\n"
    )


def test_an_interrupt_while_it_is_imported(alone: Path) -> None:
    (alone / "click.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    result = _run([*_COMMAND, "--help"], PYTHONPATH=str(alone))
    assert result.returncode == 130
    assert (result.stdout, result.stderr) == (
        "",
        "enclave-owner: interrupted; nothing was written\n",
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_with_closed_streams(tmp_path: Path, closed: str) -> None:
    (tmp_path / "one.py").write_text("def one():\n    return 1\n")
    (tmp_path / "enclave.toml").write_text('[exports]\nfunctions = { one = "one()" }\n')
    tried = _run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *_COMMAND, "try", str(tmp_path), "-c", "one()"]
    )
    assert tried.returncode == 0
    assert tried.stderr == ""
    assert ("the user sees" in tried.stdout) == (">&-" not in closed.split())


def test_a_terminal_without_all_characters(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def one():\n    return '\N{EURO SIGN}'\n")
    (tmp_path / "enclave.toml").write_text('[exports]\nfunctions = { one = "one()" }\n')
    arguments = [*_COMMAND, "try", str(tmp_path), "-c", "one()"]
    tried = _run(arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert (tried.returncode, tried.stderr) == (0, "")
    assert tried.stdout.count("'\\u20ac'") == 2
