import tomllib
from pathlib import Path

import pytest

from enclave_encryption.errors import ExportError, OwnerError
from enclave_encryption.manifest_draft import draft_manifest
from enclave_encryption.package_plan import DEFAULT_VERSION, plan_package
from enclave_protocol.manifest import parse_manifest

MODULE = '''"""Scores \\\\ "applicants".

More.
"""
import os
from json import dumps
SECRET = os.environ.get("SECRET")
raise SystemExit("a draft must never run this")
def score(applicants: "T", /, *rest, threshold: float = -0.5, seed=SECRET, path=os.sep) -> int:
    """Score a table.

    Internals nobody should read.
    """
async def later(a={}): ...
def rows(n):
    def inner(): yield 1
    with open(n) as f:
        yield from f
def _private(): ...
class Scorer:
    """Keeps a model."""
    def __init__(self, model="base"): self.threshold = 0.5
    def predict(self, x):
        """Predict."""
    @staticmethod
    def default(a): ...
    @classmethod
    def load(cls, name): ...
    async def each(self): yield 1
    def not_each(self): return lambda: (yield)
    def _each(self): yield 1
    @property
    def state(self): ...
    def _hidden(self): ...
    def __enter__(self): return self
    def __exit__(self, kind, error, traceback): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "credit-scorer"
    folder.mkdir()
    (folder / "credit_scorer.py").write_text(MODULE)
    (folder / "run.py").write_text("if __name__ == '__main__':\n    pass\n")
    (folder / "helper.py").write_text("x = 1\n")
    return folder


def test_draft_says_what_the_code_does(folder: Path) -> None:
    text = draft_manifest(folder, None)
    manifest = parse_manifest(text)
    assert manifest.package.name == "credit-scorer"
    assert manifest.package.module == "credit_scorer"
    assert manifest.package.description == 'Scores \\ "applicants".'
    assert manifest.exports.functions == {
        "later": "async later(a={})",
        "rows": "rows(n)",
        "score": "score(applicants, /, *rest, threshold=-0.5, seed=..., path=...)",
    }
    scorer = manifest.exports.classes["Scorer"]
    assert scorer.init == "Scorer(model='base')"
    assert scorer.methods == (
        "predict(x)", "default(a)", "load(name)", "async each()", "not_each()",
        "__enter__()", "__exit__()",
    )  # fmt: skip
    assert manifest.exports.returns == {"rows": "iter", "Scorer.each": "iter"}
    assert scorer.attributes == ()
    assert manifest.docs == {
        "score": "Score a table.",
        "Scorer": "Keeps a model.",
        "Scorer.predict": "Predict.",
    }
    assert [script.file for script in manifest.scripts.values()] == ["run.py"]
    assert manifest.policy == parse_manifest("").policy
    assert "SECRET" not in text and "Internals" not in text


def test_what_init_writes_encrypt_accepts(folder: Path) -> None:
    (folder / "enclave.toml").write_text(draft_manifest(folder, None))
    plan = plan_package(folder)
    assert plan.file_name == f"credit-scorer-{DEFAULT_VERSION}.encrypted"


def test_dunder_all_decides(folder: Path) -> None:
    (folder / "credit_scorer.py").write_text(MODULE + "\n__all__ = ['score', 'SECRET']\n")
    exports = parse_manifest(draft_manifest(folder, None)).exports
    assert list(exports.functions) == ["score"]
    assert not exports.classes


def test_module_is_chosen_or_asked_for(folder: Path) -> None:
    assert 'module = "helper"' in draft_manifest(folder, "helper")
    with pytest.raises(ExportError, match="no module 'nope'"):
        draft_manifest(folder, "nope")
    (folder / "credit_scorer.py").rename(folder / "other.py")
    with pytest.raises(ExportError, match="helper, other, run"):
        draft_manifest(folder, None)


def test_directory_without_manifest(folder: Path) -> None:
    manifest = plan_package(folder).manifest
    assert manifest.package.version == DEFAULT_VERSION
    assert manifest.package.module == ""
    assert not manifest.exports.functions
    assert sorted(manifest.scripts) == ["credit_scorer", "helper", "run"]


def test_notebooks_are_scripts(folder: Path) -> None:
    notebook = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'
    for name in ("report.ipynb", "run.ipynb", "deep/other.ipynb", "no name.ipynb"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(notebook)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "report-checkpoint.ipynb").write_text(notebook)
    expected = {"report": "report.ipynb", "run": "run.py", "run.ipynb": "run.ipynb"}
    plan = plan_package(folder)
    assert not [file for file in plan.tree.files if "checkpoint" in file.entry.path]
    scripts = {name: script.file for name, script in plan.manifest.scripts.items()}
    assert expected.items() <= scripts.items()
    assert "other.ipynb" not in str(scripts) and "no name" not in str(scripts)
    (folder / "enclave.toml").write_text(draft_manifest(folder, None))
    drafted = plan_package(folder).manifest.scripts
    assert {name: script.file for name, script in drafted.items()} == expected


def test_a_directory_of_notebooks(tmp_path: Path) -> None:
    notebook = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'
    (tmp_path / "report.ipynb").write_text(notebook)
    (tmp_path / "enclave.toml").write_text(draft_manifest(tmp_path, None))
    manifest = plan_package(tmp_path).manifest
    assert (manifest.package.module, list(manifest.scripts)) == ("", ["report"])


def test_directory_name_that_is_no_package_name(tmp_path: Path) -> None:
    folder = tmp_path / "my package"
    folder.mkdir()
    (folder / "run.py").write_text("")
    with pytest.raises(OwnerError, match="'my package' cannot be a package's"):
        plan_package(folder)
    (folder / "enclave.toml").write_text("[package]\nname = 'mine'\n")
    assert plan_package(folder).manifest.package.name == "mine"


def test_draft_is_toml_with_comments(folder: Path) -> None:
    text = draft_manifest(folder, None)
    assert set(tomllib.loads(text)) == {"package", "exports", "docs", "scripts", "policy"}
    assert "review every line" in text


INHERITING = """
from typing import overload
from base import Base
class Child(Base):
    @overload
    def get(self, a: int): ...
    @overload
    def get(self, a: str): ...
    def get(self, a, b=1): ...
"""


def test_inherited_init_and_overloads_are_what_python_calls(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(INHERITING)
    (tmp_path / "base.py").write_text("class Base:\n    def __init__(self, path): ...\n")
    text = draft_manifest(tmp_path, "child")
    child = parse_manifest(text).exports.classes["Child"]
    assert child.init == "Child(path)"
    assert child.methods == ("get(a, b=1)",)
    (tmp_path / "enclave.toml").write_text(text)
    plan_package(tmp_path)
