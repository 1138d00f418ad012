"""An owner's notebook through a real local enclave: what the user types, sees and gets."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.notebook_cells import finish_cell, run_cell, vault_pids
from tests.support.notebook_source import notebook_source, read_executed, shown_text
from tests.support.package_owner import PackageOwner, open_folder, write_package

_REPORT = notebook_source(
    "import csv, sys\nimport formula  # SOURCE-CANARY\nfrom pathlib import Path\n"
    "data, output = sys.argv[2], sys.argv[4]\nprint('reading', data)",
    "rows = [float(line) for line in Path(data, 'rows.txt').read_text().split()]\n"
    "kept = [formula.weigh(row) for row in rows if row > threshold]\nkept",
    "Path(output, 'kept.csv').write_text('\\n'.join(map(str, kept)))\nname.upper()",
    "try:\n    import matplotlib.pyplot as plt\nexcept ImportError:\n    figure = None\n"
    "else:\n    figure = plt.figure(figsize=(2, 1))\n    plt.plot(kept);",
    parameters="threshold = 100.0\nname = 'nobody'",
)
_FAILING = notebook_source(
    "print('so far')", "secret = 'VALUE-CANARY'\nraise RuntimeError(secret)", "print('never')"
)
_SLEEPING = notebook_source("print('asleep')", "import time\ntime.sleep(120)")
_MANIFEST = """
[package]
name = "app"
version = "1.0"
[scripts]
report = { file = "report.ipynb" }
failing = { file = "notebooks/failing.ipynb" }
sleeping = { file = "sleeping.ipynb" }
none = { file = "none.ipynb", output = "none" }
progress = { file = "progress.ipynb", output = "progress" }
"""


@pytest.fixture(scope="module")
def workspace(enclave: EnclaveHome) -> Iterator[Path]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        files = {
            "enclave.toml": _MANIFEST,
            **dict.fromkeys(("report.ipynb", "none.ipynb", "progress.ipynb"), _REPORT),
            "notebooks/failing.ipynb": _FAILING,
            "sleeping.ipynb": _SLEEPING,
            "formula.py": "def weigh(row):\n    return row * 2  # SOURCE-CANARY\n",
        }
        source = write_package(folder / "source", files)
        owner.encrypt(source, owner.new_key(status["pcrs"]["0"]), folder / "app.encrypted")
        # The user never has the owner's files.
        shutil.rmtree(source)
        write_package(folder / "dataset", {"rows.txt": "0.25\n0.75\n1.5\n"})
        yield folder


@pytest.fixture
def notebook(workspace: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with kernel(cwd=str(workspace)) as both:
        yield both
    shutil.rmtree(workspace / "output", ignore_errors=True)


def test_a_report_comes_back_executed(
    workspace: Path, notebook: tuple[KernelManager, BlockingKernelClient]
) -> None:
    _, client = notebook
    cell = run_cell(
        client,
        "%run_encrypted app.encrypted report.ipynb -p threshold 0.5 -p name '\"x\"' "
        "-d /dataset/ -o /output/",
        120,
    )
    assert cell.error is None
    assert cell.printed == "reading /dataset/\nWrote /output/kept.csv, /output/report.ipynb\n"
    # What its cells showed is shown here as well, and the bar.
    assert [line[:18] for line in cell.displayed][:3] == ["100%|██████████| 5", "[1.5, 3.0]", "'X'"]
    assert cell.mime_types <= {"text/plain", "image/png"}
    assert "CANARY" not in str(cell)
    assert run_code(client, "print(_exit_code)") == "0\n"
    assert (workspace / "output" / "kept.csv").read_text() == "1.5\n3.0"
    executed = read_executed((workspace / "output" / "report.ipynb").read_bytes())
    assert [c.execution_count for c in executed.cells] == [1, 2, 3, 4, 5]
    assert shown_text(executed)[:4] == ["", "reading /dataset/\n", "[1.5, 3.0]", "'X'"]
    assert not list(workspace.glob(".enclave-*"))
    if not executed.cells[4].outputs:
        pytest.skip("the rest passed; matplotlib is not installed: it is in the demo extra")
    assert cell.images == 1
    figure = base64.b64decode(executed.cells[4].outputs[-1].data["image/png"])
    pil = pytest.importorskip("PIL.Image")
    with pil.open(io.BytesIO(figure)) as image:
        assert image.format == "PNG"
        assert image.size[0] > 100
        assert len(image.getcolors(1 << 16)) > 5


def test_a_cell_that_raises_stops_it(
    workspace: Path, notebook: tuple[KernelManager, BlockingKernelClient]
) -> None:
    _, client = notebook
    cell = run_cell(client, "%run_encrypted --output /results app.encrypted failing", 60)
    assert cell.error is not None
    assert cell.error.traceback == (f"ScriptFailedError: {cell.error.value}",)
    assert cell.printed == "so far\n"
    assert "failing ended with exit code 1: EncryptedPackageError: RuntimeError in <" in (
        cell.error.value
    )
    assert "what it showed until then is in /results/failing.ipynb" in cell.error.value
    assert "CANARY" not in str(cell)
    assert run_code(client, "print(_exit_code)") == "1\n"
    executed = read_executed((workspace / "results" / "failing.ipynb").read_bytes())
    text = shown_text(executed)
    assert len(text) == 2
    assert text[0] == "so far\n"
    assert text[1].startswith("EncryptedPackageError: RuntimeError in <encrypted app 1.0>")


@pytest.mark.parametrize("policy", ["none", "progress"])
def test_outputs_that_the_owner_does_not_show(
    workspace: Path, notebook: tuple[KernelManager, BlockingKernelClient], policy: str
) -> None:
    line = f"%run_encrypted app.encrypted {policy} -p threshold 1 -d /dataset/ -o /output/"
    cell = run_cell(notebook[1], line, 120)
    assert (cell.error, cell.images) == (None, 0)
    assert cell.printed == f"Wrote /output/kept.csv, /output/{policy}.ipynb\n"
    assert [text[:4] for text in cell.displayed] == ([] if policy == "none" else ["100%"])
    executed = read_executed((workspace / "output" / f"{policy}.ipynb").read_bytes())
    assert [c.outputs for c in executed.cells] == [[]] * 5


def test_a_parameter_of_a_wrong_type(
    workspace: Path, notebook: tuple[KernelManager, BlockingKernelClient]
) -> None:
    line = "%run_encrypted app.encrypted report -p threshold high -d /dataset/ -o /output/"
    cell = run_cell(notebook[1], line, 120)
    assert cell.error is not None and cell.error.name == "ScriptFailedError"
    assert "exit code 1: EncryptedPackageError: TypeError in <encrypted app 1.0> [incident " in (
        cell.error.value
    )
    assert len(cell.error.traceback) == 1 and "CANARY" not in str(cell)
    executed = read_executed((workspace / "output" / "report.ipynb").read_bytes())
    assert shown_text(executed)[:2] == ["", "reading /dataset/\n"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report.ipynb -p treshold 1", "app.encrypted: its notebook has no parameter 'treshold'"),
        ("report.ipynb -p threshold", "-p needs a name and a value"),
        ("report.ipynb -p threshold 1 -d /missing/", "/missing is not in the workspace"),
        ("other.ipynb", "the package has no script 'other.ipynb'; it has: "),
    ],
)
def test_what_is_refused_says_so_in_one_line(
    workspace: Path,
    notebook: tuple[KernelManager, BlockingKernelClient],
    line: str,
    said: str,
) -> None:
    cell = run_cell(notebook[1], f"%run_encrypted app.encrypted {line}", 60)
    assert cell.error is not None
    assert said in cell.error.traceback[0]
    assert "\n" not in cell.error.traceback[0]
    assert not (workspace / "output").exists()


def test_interrupt_ends_it_and_leaves_no_vault(
    workspace: Path,
    notebook: tuple[KernelManager, BlockingKernelClient],
    enclave: EnclaveHome,
) -> None:
    manager, client = notebook
    before = set(vault_pids(enclave))
    request = client.execute("%run_encrypted app.encrypted sleeping", stop_on_error=False)
    while True:
        message = client.get_iopub_msg(timeout=60)
        # Shown when its cell has ended, and the next one begins.
        if message["msg_type"] == "stream" and message["content"]["text"] == "asleep\n":
            break
    manager.interrupt_kernel()
    cell = finish_cell(client, request, 60)
    assert cell.error is not None
    assert cell.error.name == "KeyboardInterrupt"
    assert run_code(client, "print('alive')") == "alive\n"
    assert wait_until(lambda: len(set(vault_pids(enclave)) - before) <= 1)
    assert not (workspace / "output" / "sleeping.ipynb").exists()
