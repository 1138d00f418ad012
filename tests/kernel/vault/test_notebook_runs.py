"""Notebooks of a package in real vaults: what runs, what comes back, and what does not."""

import base64
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_kernel.session.script_run import run_script
from enclave_protocol.errors import EnclaveError
from enclave_protocol.incident import Place, stands_for
from enclave_protocol.package_errors import PackageError
from tests.support.notebook_runs import KEY, MANIFEST, NotebookRuns
from tests.support.notebook_source import shown_text
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed, spy_package


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture
def run(link: VaultLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookRuns:
    monkeypatch.setenv("ENCLAVE_WORKSPACE", str(tmp_path))
    return NotebookRuns(link, tmp_path)


def test_text_results_and_displays_come_back(run: NotebookRuns) -> None:
    notebook, error = run(
        "import helper\nprint('CANARY'[:2], helper.VALUE)\nhelper.VALUE + 1",
        "silent = 'CANARY'",
        "from IPython.display import HTML, display, update_display, clear_output\n"
        "display(HTML('<img src=\"https://evil/\">'))\n"
        "handle = display('first', display_id='x')\nhandle.update('second')\n",
        "print('gone')\nclear_output()\nprint('\\x1b[31mred\\x1b[0m \\x1b]8;;http://evil\\x07link')",
        "",
        "import asyncio\nawait asyncio.sleep(0)\n'awaited'",
        "%time 1 + 1;\nopen('data.bin').read()",
        "1;",
    )
    assert error == ""
    assert shown_text(notebook) == [
        "CA 42\n43",
        "",
        "<IPython.core.display.HTML object>'second'",
        "red link\n",
        "",
        "'awaited'",
        "CPU times" + shown_text(notebook)[6][9:],
        "",
    ]
    assert shown_text(notebook)[6].endswith("'weights'")
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4, None, 5, 6, 7]
    assert notebook.cells[0].outputs[1].execution_count == 1


def test_parameters_override_after_their_cell(run: NotebookRuns, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "x.txt").write_text("42")
    notebook, error = run(
        "print(repr(alpha), repr(name), kept, data, path)\nopen(data + 'x.txt').read()",
        "import sys\nprint(sys.argv)",
        parameters="alpha: int = 1\nname = data = path = None\nkept = 'default'",
        arguments=(
            *("-p", "alpha", "0.5", "-p", "name", "__import__('os')", "-p", "data", "/dataset/"),
            *("-p", "path", '"/dataset/"', "-d", "/dataset/x.txt", "-o", "/output"),
        ),
    )
    assert error == ""
    assert shown_text(notebook)[1:] == [
        "0.5 \"__import__('os')\" default /dataset/ /dataset/\n'42'",
        "['deep/report.ipynb', '-d', '/dataset/x.txt', '-o', '/output']\n",
    ]
    # In quotes it is text, and no place in the vault.
    _, error = run(
        "open(path + 'x.txt')", parameters="path = ''", arguments=("-p", "path", '"/dataset/"')
    )
    assert error.startswith("1 report ended with exit code 1: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-p", "limt", "1"), "no parameter 'limt'; did you mean 'limit'?; parameters: limit"),
        (("-p", "limit"), "-p needs a name and a value"),
    ],
)
def test_other_names_cannot_be_set(
    run: NotebookRuns, arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(PackageError) as caught:
        run("other = 1", parameters="limit = 1\n_hidden = 2", arguments=arguments)
    assert said in str(caught.value)


def test_a_cell_that_raises_is_the_last(run: NotebookRuns) -> None:
    notebook, error = run(
        "secret = 'SOURCE-CANARY'\nprint('before')",
        "def fail():\n    raise ValueError(secret)\nprint('during')\nfail()",
        "print('never')",
    )
    assert error.startswith("1 report ended with exit code 1: EncryptedPackageError: ValueError in")
    assert error.endswith("; what it showed until then is in /output/report.ipynb")
    assert len(notebook.cells) == 2
    during, failure = notebook.cells[1].outputs
    assert during.text == "during\n"
    assert failure.output_type == "error"
    assert failure.traceback == [f"{failure.ename}: {failure.evalue}"]
    assert "incident" in failure.evalue


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("raise KeyError('shown')", "KeyError: 'shown'"),
        ("x = = CANARY", "SyntaxError"),
        ("class Own(LookupError): pass\nraise Own('CANARY')", "LookupError in <encrypted app 1>"),
        ("%no_such_magic CANARY", "Exception in <encrypted app 1>"),
        ("!echo CANARY", "OSError in <encrypted app 1>"),
        ("%%html\n<script>CANARY</script>\n", ""),
        ("raise KeyboardInterrupt('CANARY')", "130 report ended with exit code 130"),
        ("import sys; sys.exit(3)", "3 report ended with exit code 3;"),
        ("exit()", ""),
    ],
)
def test_how_a_cell_ends(run: NotebookRuns, cell: str, said: str) -> None:
    notebook, error = run(cell, "'next'")
    assert said in error
    assert (error == "") == (said == "")
    assert ("'next'" in shown_text(notebook)) == ("%%html" in cell)


