"""THREATS E.2, E.3: a package's notebook in a vault. Owners who err, users who look at what comes.

The person at the keyboard chooses parameters, arguments and files, and when to press Ctrl-C. The
owner's cells below do what an owner does without a thought; each has "CANARY" in its source, and
`read_executed` looks for it in every byte that came back. `ran` is printed by what has run.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.notebook_runs import NotebookRuns
from tests.support.notebook_source import shown_text
from tests.support.vault_link import VaultLink


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture
def run(link: VaultLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookRuns:
    monkeypatch.setenv("ENCLAVE_WORKSPACE", str(tmp_path))
    return NotebookRuns(link, tmp_path)


_HISTORY = (
    "%history",
    "%history -n -o 1-4",
    "print(In, _ih, _i, _ii, _iii)",
    "_i1 if '_i1' in globals() else 'none'",
    "print(globals())",
    "%whos",
    "%macro again 1-4",
    "%recall 1",
    "%rerun 1",
    "%rep 1-4",
    "%save -f /tmp/saved 1-4\nimport os\n"
    "os.path.exists('/tmp/saved') and open('/tmp/saved').read()",
    "try:\n    get_ipython().run_line_magic('notebook', '/tmp/kept.ipynb')\n"
    "    print(open('/tmp/kept.ipynb').read())\nexcept ValueError:\n    pass",
    "list(get_ipython().history_manager.get_range())",
    "list(get_ipython().history_manager.get_tail(9))",
    "get_ipython().history_manager.input_hist_raw",
    "get_ipython().user_ns['_ih']",
    "get_ipython().extract_input_lines('1-4')",
)


def test_o08_no_history_to_show(run: NotebookRuns) -> None:
    cells = [f"print('ran')\n{asked}\n# CANARY" for asked in _HISTORY]
    notebook, error = run("first = 1  # SOURCE-CANARY", *cells)
    assert error == ""
    shown = shown_text(notebook)[1:]
    assert len(shown) == len(_HISTORY)
    assert all(text.startswith("ran\n") for text in shown)
    # The namespace was shown, with all that is in it.
    assert "get_ipython" in shown[_HISTORY.index("print(globals())")]


_HOOKS = {
    "callback": (
        "def post(result):  # CANARY\n    raise ValueError('CANARY')\n"
        "get_ipython().events.register('post_run_cell', post)",
        "print('ran')  # CANARY",
    ),
    "callback before": (
        "def pre(info):\n    raise ValueError(info.raw_cell)  # CANARY\n"
        "get_ipython().events.register('pre_run_cell', pre)",
        "print('ran')  # CANARY",
    ),
    "handler": (
        "def handler(self, etype, value, tb, tb_offset=None):\n    raise KeyError('CANARY')\n"
        "get_ipython().set_custom_exc((ValueError,), handler)",
        "def fails(argument='CANARY'):\n    print('ran')\n    raise ValueError(argument)\nfails()",
    ),
    "transformer": (
        "def change(lines):\n    raise SyntaxError('CANARY')\n"
        "get_ipython().input_transformers_cleanup.append(change)\nprint('ran')",
        "1  # CANARY",
    ),
    "syntax tree": (
        "import ast\nclass Change(ast.NodeTransformer):\n    def visit(self, node):\n"
        "        raise ValueError('CANARY')\n"
        "get_ipython().ast_transformers.append(Change())\nprint('ran')",
        "1  # CANARY",
    ),
}
_FAILURES = {
    "autocall": ("%autocall 2", "print 'ran', len('CANARY')"),
    "timed": ("%%time --no-raise-error\nprint('ran')\nraise ValueError('CANARY')",),
    "nested": (
        "print('ran')\nresult = get_ipython().run_cell('1 / 0  # CANARY', store_history=True)",
        "get_ipython().run_line_magic('tb', '')",
    ),
    "repr": (
        "class Loud:\n    def __repr__(self):\n        raise ValueError('CANARY')\n"
        "    def _repr_png_(self):\n        raise ValueError('CANARY')\nprint('ran')\nLoud()",
    ),
    "name": ("CANARY_total = 1\nprint('ran')", "CANARY_totl"),
    "attribute": ("import helper\nprint('ran')\nhelper.CANARY",),
    "group": ("print('ran')\nraise ExceptionGroup('CANARY', [ValueError('CANARY')])",),
    "chain": (
        "print('ran')\ntry:\n    1 / 0  # CANARY\nexcept ZeroDivisionError as error:\n"
        "    error.add_note('CANARY')\n    raise ValueError('CANARY') from error",
    ),
    "rendered": (
        "class Own(Exception):\n    def _render_traceback_(self):\n        return ['CANARY']\n"
        "print('ran')\nraise Own('CANARY')",
    ),
    "decode": ("print('ran')\nb'CANARY \\xff'.decode()",),
    "indentation": ("print('ran')", "if True:\nCANARY = 1"),
    "compile": ("print('ran')\nexec('CANARY = = 1')",),
    "deep": ("print('ran')\ndef f(x='CANARY'):\n    f(x)\nf()",),
    "assertion": ("print('ran')\nassert 'CANARY' == 'x', 'CANARY'",),
    "magic": ("print('ran')\n%timeit -n1 -r1 fails('CANARY')",),
    "magic's argument": ("print('ran')\n%matplotlib CANARY",),
    "cell magic": ("%%no_such_magic CANARY\nCANARY",),
    "run": ("print('ran')\n%run CANARY.py",),
    "debugged": ("print('ran')", "%%debug\nvalue = 1  # CANARY"),
    "post mortem": ("print('ran')\nvalue = []\nvalue[1]  # CANARY", "%debug", "%pdb on", "%tb"),
    "profiled": ("print('ran')\n%prun -q open('CANARY')",),
    "pasted": ("print('ran')\n%pastebin 1-3",),
    "exit": ("print('ran')\nimport sys\nsys.exit('CANARY')",),
}


def _check_told(shown: str) -> None:
    for told in ("Traceback", "Error in callback", "---->", "raw_cell", "helper", "Handler"):
        assert told not in shown


@pytest.mark.parametrize("cells", _HOOKS.values(), ids=_HOOKS)
def test_e01_hooks_that_fail(run: NotebookRuns, cells: tuple[str, ...]) -> None:
    """What IPython calls around a cell, and would print of it."""
    notebook, _ = run(*cells)
    shown = "".join(shown_text(notebook))
    assert "ran" in shown
    _check_told(shown)


def test_e01_failures_say_nothing_themselves(run: NotebookRuns) -> None:
    """Whoever fails in IPython; each in a cell within a cell, so that the next one runs."""
    nested = [
        f"for cell in {cells!r}:\n    found = get_ipython().run_cell(cell, store_history=True)\n"
        "print('next')"
        for cells in _FAILURES.values()
    ]
    notebook, error = run(*nested)
    assert error == ""
    for name, shown in zip(_FAILURES, shown_text(notebook), strict=True):
        assert "ran" in shown or name == "cell magic", name
        assert shown.endswith("next\n")
        _check_told(shown)


_SHOWN = {
    "print_exc": "try:\n    1 / 0  # CANARY\nexcept ZeroDivisionError:\n"
    "    import traceback\n    traceback.print_exc(file=sys.stdout)",
    "verbose": "%xmode Verbose\ntry:\n    1 / 0  # CANARY\nexcept ZeroDivisionError:\n"
    "    get_ipython().showtraceback()\n    shell = get_ipython()\n"
    "    print(shell.InteractiveTB.stb2text(shell.InteractiveTB.structured_traceback(\n"
    "        *sys.exc_info())))",
    "package": "import helper, traceback\ntry:\n    helper.fail()\nexcept LookupError:\n"
    "    traceback.print_exc(file=sys.stdout)",
    "question": "def marked():\n    return 1  # CANARY\nmarked??",
    "source magics": "def marked():\n    return 1  # CANARY\n%psource marked\n%pfile marked\n"
    "%pinfo2 marked",
    "inspect": "import inspect\ndef marked():\n    return 1  # CANARY\n"
    "try:\n    print(inspect.getsource(marked))\nexcept (OSError, TypeError):\n    pass",
    "class": "import inspect\nclass Marked:\n    value = 1  # CANARY\n"
    "try:\n    print(inspect.getsource(Marked))\nexcept (OSError, TypeError):\n    pass",
    "trace": "def marked(x):\n    return 1  # CANARY\nimport trace\n"
    "trace.Trace(count=0, trace=1).runfunc(marked, 1)",
    "debugger": "def marked(x):\n    breakpoint()\n    return 1  # CANARY\n"
    "try:\n    marked(1)\nexcept BaseException:\n    pass",
    "warning": "import warnings\nwarnings.warn('CANARY')  # CANARY\n"
    "warnings.simplefilter('always')\nwarnings.warn('CANARY', DeprecationWarning)  # CANARY",
    "formatted warning": "import warnings\nwarnings.showwarning = lambda *a, **k: "
    "print(warnings.formatwarning(*a[:4]))\nwarnings.warn('x')  # CANARY",
    "logging": "import logging\nlogging.error('CANARY')\n"
    "logging.getLogger('x').exception('CANARY')",
    "stderr": "sys.stderr.write('CANARY')\nsys.__stderr__ and sys.__stderr__.write('CANARY')",
    "descriptor": "import os\nos.write(1, b'CANARY')\nos.write(2, b'CANARY')",
    "thread": "import threading\ndef fails():\n    raise ValueError('CANARY')\n"
    "t = threading.Thread(target=fails)\nt.start()\nt.join()",
    "finalizer": "class Own:\n    def __del__(self):\n        raise ValueError('CANARY')\n"
    "Own()\nNone",
    "task": "import asyncio\nasync def fails():\n    raise ValueError('CANARY')\n"
    "task = asyncio.ensure_future(fails())\nawait asyncio.sleep(0)\ndel task",
    "faulthandler": "import faulthandler\ntry:\n    faulthandler.dump_traceback()\n"
    "except Exception:\n    pass",
    "next input": "get_ipython().set_next_input('CANARY')\n%load_ext autoreload\n%autoreload 2",
    "compiled": "print(compile('1', 'x', 'exec').co_filename, (lambda: 0).__code__)  # CANARY",
    "bar": "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='CANARY', unit='CANARY'):\n"
    "    pass",
    "captured": "%%capture kept\nprint('CANARY')",
}


def test_e07_no_line_of_source(run: NotebookRuns) -> None:
    """Code that looks for its own source, and streams that nobody reads."""
    notebook, error = run("import sys  # CANARY", *_SHOWN.values(), "print('ran')  # CANARY")
    assert (error, shown_text(notebook)[-1]) == ("", "ran\n")
    shown = dict(zip(_SHOWN, shown_text(notebook)[1:], strict=False))
    # What they print without a source: they did look.
    assert "ZeroDivisionError" in shown["print_exc"]
    assert "LookupError" in shown["package"]
    assert "Signature" in shown["question"]
    assert "<encrypted app 1>" in shown["compiled"]


_DISPLAYS = {
    "html": "type('H', (), {'_repr_html_': lambda self: '<script>CANARY</script>',\n"
    "    '__repr__': lambda self: 'plain'})()",
    "html only": "class H:\n    def _repr_html_(self):\n        return 'CANARY'\nH()",
    "svg": "from IPython.display import SVG\nSVG('<svg xmlns=\"http://www.w3.org/2000/svg\">'\n"
    "    '<script>CANARY</script></svg>')",
    "javascript": "from IPython.display import Javascript\nJavascript('CANARY')",
    "markdown": "from IPython.display import Markdown\nMarkdown('![CANARY](https://evil/)')",
    "latex": "from IPython.display import Latex\nLatex(r'\\href{javascript:CANARY}{x}')",
    "frame": "from IPython.display import IFrame\nIFrame('https://evil/?CANARY', 1, 1)",
    "link": "from IPython.display import Image\nImage(url='https://evil/CANARY.png')",
    "metadata": "display({'text/plain': 'plain'}, metadata={'x': 'CANARY'}, raw=True,\n"
    "    display_id='CANARY', transient={'y': 'CANARY'});",
    "bundle": "display({'text/plain': 'plain', 'text/html': 'CANARY', 'application/x': 'CANARY',\n"
    "    'image/svg+xml': 'CANARY', 'application/vnd.jupyter.widget-view+json': {}}, raw=True)",
    "own bundle": "class B:\n    def _repr_mimebundle_(self, **_):\n"
    "        return {'text/plain': 'plain', 'text/html': 'CANARY'}, {'x': 'CANARY'}\nB()",
    "json": "from IPython.display import JSON\nJSON({'CANARY': 1})",
    "cell magic": "%%html\n<script>CANARY</script>",
    "publisher": "get_ipython().display_pub.publish(\n"
    "    {'text/plain': 'plain', 'text/html': 'CANARY'}, metadata={'x': 'CANARY'}, source='x')",
    "no text": "display({'text/plain': ['CANARY'], 'image/png': {'CANARY': 1}}, raw=True)",
}


def test_o03_text_and_nothing_else(run: NotebookRuns) -> None:
    """HTML, SVG, JavaScript, metadata: `read_executed` accepts none of them."""
    notebook, error = run(*_DISPLAYS.values(), "print('ran')  # CANARY")
    assert (error, shown_text(notebook)[-1]) == ("", "ran\n")
    shown = dict(zip(_DISPLAYS, shown_text(notebook), strict=False))
    assert "<script" not in "".join(shown.values())
    assert {shown[name] for name in ("html", "metadata", "bundle", "publisher")} == {"plain"}


def test_o04_escapes_are_gone(run: NotebookRuns) -> None:
    escape = "'\\x1b]8;;https://evil\\x07\\x1b]52;c;x\\x07\\x1b[2J\\x9b1m\\u202e\\rover'"
    notebook, error = run(
        f"print({escape})",
        f"type('R', (), {{'__repr__': lambda self: {escape}}})()",
        f"raise KeyError({escape})",
    )
    shown = shown_text(notebook)
    assert len(shown) == 3
    for text in [*shown, error]:
        assert not set(text) & set("\x1b\x07\x9b\r\u202e")


_TEXTS = ("{In}", "$In", "`In`", "%history", "!id", "In", "+str(In)+", "\n%history\n", "{In[1]}")


def test_e01_a_parameter_is_never_source(run: NotebookRuns) -> None:
    """IPython expands variables in lines of magic; a user's text is not looked into again."""
    names = [f"name{number}" for number in range(len(_TEXTS))]
    notebook, error = run(
        "secret = 1  # SOURCE-CANARY",
        *(f"%env SHOWN=${name}\n%env SHOWN={{{name}}}" for name in names),
        "print('ran')",
        parameters=" = ".join(names) + " = None",
        arguments=tuple(
            word for name, text in zip(names, _TEXTS, strict=True) for word in ("-p", name, text)
        ),
    )
    shown = shown_text(notebook)[2:]
    assert (error, shown[-1]) == ("", "ran\n")
    for text, one in zip(_TEXTS, shown, strict=False):
        assert one.count(f"SHOWN={text.strip()}\n") == 2


