from pathlib import Path

import pytest

from enclave_encryption.lint.finding import Finding
from enclave_encryption.lint.manifest_lint import lint_manifest
from enclave_encryption.manifest_draft import draft_manifest
from enclave_protocol.manifest import parse_manifest

CAREFUL = """
[package]
name = "scorer"
module = "scorer"

[exports]
functions = { score = "score(applicants, *, threshold=0.5, names=('a', 'b'), mode='fast')" }

[exports.classes.Scorer]
init = "Scorer(model='base', seed=None, hidden=...)"
methods = [
    "fit(x, y)",
    "predict(x)",
]

[policy]
errors = ["ValueError", "TypeError"]  # never KeyError
output = "progress"
"""


def lint(text: str) -> list[Finding]:
    return list(lint_manifest(parse_manifest(text), text))


def test_a_careful_manifest_has_no_warning() -> None:
    assert lint(CAREFUL) == []


@pytest.mark.parametrize(
    ("old", "new", "rule", "message"),
    [
        ('"TypeError"', '"KeyError"', "errors", "every KeyError, and its message is the key"),
        ('"TypeError"', '"Exception"', "errors", "libraries raise it"),
        ('"TypeError"', '"AttributeError"', "errors", "names classes and attributes"),
        ('output = "progress"', 'output = "text"', "output", "whatever exported code"),
        ("threshold=0.5", "threshold=0.4871293", "defaults", "'threshold' in score(): it has the"),
        ("mode='fast'", "mode='/srv/models/a.bin'", "defaults", "looks like a path or an address"),
        ("mode='fast'", "mode='https://a.example'", "defaults", "looks like a path or an address"),
        ("mode='fast'", f"mode='{'x' * 41}'", "defaults", "41 characters"),
        ("('a', 'b')", "(1, 2, 3, 4, 5)", "defaults", "it holds 5 values"),
        ("('a', 'b')", "(0.12345678, 2)", "defaults", "fitted number"),
        ("('a', 'b')", "b'key'", "defaults", "binary data"),
        ("model='base'", "model='s3://bucket/key'", "defaults", "'model' in Scorer()"),
        ('"predict(x)"', '"predict(x, **options)"', "kwargs", "predict() takes any keyword"),
    ],
)
def test_what_is_careless(old: str, new: str, rule: str, message: str) -> None:
    assert CAREFUL.count(old) == 1
    text = CAREFUL.replace(old, new)
    (finding,) = lint(text)
    assert finding.rule == rule
    assert message in finding.message
    assert finding.path == "enclave.toml"
    assert new in text.splitlines()[finding.line - 1]


@pytest.mark.parametrize("default", ["0.001", "1e-6", "-2.5", "1000000", "1.5e10", "''", "[]"])
def test_plain_defaults_are_no_warning(default: str) -> None:
    assert lint(CAREFUL.replace("0.5", default)) == []


def test_the_draft_has_no_warning_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "scorer.py").write_text("def score(a, limit=3): ...\nclass C:\n    size: int\n")
    assert lint(draft_manifest(tmp_path, "scorer")) == []