def test_no_programs(run: NotebookRuns) -> None:
    asked = (
        "!echo",
        "x = !echo",
        "%%bash\necho",
        "%pip install x",
        "%system echo",
        "%sx echo",
        "ls",
    )
    notebook, error = run(
        *(f"result = get_ipython().run_cell({text!r})\nresult.error_in_exec" for text in asked)
    )
    assert error == ""
    said = "NoProgramsError('a notebook in a vault starts no programs')"
    assert [text.rpartition(".")[2] for text in shown_text(notebook)] == [said] * len(asked)


def test_the_source_is_in_no_file_and_no_cache(run: NotebookRuns) -> None:
    notebook, error = run(
        """
def marked():
    "SECRET-SOURCE-CANARY"
import inspect, linecache, os, traceback, warnings, sys
wanted = ("SECRET-SOURCE" + "-CANARY").encode()
found = []
for base, _, files in os.walk(os.path.dirname(os.getcwd())):
    for name in files:
        if wanted in open(os.path.join(base, name), "rb").read():
            found.append(name)
found += [name for name, entry in linecache.cache.items() if "CANARY" in str(entry)]
try:
    found.append(inspect.getsource(marked))
except (OSError, TypeError):
    pass
try:
    1 / 0
except ZeroDivisionError:
    found += [traceback.format_exc()] if "1 / 0" in traceback.format_exc() else []
print(found, marked.__code__.co_filename, get_ipython().history_manager.enabled)
print("sqlite3" in sys.modules, [name for name in os.listdir(".") if name.endswith("ipynb")])
""",
    )
    assert error == ""
    assert shown_text(notebook) == ["[] <encrypted app 1> False\nFalse []\n"]


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("await f()", Place("deep/report.ipynb", 5)),
        ("%%time\ny = 2\nf2()", Place("deep/report.ipynb", 3)),
        ("import helper\nhelper.fail()", Place("helper.py", 3)),
    ],
)
def test_an_incident_stands_for_a_cells_line(run: NotebookRuns, cell: str, place: Place) -> None:
    before = "\ndef f2():\n    raise ValueError\nasync def f():\n    return 1 / 0"
    _, error = run(before, cell, with_key=True)
    incident = re.search(r"\[incident ([0-9a-f]{16})\]", error)
    assert incident is not None
    assert stands_for(KEY, incident[1], place)


def test_images_come_back_as_pixels(run: NotebookRuns) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    notebook, error = run(
        "from PIL import Image, PngImagePlugin\nimport io\n"
        "from IPython.display import Image as Shown, SVG, display\n"
        "image = Image.new('RGBA', (4, 3), (255, 0, 0, 128))\nimage",
        "info = PngImagePlugin.PngInfo()\ninfo.add_text('note', 'CHUNK-CANARY')\n"
        "file = io.BytesIO()\nimage.convert('L').save(file, 'PNG', pnginfo=info)\n"
        "Shown(data=file.getvalue())",
        "file = io.BytesIO()\nimage.convert('RGB').resize((64, 64)).save(file, 'JPEG')\n"
        "Shown(data=file.getvalue(), format='jpeg')",
        "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><script/></svg>')",
        "Shown(data=b'\\x89PNG CANARY', format='png')",
    )
    assert error == ""
    shown = []
    for cell in notebook.cells[:3]:
        with pil.open(io.BytesIO(base64.b64decode(cell.outputs[0].data["image/png"]))) as image:
            assert (image.format, image.info) == ("PNG", {})
            shown.append((image.mode, image.size, image.getpixel((0, 0))))
    assert shown[0] == ("RGBA", (4, 3), (255, 0, 0, 128))
    assert shown[1][:2] == ("L", (4, 3))
    assert shown[2][:2] == ("RGB", (64, 64))
    assert set(notebook.cells[3].outputs[0].data) == {"text/plain"}
    assert "left out: not readable" in shown_text(notebook)[4]


