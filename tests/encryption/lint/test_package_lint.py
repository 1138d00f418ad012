"""Every line that must be warned about is marked `# <- RULE`; every other line must not be."""

import re
import textwrap
from pathlib import Path

import pytest

from enclave_encryption.lint.finding import RULES
from enclave_encryption.lint.package_lint import LintResult, lint_package
from enclave_encryption.package_plan import plan_package


def lint(folder: Path, files: dict[str, str], manifest: str) -> LintResult:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(textwrap.dedent(text))
    (folder / "enclave.toml").write_text(manifest)
    plan = plan_package(folder)
    return lint_package(plan.manifest, plan.manifest_text, plan.code)


def marked(files: dict[str, str]) -> set[tuple[str, int, str]]:
    return {
        (path, number, rule)
        for path, text in files.items()
        for number, line in enumerate(textwrap.dedent(text).splitlines(), 1)
        for rule in re.findall(r"# <- (\w+)", line)
    }


def manifest_of(exports: str) -> str:
    return f'[package]\nname = "tested"\nmodule = "m"\n[exports]\n{exports}\n'


def check(folder: Path, code: str, exports: str, **more: str) -> LintResult:
    """Lint module `m` with `code`; what is found must be exactly what is marked."""
    files = {"m.py": code, **{name.replace("__", "/") + ".py": text for name, text in more.items()}}
    result = lint(folder, files, manifest_of(exports))
    assert result.complete
    found = {(finding.path, finding.line, finding.rule) for finding in result.findings}
    assert found == marked(files), "\n".join(map(str, result.findings))
    return result


def functions(*signatures: str) -> str:
    entries = ", ".join(f'{text.partition("(")[0]} = "{text}"' for text in signatures)
    return f"functions = {{ {entries} }}"


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        ("eval", "return eval(x)"),
        ("eval", "exec(x)"),
        ("eval", "return compile(x, '<x>', 'eval')"),
        ("eval", "return builtins.eval(x)"),
        ("eval", "return pd.eval(x)"),
        ("eval", "return numexpr.evaluate(x)"),
        ("eval", "return TABLE.query(x)"),
        ("eval", "return TABLE.query(f'age > {x}')"),
        ("eval", "return TABLE.eval(expr=x)"),
        ("eval", "return pd.DataFrame(y).query(x)"),
        ("eval", "return y.query(x)"),
        ("eval", "return sympify(x)"),
        ("format", "return x.format(TABLE)"),
        ("format", "return x.format_map({'a': 1})"),
        ("format", "return x % (y,)"),
        ("format", "return x % {'a': y}"),
        ("format", "return Template(x).substitute(a=1)"),
        ("format", "return jinja2.Template(x).render()"),
        ("format", "return jinja2.Environment().from_string(x).render()"),
        ("pickle", "return pickle.loads(x)"),
        ("pickle", "return pickle.load(io.BytesIO(x))"),
        ("pickle", "return joblib.load(io.BytesIO(x))"),
        ("pickle", "return dill.loads(x)"),
        ("pickle", "return cloudpickle.loads(x)"),
        ("pickle", "return shelve.open(x)"),
        ("pickle", "return marshal.loads(x)"),
        ("pickle", "return np.load(io.BytesIO(x), allow_pickle=True)"),
        ("pickle", "return np.load(x, allow_pickle=y)"),
        ("pickle", "return torch.load(io.BytesIO(x))"),
        ("pickle", "return torch.load(x, weights_only=False)"),
        ("pickle", "return pd.read_pickle(io.BytesIO(x))"),
        ("pickle", "return yaml.load(x)"),
        ("pickle", "return yaml.load(x, Loader=yaml.UnsafeLoader)"),
        ("pickle", "return yaml.unsafe_load(x)"),
        ("getattr", "return getattr(np, x)(y)"),
        ("getattr", "setattr(TABLE, x, y)"),
        ("getattr", "return getattr(np, f'__{x}')"),
        ("getattr", "return getattr(np, f'{x}_')"),
        ("getattr", "return getattr(np, '{}_'.format(x))"),
        ("getattr", "return globals()[x]"),
        ("getattr", "return TABLE.__dict__[x]"),
        ("getattr", "return operator.attrgetter(x)(TABLE)"),
        ("getattr", "return vars(TABLE)[x]"),
        ("getattr", "TABLE.__dict__.update(x)"),
        ("format", "return flask.render_template_string(x)"),
        ("import", "return importlib.import_module(x)"),
        ("import", "return importlib.import_module(f'plugins.{x}')"),
        ("import", "return __import__(x)"),
        ("open", "return open(x).read()"),
        ("open", "return open(file=x)"),
        ("open", "return Path(x).read_text()"),
        ("open", "return (FOLDER / x).read_bytes()"),
        ("open", "return FOLDER.joinpath(x).open()"),
        ("open", "return open(os.path.join('data', x))"),
        ("open", "return open(f'data/{x}.txt')"),
        ("open", "return np.loadtxt(x)"),
        ("open", "return np.load(x)"),
        ("open", "return pd.read_csv(x)"),
        ("open", "return pd.read_parquet(path=x)"),
        ("open", "return Image.open(x)"),
        ("open", "return os.listdir(x)"),
        ("open", "return sqlite3.connect(x)"),
        ("open", "return [open(name) for name in x]"),
        ("open", "return AutoModel.from_pretrained(x)"),
        ("run", "return subprocess.run(x)"),
        ("run", "return subprocess.check_output(['convert', x])"),
        ("run", "os.system('ls ' + x)"),
        ("regex", "return re.compile(x)"),
        ("regex", "return re.search(x, 'text')"),
        ("regex", "return re.sub(pattern=x, repl='', string='text')"),
        ("regex", "return TABLE['name'].str.contains(x)"),
        ("sql", "return cursor().execute('select * from t where a = ' + x)"),
        ("sql", "return cursor().execute(f'select {x}')"),
        ("sql", "return pd.read_sql(x, cursor())"),
        ("sql", "return duckdb.sql(x)"),
    ],
)
def test_each_rule_warns(tmp_path: Path, rule: str, statement: str) -> None:
    code = f"{HEAD}\ndef f(x, y=1):\n    {statement}  # <- {rule}\n"
    result = check(tmp_path, code, functions("f(x, y)"))
    (finding,) = result.findings
    line = code.splitlines().index(f"    {statement}  # <- {rule}") + 1
    assert str(finding).startswith(f"m.py:{line}: ")
    assert "x of f()" in str(finding)
    assert str(finding).endswith(f"; {RULES[rule]} [{rule}]")


