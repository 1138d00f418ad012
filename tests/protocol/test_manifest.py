from pathlib import Path

import pytest

from enclave_protocol.manifest import (
    CONTEXT_METHODS,
    MAX_MANIFEST_BYTES,
    ExportedClass,
    Manifest,
    ManifestError,
    parse_manifest,
)
from enclave_protocol.package_errors import PackageError

FULL = """
[package]
name = "credit-scorer"
version = "1.2.0"
description = "Scores applicants"
module = "credit_scorer"
publisher = "ACME Analytics"
requirements = ["numpy>=2", "onnxruntime >=1.20, <2"]
[exports]
functions = { score = "score(applicants, *, threshold=0.5)" }
classes = { Scorer = { init = "Scorer(model='base')", methods = ["predict(x)", "fit(x, y)"], attributes = ["threshold"] } }
returns = { score = "value", fit = "Scorer" }
[docs]
score = "Score a table of applicants; returns a float64 array."
"Scorer.predict" = "Predicts."
[scripts]
classify = { file = "ml_algorithm.py", output = "text" }
[policy]
errors = ["ValueError", "TypeError"]
output = "progress"
callbacks = {}
workspace = "read"
native = false
max_calls = 10
max_result_bytes = 1000000
calls_per_minute = 60
expires = 2027-01-31T00:00:00Z
environment = "development"
"""  # noqa: E501


def test_every_key() -> None:
    manifest = parse_manifest(FULL)
    assert manifest.package.requirements == ("numpy>=2", "onnxruntime >=1.20, <2")
    assert manifest.exports.classes["Scorer"] == ExportedClass(
        "Scorer(model='base')", ("predict(x)", "fit(x, y)"), ("threshold",)
    )
    assert manifest.exports.returned_by("score") == "value"
    assert manifest.exports.returned_by("Scorer.fit") == "Scorer"
    assert manifest.exports.returned_by("Scorer.predict") == "value"
    assert manifest.policy.expires == "2027-01-31T00:00:00+00:00"
    assert manifest.scripts["classify"].file == "ml_algorithm.py"


