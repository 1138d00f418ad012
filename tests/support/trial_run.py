"""`enclave-owner try` as its owner runs it, and what it says as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.package_owner import open_folder

__all__ = [
    "COMMAND",
    "descendants",
    "environment",
    "start_times",
    "trial_folder",
    "try_cells",
    "try_package",
]

COMMAND = [sys.executable, "-m", "enclave_encryption", "try"]
_TIMEOUT_S = 150


@contextmanager
def trial_folder() -> Iterator[Path]:
    """Return a folder for packages and, in `tmp`, for what `try` makes; it must leave nothing."""
    with open_folder() as folder:
        temporary = folder / "tmp"
        temporary.mkdir(mode=0o711)
        temporary.chmod(0o711)
        yield folder
        assert list(temporary.iterdir()) == []


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "COLUMNS": "140",
    }


def try_package(
    folder: Path, *arguments: str | Path, typed: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `try` with `folder` as working directory; no Python variable gets in its way."""
    return subprocess.run(
        [*options.pop("command", COMMAND), *map(str, arguments)],
        cwd=folder,
        env=environment(folder),
        input=typed or "",
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        **options,
    )


def try_cells(folder: Path, package: Path, *cells: str) -> tuple[list[Mapping[str, Any]], int]:
    """Return the steps of these cells, without loading, and the exit code."""
    more = [word for cell in cells for word in ("-c", cell)]
    result = try_package(folder, package, "--json", *more)
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["crossed"] == (result.returncode == 0)
    assert [step["kind"] for step in document["steps"][:1]] == ["load"]
    return document["steps"][1:], result.returncode


def _processes() -> dict[int, tuple[int, str]]:
    """Return parent and start time of every process that has not ended."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[1]), fields[19]
    return found


def start_times() -> dict[int, str]:
    """Return every process, with what tells it from a later one of its number."""
    return {pid: started for pid, (_, started) in _processes().items()}


def descendants(pid: int) -> dict[int, str]:
    """Return every process below `pid`, in the same form."""
    processes = _processes()
    found: dict[int, str] = {}
    front = [pid]
    while front:
        front = [child for child, (parent, _) in processes.items() if parent in front]
        found.update({child: processes[child][1] for child in front})
    return found
