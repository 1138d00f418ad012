"""How far the linter follows what the user passes: in a function, a package, its objects."""

import textwrap
from pathlib import Path

from tests.support.marked_code import check, functions, lint, manifest_of, marked

_WITHIN_A_FUNCTION = """
    import functools, numpy as np
    from concurrent.futures import ThreadPoolExecutor

    def assigned(a):
        b = c = a.strip()
        d, e = 1, b
        eval(d)
        eval(e)  # <- eval

    def containers(a):
        items = []
        items.append({"deep": [a]})
        eval(items[0]["deep"][0])  # <- eval
        known = {"a": a, "b": "1"}
        eval(known["b"])
        eval(known["a"])  # <- eval

    def texts(a, b):
        text = "1"
        text += f"+ {a}"
        eval(text)  # <- eval
        eval("+".join(["1", b]))  # <- eval
        eval("{}".format(b))  # <- eval
        eval(f"{len(a)} + {a == b}")

    def loops(a):
        last = "1"
        for part in a.split():
            eval(last)  # <- eval
            last = part
        while (line := a.pop()):
            eval(line)  # <- eval
        for index, part in enumerate(a):
            eval(part)  # <- eval

    def branches(a, b):
        text = "1"
        if b:
            text = a
        eval(text)  # <- eval
        text = a if b else "1"
        eval(text)  # <- eval
        try:
            text = "1"
            text = a
        except ValueError:
            eval(text)  # <- eval
        with open("file") as file:
            eval(file.read())

    def inner(a):
        text = a
        def run():
            return eval(text)  # <- eval
        run()
        pick = lambda t: eval(t)  # <- eval
        pick(a)
        list(map(lambda t: eval(t), a))  # <- eval
        functools.partial(called_later, a)()
        with ThreadPoolExecutor() as pool:
            pool.submit(submitted, a)
        a.apply(lambda row: eval(row["formula"]))  # <- eval

    def called_later(text):
        eval(text)  # <- eval

    def submitted(text):
        eval(text)  # <- eval

    def not_reachable(text):
        eval(text)

    def generator(a):
        for part in parts(a):
            eval(part)  # <- eval

    def parts(text):
        yield from text.split()

    async def waits(a):
        eval(await later(a))  # <- eval

    async def later(text):
        return text

    def keywords(**options):
        for name, value in options.items():
            setattr(np, name, 1)
            eval(value)  # <- eval

    def any_keyword(**options):
        for name, value in options.items():
            setattr(np, name, value)  # <- getattr

    def positions(*values):
        eval(values[0])  # <- eval

    def recursive(a, depth):
        if depth:
            return recursive(a, depth - 1)
        return eval(a)  # <- eval
"""
_CLASSES = """
    import dataclasses, threading
    import numpy as np

    _seen = {}
    _mode = "1"

    class Model:
        kind = "plain"

        def __init__(self, path, size=3):
            self.path = path
            self.size = int(size)
            self.helper = Helper(path)
            self.names = []

        def load(self):
            open(self.path)  # <- open
            open(f"{self.size}.txt")
            open(f"{self.kind}.txt")
            return self.helper.load()

        def remember(self, name):
            self.names.append(name)
            _seen["last"] = name

        def recall(self):
            for name in self.names:
                eval(name)  # <- eval
            eval(_seen["last"])  # <- eval

        def set_mode(self, mode):
            global _mode
            _mode = mode

        def use_mode(self):
            return eval(_mode)  # <- eval

        @property
        def current(self):
            return self.path

        def through_property(self):
            open(self.current)  # <- open

        @staticmethod
        def static(x):
            eval(x)  # <- eval

        @classmethod
        def made(cls, x):
            made = cls(x)
            eval(x)  # <- eval
            return None

        def _private(self, x):
            eval(x)

    class Helper:
        def __init__(self, path):
            self._path = path
        def load(self):
            np.loadtxt(self._path)  # <- open

    @dataclasses.dataclass
    class Options:
        path: str
        size: int = 3
        def load(self):
            open(self.path)  # <- open
            open(self.size)

    class Child(Model):
        def __init__(self, name):
            super().__init__("fixed.txt")
            self.child_name = name
        def go(self):
            eval(self.child_name)  # <- eval
"""


def test_data_flow_within_a_function(tmp_path: Path) -> None:
    exports = functions(
        "assigned(a)", "containers(a)", "texts(a, b)", "loops(a)", "branches(a, b)", "inner(a)",
        "generator(a)", "waits(a)", "keywords(a, b)", "positions(*values)", "recursive(a, depth)",
        "any_keyword(*, a)",
    )  # fmt: skip
    exports = exports.replace("any_keyword(*, a)", "any_keyword(**options)")
    files = {"m.py": _WITHIN_A_FUNCTION}
    result = lint(tmp_path, files, manifest_of(exports))
    found = {(f.path, f.line, f.rule) for f in result.findings if f.path == "m.py"}
    assert found == marked(files), "\n".join(map(str, result.findings))
    assert [f.rule for f in result.findings if f.path == "enclave.toml"] == ["kwargs"]


def test_data_flow_through_the_package(tmp_path: Path) -> None:
    code = """
    from . import nothing
    from helpers import run as go, Runner
    import helpers
    from deep.inner import work
    import deep.inner as inner
    from missing_library import thing

    def f(x):
        go(x)
        go("1")
        helpers.other(text=x)
        work(x)
        inner.again(x)
        Runner(x).start()
        thing(x)

    def g():
        go("1")
    """
    helpers = """
    def run(text):
        return eval(text)  # <- eval
    def other(*, text):
        exec(text)  # <- eval
    def unused(text):
        exec(text)
    class Base:
        def start(self):
            return self.finish(self.text)
    class Runner(Base):
        def __init__(self, text):
            self.text = text
        def finish(self, text):
            eval(text)  # <- eval
        def untouched(self, text):
            eval(text)
    """
    inner = """
    from . import constants
    from .more import last
    def work(text):
        return last(text + constants.SUFFIX)
    def again(text):
        return eval(constants.SUFFIX)
    """
    more = "import os\ndef last(text):\n    os.system(text)  # <- run\n"
    broken = "def nothing(:\n"
    (tmp_path / "broken.py").write_text(broken)
    check(
        tmp_path, code, functions("f(x)", "g()"),
        helpers=helpers, deep__inner=inner, deep__constants="SUFFIX = '1'\n", deep__more=more,
        deep____init__="",
    )  # fmt: skip


def test_classes_and_what_their_objects_hold(tmp_path: Path) -> None:
    exports = """
    [exports.classes.Model]
    init = "Model(path, size=3)"
    methods = ["load()", "remember(name)", "recall()", "set_mode(mode)", "use_mode()",
               "through_property()", "static(x)", "made(x)"]
    [exports.classes.Options]
    init = "Options(path)"
    methods = ["load()"]
    [exports.classes.Child]
    init = "Child(name)"
    methods = ["go()"]
    """
    check(tmp_path, _CLASSES, textwrap.dedent(exports))