@pytest.mark.parametrize("value", ["text", "null"])
def test_e01_a_parameter_of_another_type(run: NotebookRuns, value: str) -> None:
    """What the notebook makes of it; an error of it is as any other."""
    notebook, error = run(
        "table = {'CANARY': [1, 2]}\nprint('ran')",
        "table['CANARY'][rows]  # CANARY",
        parameters="rows = 1",
        arguments=("-p", "rows", value),
    )
    assert shown_text(notebook)[1] == "ran\n"
    assert error.startswith("1 report ended with exit code 1: EncryptedPackageError: TypeError in")


def test_f01_what_was_saved_stays(run: NotebookRuns) -> None:
    """Old outputs, markdown, attachments, tags, names and ids of the owner's notebook."""
    notebook, _ = run("1", parameters="x = 1  # CANARY")
    assert len(notebook.cells) == 2
    again, _ = run("1", parameters="x = 1  # CANARY")
    assert {cell.id for cell in notebook.cells}.isdisjoint(cell.id for cell in again.cells)


_PLAIN_SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
cells = json.loads(sys.stdin.read())
config = Config({"HistoryManager": {"enabled": False}})
shell = InteractiveShell.instance(config=config, colors="nocolor")
for cell in cells:
    shell.run_cell(cell, store_history=True)
"""


@pytest.mark.parametrize(
    "cells",
    [
        ("first = 1  # CANARY", "%history"),
        ("first = 1  # CANARY", "print(globals())"),
        _HOOKS["callback"],
        _HOOKS["callback before"],
        _HOOKS["handler"],
        _FAILURES["autocall"],
        _FAILURES["rendered"],
        ("def marked():\n    return 1  # CANARY", "marked??"),
    ],
)
def test_control_an_ordinary_shell_shows_it(cells: tuple[str, ...], tmp_path: Path) -> None:
    """The same cells in IPython as it is: the tests above have something to find."""
    shown = subprocess.run(
        [sys.executable, "-c", _PLAIN_SHELL],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"HOME": str(tmp_path), "PAGER": "cat", "TERM": "dumb", "PATH": "/usr/bin:/bin"},
    )
    assert "CANARY" in shown.stdout
