"""What a package may tell a function of the user's, as text."""

import pytest

from enclave_protocol.callback_schema import (
    KINDS,
    CallbackParameter,
    CallbackSchemaError,
    parse_callback,
)
from enclave_protocol.package_errors import PackageError


def test_a_schema() -> None:
    assert parse_callback("(x: ndarray, best: float | None)") == (
        CallbackParameter("x", ("ndarray",)),
        CallbackParameter("best", ("float", "None")),
    )
    assert parse_callback("()") == ()
    for kind in KINDS:
        assert parse_callback(f"(a: {kind})")[0].kinds == (kind,)


BAD = [
    "", "x", "(x)", "(x: int", "(x: int) -> float", "(x: int = 1)", "(*x: int)", "(**x: int)",
    "(x: int, /)", "(*, x: int)", "(x: object)", "(x: np.ndarray)", "(x: 'int')", "(x: int & str)",
    "(x: list[int])", "(x: int, x: int)", "(x: int): pass\ndef g()", "(x: (yield))", "(x: 5)",
    "(" + ", ".join(f"a{n}: int" for n in range(17)) + ")", "(x: " + "int | " * 300 + "int)",
    "(x: int) # )", "(x: \x1bint)", "(x: lambda: 0)", "(x: Any)", "f(x: int)",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text[:20]))
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(CallbackSchemaError) as caught:
        parse_callback(text)
    assert isinstance(caught.value, PackageError)
    assert "\n" not in str(caught.value)
