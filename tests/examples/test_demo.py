"""`make demo`, from the encrypted package to the notebook's result, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "ocr" / "demo.py"

# Adopts whatever the demo leaves behind, says who that is, and ends it.
WITNESS = """
import ctypes, json, os, pathlib, signal, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
demo = subprocess.Popen(sys.argv[1:])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: demo.send_signal(number))
code = demo.wait()
left = {}
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
        parent = stat.read_text().rpartition(")")[2].split()[1]
        if int(parent) == os.getpid():
            left[stat.parent.name] = (stat.parent / "cmdline").read_text()
    except OSError:
        continue
for pid in left:
    os.kill(int(pid), signal.SIGKILL)
print(json.dumps({"code": code, "left": list(left.values())}))
"""


def start(output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WITNESS, sys.executable, str(DEMO), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(demo: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
    """Return what the demo printed, and the witness's account."""
    printed, _ = demo.communicate(timeout=150)
    *lines, account = printed.splitlines()
    return "\n".join(lines), json.loads(account)


def runtime_dirs() -> set[Path]:
    return set(Path("/tmp").glob("enclave-demo-*"))  # noqa: S108 - where the demo makes them


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo once; returns its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    # The notebook's process may have a user id of its own, and pytest's folders are closed.
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    before = runtime_dirs()
    printed, account = finish(start(folder))
    assert account == {"code": 0, "left": []}, printed
    assert runtime_dirs() <= before
    return folder, printed


def outputs(folder: Path) -> list[dict[str, Any]]:
    notebook = nbformat.read(folder / "ocr-executed.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    return [output for cell in cells for output in cell.outputs]


def test_each_step_is_announced_with_a_tick(demo: tuple[Path, str]) -> None:
    steps = re.findall(r"^✓ (\d)/5 .*$", demo[1], re.MULTILINE)
    assert steps == ["1", "2", "3", "4", "5"]
    assert "✗" not in demo[1]
    assert "NOT CONFIDENTIAL" in demo[1]
    # What the owner's own tool says of the key policy that it wrote.
    assert 'in the enclave       allowed by "EnclaveRelease"' in demo[1]
    assert 'without attestation  denied by "EnclaveDenyUnattested"' in demo[1]
    assert "Signed by RapidOCR demo" in demo[1]
    assert "ocr-executed.ipynb" in demo[1]


def test_notebook_reads_the_page(demo: tuple[Path, str]) -> None:
    found = outputs(demo[0])
    text = "".join(output.get("text", "") for output in found)
    assert text.count("Region-based segmentation") == 1
    table = next(o["data"]["text/html"] for o in found if "text/html" in o.get("data", {}))
    assert "Let us first determine markers of the coins and the" in table
    assert table.count("no text found") == 4
    assert not [output for output in found if output["output_type"] == "error"]


def test_notebook_draws_pages_and_photographs(demo: tuple[Path, str]) -> None:
    pictures = [output for output in outputs(demo[0]) if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    html = (demo[0] / "ocr-executed.html").read_text()
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', html)) == 2


def test_failing_step_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("in the way of the folder of that name")
    printed, account = finish(start(tmp_path))
    assert account == {"code": 1, "left": []}
    failures = [line for line in printed.splitlines() if line.startswith("✗")]
    assert len(failures) == 1 and "images" in failures[0] and "demo.log" in failures[0]


@pytest.mark.parametrize("after_s", [0.4, 0.8, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_point_it_leaves_nothing(
    tmp_path: Path, number: int, after_s: float
) -> None:
    tmp_path.chmod(0o755)
    before = runtime_dirs()
    demo = start(tmp_path)
    time.sleep(after_s)
    os.kill(demo.pid, number)
    printed, account = finish(demo)
    assert account["left"] == [], printed
    # Without our handler, which Python loads first, it has made nothing; or it was faster.
    finished = account["code"] == 0 and "✓ 4/5" in printed
    assert finished or account["code"] in (128 + number, -number), printed
    assert runtime_dirs() <= before
