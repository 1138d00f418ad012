"""Every line that must be warned about is marked `# <- RULE`; every other line must not be."""

from pathlib import Path

import pytest

from enclave_encryption.lint.finding import RULES
from enclave_encryption.lint.package_lint import LintResult
from tests.support.marked_code import HEAD, check, functions, lint, manifest_of


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
