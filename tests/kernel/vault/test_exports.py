"""Declared signatures against the code's own: nothing undeclared is reached by counting."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from enclave_kernel.vault.exports import ArgumentsError, Export, ExportError


def _export(declared: str, target: Callable[..., Any]) -> Export:
    try:
        actual = inspect.signature(target)
    except ValueError:
        actual = None
    return Export(declared, returns="value", actual=actual, target=target)


def _call(declared: str, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    arranged, named = _export(declared, target).arrange(list(args), kwargs)
    return target(*arranged, **named)


def predict(x: Any, return_weights: bool = False, threshold: float = 0.5) -> tuple[Any, ...]:
    return x, return_weights, threshold


def reordered(a: int, b: int, c: int = 3) -> tuple[int, ...]:
    return a, b, c


def only_positions(a: int, b: int = 2, /) -> tuple[int, ...]:
    return a, b


def rest(a: int, *others: int, k: int = 0) -> tuple[Any, ...]:
    return a, others, k


def wrapped(*args: Any, **kwargs: Any) -> Any:
    return predict(*args, **kwargs)


@functools.wraps(predict)
def decorated(*args: Any, **kwargs: Any) -> Any:
    return predict(*args, **kwargs)


@pytest.mark.parametrize("target", [predict, wrapped, decorated])
def test_a_parameter_the_signature_leaves_out_keeps_its_default(target: Callable[..., Any]) -> None:
    declared = "predict(x, threshold=0.5)"
    assert _call(declared, target, "x", True) == ("x", False, True)
    assert _call(declared, target, "x", threshold=0.9) == ("x", False, 0.9)
    with pytest.raises(ArgumentsError, match="return_weights"):
        _call(declared, target, "x", return_weights=True)
    with pytest.raises(ArgumentsError, match="too many positional"):
        _call(declared, target, "x", 0.5, True)


def test_another_order_means_the_declared_names() -> None:
    assert _call("reordered(b, a)", reordered, 1, 2) == (2, 1, 3)


def test_what_goes_by_position_only_arrives_where_it_was_declared() -> None:
    assert _call("only_positions(a, b=2, /)", only_positions, 1, 5) == (1, 5)
    assert _call("only_positions(a, b=2)", only_positions, 1, 5) == (1, 5)
    with pytest.raises(ExportError, match="by position"):
        _export("only_positions(b, /)", only_positions)
    with pytest.raises(ExportError, match="by position") as caught:
        _export("predict(x, threshold, /)", predict)
    # The user reads this: parameters that the signature leaves out are not named.
    assert "return_weights" not in str(caught.value)


def test_the_rest_goes_by_position_in_the_declared_order() -> None:
    assert _call("rest(a, *others, k=0)", rest, 1, 2, 3, k=4) == (1, (2, 3), 4)
    with pytest.raises(ExportError, match="by position"):
        _export("rest(k, *others)", rest)


def test_compiled_code_without_a_signature_is_called_by_position() -> None:
    assert _export("f(a, b)", max).arrange([1, 2], {}) == ([1, 2], {})


def test_missing_arguments_read_as_pythons() -> None:
    with pytest.raises(ArgumentsError, match=r"predict\(\) missing a required argument: 'x'"):
        _call("predict(x)", predict)