HEAD = """
import builtins, importlib, io, logging, marshal, operator, os, pickle, re
import shelve, sqlite3, subprocess
import cloudpickle, dill, duckdb, flask, joblib, jinja2, numexpr
import numpy as np, pandas as pd, torch, yaml
from pathlib import Path
from string import Template
from PIL import Image
from scipy.spatial import cKDTree
from sympy import sympify
from transformers import AutoModel
from database import cursor
import uuid, hashlib, ast
TABLE = pd.read_csv("table.csv")
FOLDER = Path(__file__).parent
TREE = cKDTree(np.load("points.npy"))
ALLOWED = {"mean": np.mean, "sum": np.sum}
"""


@pytest.mark.parametrize(
    "statement",
    [
        "return eval('1 + 1')",
        "return ast.literal_eval(x)",
        "return TABLE.query('age > @y')",
        "return TREE.query(x)",
        "return TREE.query(x, k=3)",
        "return pd.eval('1')",
        "return '{}'.format(x)",
        "return 'value %s' % x",
        "return x % 10",
        "return f'{x!r:>20}'",
        "return pickle.dumps(x)",
        "pickle.load(open('model.pickle', 'rb')).predict(x)",
        "return joblib.load('model.joblib').predict(x)",
        "return np.load(io.BytesIO(x))",
        "return torch.load(io.BytesIO(x), weights_only=True)",
        "return yaml.safe_load(x)",
        "return yaml.load(x, Loader=yaml.SafeLoader)",
        "return yaml.load(x, yaml.CSafeLoader)",
        "return getattr(np, 'mean')(x)",
        "return getattr(x, 'shape')",
        "return ALLOWED[x](y)",
        "return ALLOWED.get(x)(y)",
        "return getattr(np, ALLOWED[x])",
        "return getattr(np, f'nan{x}')",
        "name = 'nan' + x\n    return getattr(np, name)",
        "return getattr(np, 'nan{}'.format(x))",
        "return getattr(np, 'nan%s' % x)",
        "return importlib.import_module('json').dumps(x)",
        "return Image.open(io.BytesIO(x))",
        "return pd.read_csv(io.StringIO(x))",
        "return open(f'{int(x)}.txt').readline()",
        "return open(hashlib.sha256(x).hexdigest()).readline()",
        "return open(f'{uuid.UUID(x)}').readline()",
        "return open(os.path.join('data', os.path.basename(x))).readline()",
        "return (FOLDER / Path(x).name).stat()",
        "return re.compile(re.escape(x)).sub('', 'text')",
        "return re.search('a+', x)",
        "return TABLE['name'].str.contains(x, regex=False)",
        "return cursor().execute('select * from t where a = ?', (x,))",
        "logging.getLogger().info(x)",
        "print(x)",
        "return subprocess.run(['date'])",
        "return np.asarray(x).mean()",
        "raise ValueError(f'{x} is wrong')",
        "return [n for n in ALLOWED if n in x]",
    ],
)
def test_what_is_not_dangerous(tmp_path: Path, statement: str) -> None:
    check(tmp_path, f"{HEAD}\ndef f(x, y=1):\n    {statement}\n", functions("f(x, y)"))


