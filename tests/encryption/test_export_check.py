from pathlib import Path

import pytest

from enclave_encryption.errors import ExportError
from enclave_encryption.export_check import check_exports
from enclave_encryption.package_code import PackageCode
from enclave_encryption.package_plan import plan_package
from enclave_encryption.source_tree import scan
from enclave_protocol.manifest import parse_manifest

INIT = """
from .scoring import score, Scorer as PublicScorer
from .star import *
from numpy import mean
import json as parser
try:
    from fast import quick
except ImportError:
    def quick(a): ...
CONSTANT = 1
alias = score
raise SystemExit("a check must never run this")
"""
SCORING = """
from .base import Base
class Scorer(Base):
    limit = 3
    note: str
    def __init__(self, model="base", *, size): self.threshold = 0.5
    def predict(self, x, k=1): ...
    @property
    def state(self): ...
    @cached
    def decorated(self, anything): ...
class Foreign(Elsewhere):
    pass
def score(applicants, /, weights=None, *, threshold=0.5): ...
def anything(*args, **kwargs): ...
"""
FILES = {
    "scorer/__init__.py": INIT,
    "scorer/scoring.py": SCORING,
    "scorer/base.py": "class Base:\n    def fit(self, x, y): self.fitted = True\n",
    "scorer/star.py": "__all__ = ['Foreign', 'anything']\nfrom scorer.scoring import *\n",
    "run.py": "print('run')\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def check(folder: Path, manifest: str) -> None:
    tree = scan(folder)
    paths = frozenset(file.entry.path for file in tree.files)
    head = "" if "[package]" in manifest else "[package]\nmodule = 'scorer'\n"
    check_exports(parse_manifest(head + manifest), PackageCode(tree), paths)


@pytest.mark.parametrize(
    "functions",
    [
        "score(applicants)", "score(applicants, *, threshold=...)", "alias(x)", "mean(a)",
        "quick(a)", "parser(a)", "anything(a, b=1)", "anything(*args, **kw)", "CONSTANT()",
    ],
)  # fmt: skip
def test_functions_that_exist(folder: Path, functions: str) -> None:
    name = functions.partition("(")[0]
    check(folder, f'[exports]\nfunctions = {{ {name} = "{functions}" }}')


CLASS = '[exports.classes.{}]\ninit = "{}"\nmethods = [{}]\nattributes = [{}]'


@pytest.mark.parametrize(
    ("name", "init", "methods", "attributes"),
    [
        ("PublicScorer", "PublicScorer(size=1)", '"predict(x)", "fit(x, y)"', '"threshold"'),
        ("PublicScorer", "", '"decorated(a, b)"', '"limit", "note", "state", "fitted"'),
        ("Foreign", "Foreign(a)", '"whatever(x)"', '"who_knows"'),
    ],
)
def test_classes_that_exist(
    folder: Path, name: str, init: str, methods: str, attributes: str
) -> None:
    check(folder, CLASS.format(name, init, methods, attributes))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('[exports]\nfunctions={scoer="scoer(a)"}', "has no 'scoer'; did you mean 'score'?"),
        ('[exports]\nfunctions={score="score(applicants, treshold=1)"}', "mean 'threshold'?"),
        ('[exports]\nfunctions={score="score()"}', "needs 'applicants'"),
        ('[exports]\nfunctions={score="score(applicants, *more)"}', "no such parameter"),
        ('[exports]\nfunctions={PublicScorer="PublicScorer()"}', "list it in classes"),
        (CLASS.format("score", "", "", ""), "list it in functions"),
        (CLASS.format("PublicScorer", "PublicScorer()", "", ""), "needs 'size'"),
        (CLASS.format("PublicScorer", "", '"predit(x)"', ""), "mean 'predict'?"),
        (CLASS.format("PublicScorer", "", '"predict(z)"', ""), "no parameter 'z'"),
        (CLASS.format("PublicScorer", "", "", '"treshold"'), "mean 'threshold'?"),
        ("[package]\nmodule = 'scoer'", "mean 'scorer'?"),
        ("[package]\nname='x'\n[exports]\nfunctions={f='f()'}", "module is missing"),
        ("[scripts]\nrun = { file = 'rum.py' }", "mean 'run.py'?"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, manifest: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        check(folder, manifest)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "declared",
    ["score(weights, applicants, /)", "score(weights=None, /)", "score(weights, applicants)"],
)
def test_positions_that_would_arrive_elsewhere_are_refused(folder: Path, declared: str) -> None:
    with pytest.raises(ExportError, match="by position"):
        check(folder, f'[exports]\nfunctions = {{ score = "{declared}" }}')


def test_code_that_does_not_parse_is_named(folder: Path) -> None:
    (folder / "scorer/scoring.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(ExportError, match=r"scorer/scoring\.py:2: not valid Python"):
        check(folder, '[exports]\nfunctions = { score = "score(a)" }')


def test_imports_in_a_circle_end(folder: Path) -> None:
    (folder / "scorer/__init__.py").write_text("from .a import *\nfrom .a import f\n")
    (folder / "scorer/a.py").write_text("from . import *\nfrom . import f\n")
    check(folder, '[exports]\nfunctions = { f = "f(a)" }')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print(1)", "report: report.ipynb is no notebook"),
        ("[]", "is no notebook"),
        ('{"nbformat": 4, "metadata": {}, "cells": []}', "or an empty one"),
        ('{"nbformat": "4", "metadata": {}, "cells": [{}]}', "is no notebook"),
        ("[" * 100_000, "is no notebook"),
        (
            '{"nbformat": 4, "metadata": {"kernelspec": {"language": "R"}}, "cells": [{}]}',
            "is in 'r': only Python",
        ),
    ],
)
def test_a_script_that_is_no_notebook(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.ipynb").write_text(text)
    (tmp_path / "enclave.toml").write_text(
        "[package]\nname = 'x'\n[scripts]\nreport = { file = 'report.ipynb' }\n"
    )
    with pytest.raises(ExportError) as caught:
        plan_package(tmp_path)
    assert message in str(caught.value)


def test_notebooks_that_are_fine(tmp_path: Path) -> None:
    (tmp_path / "four.ipynb").write_text(
        '{"nbformat": 4, "metadata": {"language_info": {"name": "python"}}, "cells": [{}]}'
    )
    (tmp_path / "three.ipynb").write_text('{"nbformat": 3, "metadata": {}, "worksheets": [{}]}')
    (tmp_path / "enclave.toml").write_text(
        "[package]\nname = 'x'\n[scripts]\nfour = { file = 'four.ipynb' }\n"
        "three = { file = 'three.ipynb' }\n"
    )
    assert len(plan_package(tmp_path).manifest.scripts) == 2
