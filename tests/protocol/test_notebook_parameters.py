import math

import pytest

from enclave_protocol.notebook_parameters import (
    NotebookParameterError,
    Scalar,
    parse_notebook_arguments,
    parse_scalar,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-007", -7),
        ("+3", 3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e-3", 0.001),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("~", None),
        ("", ""),
        ("text", "text"),
        ("two words", "two words"),
        ("/data/x.csv", "/data/x.csv"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
        ("[1, 2]", "[1, 2]"),
        ("__import__('os')", "__import__('os')"),
        ('"1"', "1"),
        ("'1'", "1"),
        ("'it''s'", "it's"),
        ('"tab\\there"', "tab\there"),
        ('""', ""),
        ("\u0663", "\u0663"),  # a digit to int(), and not to YAML
    ],
)
def test_scalars(text: str, value: Scalar) -> None:
    parsed = parse_scalar(text)
    assert (type(parsed), parsed) == (type(value), value)


def test_not_a_number() -> None:
    parsed = parse_scalar(".nan")
    assert isinstance(parsed, float) and math.isnan(parsed)


@pytest.mark.parametrize("text", ['"open', "'open", "'a'b'", '"a" "b"', '"\\x"', "9" * 1001])
def test_what_is_no_scalar(text: str) -> None:
    with pytest.raises(NotebookParameterError):
        parse_scalar(text)


def test_parameters_are_taken_out_of_the_arguments() -> None:
    found = parse_notebook_arguments(
        ["-p", "a", "1", "-d", "/data/", "--parameters", "b", '"/x"', "-p", "a", "-p", "-o", "/o"]
    )
    assert found.parameters == {"a": "-p", "b": "/x"}
    assert found.quoted == {"b"}
    assert found.others == ("-d", "/data/", "-o", "/o")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p"],
        ["-p", "a"],
        ["-p", "a b", "1"],
        ["-p", "a.b", "1"],
        ["-p", "if", "1"],
        ["-p", "é", "1"],
    ],
)
def test_parameters_that_are_none(arguments: list[str]) -> None:
    with pytest.raises(NotebookParameterError):
        parse_notebook_arguments(arguments)