@pytest.mark.parametrize(
    "body",
    [
        "if x not in ALLOWED:\n    raise ValueError(x)\nreturn open(x).readline()",
        "if x in ALLOWED:\n    return open(x).readline()\nreturn None",
        "if x.lower() not in ('a', 'b'):\n    return None\nreturn open(f'{x}.txt').readline()",
        "if x != 'a' and x != 'b':\n    raise ValueError\nreturn open(x).readline()",
        "if not (x == 'a' or x == 'b'):\n    raise ValueError\nreturn open(x).readline()",
        "if not isinstance(x, int):\n    raise TypeError\nreturn open(f'{x}.txt').readline()",
        "if not isinstance(x, (int, float)) or x < 0:\n    raise TypeError\nopen(str(x))",
        "if not re.fullmatch('[a-z]+', x):\n    raise ValueError\nreturn open(x).readline()",
        "if re.fullmatch('[a-z]+', x) is None:\n    raise ValueError\nreturn open(x).readline()",
        "if not NAME.fullmatch(x):\n    raise ValueError\nreturn open(x).readline()",
        "if not x.isalnum():\n    raise ValueError\nreturn open(x).readline()",
        "if not set(x) <= set(ALLOWED):\n    raise ValueError\nreturn [open(n).name for n in x]",
        "for n in x:\n    if n not in ALLOWED:\n        continue\n    open(n)",
        "return open(x).readline() if x in ALLOWED else None",
        "return x in ALLOWED and open(x).readline()",
        "return [open(n).readline() for n in x if n in ALLOWED]",
        "match x:\n    case 'a' | 'b':\n        return open(x).name\n    case _:\n        pass",
        "match x:\n    case 'a':\n        pass\n    case _:\n        raise ValueError\nopen(x)",
        "x = int(x)\nreturn open(f'{x}.txt').readline()",
        "checked(x)\nreturn open(x).readline()",
        "checked(name=x)\nreturn open(x).readline()",
        "return open(returned(x)).readline()",
        "if not known(x):\n    raise ValueError\nreturn open(x).readline()",
        "if known(name=x):\n    return open(x).readline()",
        "if unknown(x):\n    raise ValueError\nreturn open(x).readline()",
        "checker = Checker()\nchecker.check(x)\nreturn open(x).readline()",
        "checker = Checker()\nif not checker.knows(x):\n    return\nreturn open(x).readline()",
        "if not isinstance(x, bytes):\n    raise TypeError\nreturn Image.open(io.BytesIO(x))",
        "if isinstance(x, bytes):\n    x = io.BytesIO(x)\nelse:\n    raise y\nImage.open(x)",
        "try:\n    x = Kind(x)\nexcept ValueError:\n    raise\nreturn open(x.value).readline()",
        "if isinstance(x, str):\n    x = np.asarray([])\nif not isinstance(x, np.ndarray):\n"
        "    raise TypeError\nif isinstance(x, (str, Path)):\n    open(x)\n",
        "assert x in ALLOWED\nreturn open(x).readline()",
        "while x not in ALLOWED:\n    x = 'a'\n",
        "return open(y).readline()",
    ],
)
def test_what_was_checked_is_no_warning(tmp_path: Path, body: str) -> None:
    code = f"{HEAD}{CHECKS}\ndef f(x, y='not exported'):\n{textwrap.indent(body, '    ')}\n"
    check(tmp_path, code, functions("f(x)"))


CHECKS = """
import enum
NAME = re.compile("[a-z]+")
class Kind(enum.Enum):
    A = "a"
def checked(name):
    if name not in ALLOWED:
        raise ValueError
def known(name):
    'Whether it is one of ours.'
    return name in ALLOWED
def unknown(name):
    return not known(name)
def both(name, names):
    return name in names
class Checker:
    names = ("a", "b")
    def check(self, name):
        if name not in self.names:
            raise ValueError
    def knows(self, name):
        return name in self.names
def returned(name):
    if name not in ALLOWED:
        raise ValueError
    return name
"""