def test_figures_come_back_as_pixels(run: NotebookRuns) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: it is in the demo extra")
    pil = pytest.importorskip("PIL.Image")
    notebook, error = run(
        "import matplotlib.pyplot as plt\nfigure = plt.figure(figsize=(2, 1), dpi=100)\n"
        "plt.plot([1, 2]);",
        "%matplotlib inline\nplt.plot([3, 4])\nplt.title('CAN' + 'ARY')\nplt.show()",
        "%config InlineBackend.figure_formats = ['svg']\nplt.plot([3, 4]);",
    )
    assert error == ""
    for cell in notebook.cells[:2]:
        (figure,) = (o for o in cell.outputs if "image/png" in o.get("data", {}))
        with pil.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))) as image:
            assert len(image.getcolors(1 << 16)) > 5
    # SVG is not made into pixels, and does not cross.
    assert "<Figure" in shown_text(notebook)[2]


@pytest.mark.parametrize("output", ["none", "progress"])
def test_a_policy_without_text_shows_no_output(run: NotebookRuns, output: str) -> None:
    notebook, error = run("print('CANARY')\n'CANARY'", "raise KeyError('shown')", output=output)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[0].outputs == []
    assert [o.output_type for o in notebook.cells[1].outputs] == ["error"]
    assert "KeyError" in error


def test_the_owners_limit_counts_outputs_and_files(run: NotebookRuns, tmp_path: Path) -> None:
    cell = "import sys\nprint('x' * 999)\nopen(sys.argv[2] + '/f', 'w').write('y' * 1000)"
    arguments = ("-o", "/output")
    notebook, _ = run(cell, arguments=arguments, policy="max_result_bytes = 2100")
    assert len(notebook.cells) == 1
    assert (tmp_path / "output" / "f").read_text() == "y" * 1000
    (tmp_path / "output" / "report.ipynb").unlink()
    for most in (1900, 900):
        with pytest.raises(EnclaveError, match=rf"bytes, the package's owner allows {most}"):
            run(cell, arguments=arguments, policy=f"max_result_bytes = {most}")
    assert not (tmp_path / "output" / "report.ipynb").exists()


def test_a_policy_without_a_workspace(run: NotebookRuns) -> None:
    policy = 'workspace = "none"'
    (run.workspace / "data.txt").write_text("x")
    notebook, error = run("1", policy=policy)
    assert (error, shown_text(notebook)) == ("", ["1"])
    with pytest.raises(PackageError, match="its owner does not let it see files"):
        run("1", parameters="x = 1", policy=policy, arguments=("-p", "x", "/data.txt"))


def test_too_much_output_is_cut(run: NotebookRuns) -> None:
    notebook, error = run("print('x' * 2**25)", "'y' * 2**20", "for n in range(9999): display(n)")
    assert error == ""
    text = shown_text(notebook)
    assert len(text[0]) < 2**24 + 100
    assert text[0].endswith("characters of output left out: too much]\n")
    assert len(text[1]) < 2**20
    assert len(notebook.cells[2].outputs) < 1001


def test_files_left_open_are_written_and_idle_threads_end(
    run: NotebookRuns, tmp_path: Path
) -> None:
    notebook, error = run(
        "import atexit, sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(2)\npool.submit(len, '').result()",
        "left_open = open(sys.argv[1] + '/left', 'w')\nleft_open.write('flushed')",
        "atexit.register(lambda: open(sys.argv[1] + '/exit', 'w').write('called'));",
        arguments=("/output",),
    )
    assert (error, len(notebook.cells)) == ("", 3)
    assert (tmp_path / "output" / "left").read_text() == "flushed"
    assert (tmp_path / "output" / "exit").read_text() == "called"


def test_threads_print_until_they_have_ended(run: NotebookRuns) -> None:
    notebook, error = run(
        "import threading, time\ndef late():\n    time.sleep(0.3)\n    print('late')\n"
        "threading.Thread(target=late).start()"
    )
    assert (error, shown_text(notebook)) == ("", ["late\n"])


def test_what_is_no_notebook(link: VaultLink, tmp_path: Path) -> None:
    files = {"deep/report.ipynb": "no json CANARY", "helper.py": ""}
    package = seal_package(files, MANIFEST % ("text", ""))
    link.add(package)
    file = package.write(tmp_path / "app.encrypted")
    with pytest.raises(PackageError, match="its notebook is not valid") as caught:
        run_script(str(file), "report", (), (), link, lambda _stage, _share: None)
    assert "CANARY" not in str(caught.value)


def test_a_vault_without_a_notebook_does_not_know_ipython(link: VaultLink, tmp_path: Path) -> None:
    loaded = load_sealed(link, spy_package(), tmp_path)
    code = (
        "import sys\nresult = [m for m in ('IPython', 'nbformat', 'traitlets') if m in sys.modules]"
    )
    assert loaded.proxy.run(code) == []
