"""Kinds that an owner declares, against values."""

from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from enclave_kernel.vault.callback_values import plain_argument
from enclave_protocol.callback_schema import KINDS, CallbackParameter


class Sub(dict):  # type: ignore[type-arg]
    pass


VALUES: dict[str, list[Any]] = {
    "None": [None],
    "bool": [True, np.True_],
    "int": [1, np.int8(1), np.uint64(2**63)],
    "float": [1.5, np.float32(1.5), 1, np.int8(1)],
    "complex": [1j, np.complex64(1j)],
    "str": ["x"],
    "bytes": [b"x"],
    "list": [[1]],
    "tuple": [(1,)],
    "dict": [{"a": 1}],
    "set": [{1}],
    "ndarray": [np.zeros(2), np.zeros(())],
    "DataFrame": [pd.DataFrame({"a": [1]})],
    "Series": [pd.Series([1])],
}
REFUSED: list[Any] = [Sub(), object(), np.ma.masked_array([1]), lambda: 0, int, range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_takes_its_values_and_no_others(kind: str) -> None:
    parameter = CallbackParameter("x", (kind,))
    own = VALUES[kind]
    for value in own:
        taken = plain_argument(parameter, value)
        if kind in ("bool", "int", "float", "complex"):
            assert type(taken).__name__ == kind
        else:
            assert taken is value
    others = [value for name, values in VALUES.items() if name != kind for value in values]
    if kind in ("int", "float"):
        # A whole number is both.
        others = [value for value in others if not isinstance(value, int | np.integer)]
        others.append(True)
    for value in [*others, *REFUSED]:
        with pytest.raises(TypeError, match=f"'x' of a callback is declared as {kind}"):
            plain_argument(parameter, value)


def test_one_of_several() -> None:
    parameter = CallbackParameter("x", ("None", "int", "str"))
    assert [plain_argument(parameter, value) for value in (None, 1, "a")] == [None, 1, "a"]
    with pytest.raises(TypeError, match=r"declared as None \| int \| str"):
        plain_argument(parameter, 1.5)