@pytest.mark.parametrize(
    "body",
    [
        "if x not in y:\n    raise ValueError\nreturn open(x)  # <- open",
        "if x in ALLOWED:\n    pass\nreturn open(x)  # <- open",
        "if x in ALLOWED or y:\n    return open(x)  # <- open",
        "if x not in ALLOWED:\n    print('no')\nreturn open(x)  # <- open",
        "if not isinstance(x, str):\n    raise TypeError\nreturn open(x)  # <- open",
        "if re.match('[a-z]+', x):\n    return open(x)  # <- open",
        "if not re.fullmatch('[a-z_]+', x):\n    raise ValueError\nreturn eval(x)  # <- eval",
        "if not x.isidentifier():\n    raise ValueError\nreturn getattr(np, x)  # <- getattr",
        "if isinstance(x, bytes):\n    x = io.BytesIO(x)\nreturn Image.open(x)  # <- open",
        "try:\n    ALLOWED[x]\nexcept KeyError:\n    pass\nreturn open(x)  # <- open",
        "for n in x:\n    if n not in ALLOWED:\n        break\nopen(n)  # <- open",
        "if y:\n    checked(x)\nreturn open(x)  # <- open",
        "if known(x) or y:\n    pass\nreturn open(x)  # <- open",
        "if not known(y):\n    raise ValueError\nreturn open(x)  # <- open",
        "if not both(x, y):\n    raise ValueError\nreturn open(x)  # <- open",
        "lambda: checked(x)\nreturn open(x)  # <- open",
    ],
)
def test_what_was_not_checked_is_one(tmp_path: Path, body: str) -> None:
    code = f"{HEAD}{CHECKS}\ndef f(x, y):\n{textwrap.indent(body, '    ')}\n"
    check(tmp_path, code, functions("f(x, y)"))


def test_data_flow_within_a_function(tmp_path: Path) -> None:
    code = """
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
    exports = functions(
        "assigned(a)", "containers(a)", "texts(a, b)", "loops(a)", "branches(a, b)", "inner(a)",
        "generator(a)", "waits(a)", "keywords(a, b)", "positions(*values)", "recursive(a, depth)",
        "any_keyword(*, a)",
    )  # fmt: skip
    exports = exports.replace("any_keyword(*, a)", "any_keyword(**options)")
    files = {"m.py": code}
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
    code = """
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
    check(tmp_path, code, textwrap.dedent(exports))


def test_whole_weights(tmp_path: Path) -> None:
    code = """
    import copy, json, pickle
    import numpy as np, torch, joblib
    from pathlib import Path

    _WEIGHTS = np.load("w.npy")
    TABLE = np.load("table.npy")
    config = json.load(open("config.json"))
    model = joblib.load("model.joblib")

    def all_weights():
        return _WEIGHTS  # <- weights
    def as_list():
        return TABLE.tolist()  # <- weights
    def sliced():
        return TABLE[:]  # <- weights
    def one_row(i):
        return TABLE[i]
    def part():
        return config["version"]
    def whole_config():
        return dict(config)  # <- weights
    def inside(x):
        return {"result": x, "weights": _WEIGHTS}  # <- weights
    def bytes_of_it():
        return pickle.dumps(model)  # <- weights
    def file_itself():
        return Path("model.onnx").read_bytes()  # <- weights
    def predicts(x):
        return model.predict(x)
    def encodes(x):
        return model.encode(x)
    def computed(x):
        return np.asarray(x) @ _WEIGHTS
    def through_a_helper():
        return _helper()  # <- weights
    def _helper():
        return copy.deepcopy(_WEIGHTS)
    def state():
        return {k: v.numpy() for k, v in net().state_dict().items()}  # <- weights
    def params():
        return list(net().parameters())  # <- weights
    def net():
        return torch.nn.Linear(2, 2)
    def yielded():
        yield _WEIGHTS  # <- weights
    def nothing():
        return _WEIGHTS
    def echo(weights):
        return weights
    def minimize(objective, x):
        objective(x, step=1)
        return objective(x, _WEIGHTS)  # <- weights

    class Scorer:
        def __init__(self, alpha):
            self._model = joblib.load("model.joblib")
            self.coef_ = self._model.coef_
            self.alpha = alpha
            self.classes = ["a", "b"]
        def predict(self, x):
            return self._model.predict(x)
        def itself(self):
            return self._model  # <- weights
        def coefficients(self):
            return self.coef_  # <- weights
        def deep(self):
            return self._model.coef_  # <- weights
        def everything(self):
            return self.__dict__  # <- weights
        def everything_too(self):
            return vars(self)  # <- weights
        def fit(self, x):
            return self  # <- reference
        def chained(self, x):
            return self
        def __enter__(self):
            return self
        def __exit__(self, *error):
            return None
        def dumped(self):
            return {k: TABLE[k] for k in TABLE.files}  # <- weights
        def known(self, x):
            return [self.classes[i] for i in self._model.predict(x)]
        @property
        def size(self):
            return len(self.coef_)
        @property
        def raw(self):
            return self.coef_  # <- weights
    """
    names = re.findall(r"^    def ([a-z]\w*)\((.*)\):$", code, re.MULTILINE)
    exports = functions(*(f"{name}({parameters})" for name, parameters in names))
    exports += '\nreturns = { nothing = "none", chained = "Scorer", net = "none" }'
    methods = re.findall(r"^        def ([a-z]\w*)\(self(?:, )?(.*)\):$", code, re.MULTILINE)
    listed = ", ".join(f'"{n}({p})"' for n, p in methods if n not in ("size", "raw"))
    exports += f"""
[exports.classes.Scorer]
init = "Scorer(alpha)"
methods = [{listed}, "__enter__()", "__exit__()"]
attributes = ["size", "raw", "alpha", "coef_", "classes"]
"""
    files = {"m.py": code}
    result = lint(tmp_path, files, manifest_of(exports))
    found = {(f.path, f.line, f.rule) for f in result.findings if f.path == "m.py"}
    assert found == marked(files), "\n".join(map(str, result.findings))
    (attribute,) = [f for f in result.findings if f.path == "enclave.toml"]
    line = manifest_of(exports).splitlines()[attribute.line - 1]
    assert attribute.rule == "weights" and line.startswith("attributes = ")
    assert "Scorer.coef_" in attribute.message