def test_defaults_deny() -> None:
    manifest = parse_manifest("")
    assert manifest == Manifest()
    assert manifest.policy.errors == ()
    assert not manifest.exports.functions and not manifest.exports.classes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[exports]", "[export]", "unknown key 'export' in the file; did you mean 'exports'?"),
        ("publisher =", "publishr =", "'publishr' in [package]; did you mean 'publisher'?"),
        ("max_calls", "max_cals", "in [policy]; did you mean 'max_calls'?"),
        ("methods =", "method =", "in [exports.classes.Scorer]; did you mean 'methods'?"),
        ('output = "text"', 'outptu = "text"', "in [scripts.classify]; did you mean 'output'?"),
        ("native = false", 'native = "no"', "policy.native: expected true or false, got text"),
        ('workspace = "read"', 'workspace = "raed"', "'raed', expected one of none, read; did you"),
        ('output = "text"', 'output = "txt"', "[scripts.classify] output is 'txt', expected one"),
        ("\n[exports]\n", "\nmax_calls = 1\n[exports]\n", "in [package]; it belongs in [policy]"),
        ("max_calls = 10", "max_calls = -1", "max_calls is -1"),
        ('"TypeError"', '"TypError"', "did you mean 'TypeError'?"),
        ('"TypeError"', '"KeyboardInterrupt"', "not a built-in exception"),
        ("callbacks = {}", 'callbacks = { f = "(x: int)" }', "no export has a parameter 'f'"),
        ("callbacks = {}", 'callbacks = { applicant = "()" }', "did you mean 'applicants'?"),
        ("callbacks = {}", 'callbacks = { x = "(a)" }', "callbacks.x: '(a)' is not of the form"),
        ("callbacks = {}", 'callbacks = { x = "(a: object)" }', "no kind of value; known are None"),
        ("2027-01-31T00:00:00Z", '"soon"', "expires"),
        ("2027-01-31T00:00:00Z", "2027-01-31T00:00:00", "with its zone"),
        ("2027-01-31T00:00:00Z", "2027-01-31", "with its zone"),
        ("score(applicants", "scoer(applicants", "is of 'scoer', expected 'score'"),
        ("threshold=0.5)", "threshold=OS)", "functions.score: signature"),
        ('fit = "Scorer"', 'fit = "Scorre"', "did you mean 'Scorer'?"),
        ('fit = "Scorer"', 'fti = "Scorer"', "did you mean 'fit'?"),
        ("{ score =", "{ _score =", "'_score' is private"),
        ('init = "Scorer(', 'init = "async Scorer(', "leave out 'async'"),
        ('"predict(x)"', '"__reduce__()"', "is private"),
        ('"predict(x)"', '"__enter__()"', "need each other"),
        ('"predict(x)"', '"__exit__()"', "need each other"),
        ('"predict(x)"', '"__exit__(a, b, c)", "__enter__()"', "is private"),
        ('fit = "Scorer"', '"__enter__" = "Scorer"', "is not exported"),
        ('"threshold"', '"a.b"', "not a Python name"),
        ('"threshold"', '"predict"', "declared twice"),
        ("\nscore = ", "\nscoer = ", "did you mean 'score'?"),
        ("returns a float64", "\\u001b[31m", "do not print"),
        ('"ml_algorithm.py"', '"../x.py"', "inside the package"),
        ('"ml_algorithm.py"', '"run"', "a compiled program with native = true in [policy]"),
        ('"ml_algorithm.py"', '"../x.ipynb"', "inside the package"),
        ('"credit-scorer"', '"../scorer"', "[package] name"),
        ('"1.2.0"', '"1/2"', "[package] version"),
        ('"credit_scorer"', '"credit-scorer"', "[package] module"),
        ("numpy>=2", "numpy @ http://x", "requirements"),
        ("[package]", "[package", "not TOML"),
        ("[package]\n", "[package]\nname = 'twice'\n", "not TOML"),
        ("[docs]\n", "[docs]\n" + "a" * MAX_MANIFEST_BYTES, "more than"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(old: str, new: str, message: str) -> None:
    assert old in FULL
    with pytest.raises(PackageError) as caught:
        parse_manifest(FULL.replace(old, new, 1))
    assert message in str(caught.value)
    assert str(caught.value).startswith("enclave.toml: ")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_none() -> None:
    with pytest.raises(ManifestError, match="policy: expected a table, got a whole number"):
        parse_manifest("policy = 1")


def test_function_and_class_of_one_name() -> None:
    text = FULL.replace('{ score = "score(', '{ Scorer = "Scorer(', 1)
    with pytest.raises(ManifestError, match="both a function and a class"):
        parse_manifest(text)


def test_callbacks() -> None:
    text = FULL.replace("callbacks = {}", 'callbacks = { model = "(step: int)", y = "()" }', 1)
    assert parse_manifest(text).policy.callbacks == {"model": "(step: int)", "y": "()"}


def test_a_context_manager() -> None:
    text = FULL.replace('"predict(x)"', '"predict(x)", "__enter__()", "__exit__()"', 1)
    assert parse_manifest(text).exports.classes["Scorer"].methods[1:3] == CONTEXT_METHODS


def test_deep_nesting_is_no_crash() -> None:
    with pytest.raises(ManifestError):
        parse_manifest("a = " + "[" * 50_000)


def test_spec_lists_every_key() -> None:
    spec = (Path(__file__).parents[2] / "docs/spec/encrypted_package.md").read_text()
    for line in FULL.splitlines():
        key = line.partition(" = ")[0]
        if " = " in line and key.isidentifier():
            assert f"`{key}`" in spec or key in ("score", "classify"), key


def test_a_notebook_is_a_script() -> None:
    manifest = parse_manifest("[scripts]\nreport = { file = 'deep/report.ipynb' }\n")
    assert manifest.scripts["report"].file == "deep/report.ipynb"
