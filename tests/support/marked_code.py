"""Code for the linter in which every line that it must warn about is marked `# <- RULE`.

Every other line is one that it must say nothing of.
"""

import re
import textwrap
from pathlib import Path

from enclave_encryption.lint.package_lint import LintResult, lint_package
from enclave_encryption.package_plan import plan_package

__all__ = ["HEAD", "check", "functions", "lint", "manifest_of", "marked"]

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