def test_comments_acknowledge(tmp_path: Path) -> None:
    code = '''
    def f(x):
        """Not a comment: # enclave: allow eval"""
        eval(x)  # enclave: allow eval
        eval(x)  # enclave: allow open # <- eval
        eval(x), open(x)  # enclave: allow eval, open
        eval(  # one comment on any line of the expression
            x,  # enclave: allow eval -- it is parsed above
        )
        eval("# enclave: allow eval", x, eval(x))  # <- eval
        return 1  # enclave: allow evil # <- allow
    '''
    result = check(tmp_path, code, functions("f(x)"))
    assert "there is no rule 'evil' to allow; did you mean 'eval'?" in str(result.findings[-1])


def test_a_package_without_exports(tmp_path: Path) -> None:
    result = lint(tmp_path, {"run.py": "import sys\neval(sys.argv[1])\n"}, "")
    assert result == LintResult((), True)


def test_code_that_is_too_large_is_said_so(tmp_path: Path) -> None:
    calls = "\n".join(f"    f{i}(x)\n    f{i}([x])\n    f{i}(x + 1)" for i in range(400))
    bodies = "\n".join(
        f"def f{i}(x):\n" + "\n".join(f"    a{j} = [x, x + {j}, x * {j}]" for j in range(100))
        for i in range(400)
    )
    code = f"{bodies}\ndef f(x):\n    eval(x)\n{calls}\n"
    result = lint(tmp_path, {"m.py": code}, manifest_of(functions("f(x)")))
    assert not result.complete
    assert [finding.rule for finding in result.findings] == ["eval"]


def test_deep_code_is_no_crash(tmp_path: Path) -> None:
    chain = "\n".join(f"def f{i}(x):\n    return f{i + 1}(x)" for i in range(300))
    code = f"{chain}\ndef f300(x):\n    return eval(x)\n"
    result = lint(tmp_path, {"m.py": code}, manifest_of(functions("f0(x)")))
    assert not result.complete
    result = lint(tmp_path, {"m.py": code}, manifest_of(functions("f260(x)")))
    assert result.complete
    assert [finding.line for finding in result.findings] == [602]
    deep = "x" + ".a()" * 150 + "[0]" * 150
    result = lint(
        tmp_path, {"m.py": f"def f(x):\n    return {deep}\n"}, manifest_of(functions("f(x)"))
    )
    assert not result.findings


def test_a_long_chain_of_elif(tmp_path: Path) -> None:
    chain = "".join(f"    elif x == {i}:\n        pass\n" for i in range(400))
    last = "    else:\n        eval(x)  # <- eval\n"
    code = f"def f(x):\n    if x == 'a':\n        pass\n{chain}{last}"
    check(tmp_path, code, functions("f(x)"))
