"""What is said about two values: nothing where they are the same, the place where they differ."""

import datetime
import io
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import scipy.sparse as sparse  # type: ignore[import-untyped]
from PIL import Image, PngImagePlugin

from enclave_encryption.value_differences import value_differences
from enclave_protocol.value_codec import decode_value, encode_value
from tests.support.value_examples import value_examples


def _crossed(value: object) -> object:
    encoded = encode_value(value)
    return decode_value(encoded.header, [memoryview(bytes(part)) for part in encoded.buffers])


@pytest.mark.parametrize("value", value_examples(), ids=lambda value: type(value).__name__)
def test_what_crosses_whole_has_no_difference(value: Any) -> None:
    crossed = _crossed(value)
    assert value_differences(crossed, _crossed(crossed)) == ()


@pytest.mark.parametrize(
    ("owner", "user", "line"),
    [
        (1, 1.0, "the value is float for the user, int for you"),
        (1, 2, "the value is 2 for the user, 1 for you"),
        ([1, (2, "a")], [1, (2, "b")], "[1][1] is 'b' for the user, 'a' for you"),
        ([1], [1, 2], "the value has 2 items for the user, 1 for you"),
        ({"a": 1}, {"b": 1}, "['a'] is missing for the user"),
        (np.ones(2), np.ones(3), "the array has shape (3,) for the user, (2,) for you"),
        (np.ones(2), np.zeros(2), "the array has other elements for the user"),
        ({"x": np.ones(2)}, {"x": np.ones(2, "f4")}, "['x'] has dtype float32 for the user"),
        (pd.Series([1, 2]), pd.Series([1, 3]), "the column has other values for the user"),
        (pd.Series([1], name="a"), pd.Series([1]), "the column has name None for the user"),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), ".columns has other values"),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": ["x"]}), "['a'] has dtype"),
        (sparse.csr_array([[1, 0]]), sparse.csr_array([[2, 0]]), "the matrix has other elements"),
        (sparse.csr_array([[1, 0]]), sparse.csr_array([[1.0, 0]]), "the matrix has dtype float64"),
        (pa.array([1, None]), pa.array([1, 2]), "the value is"),
        (pa.table({"a": [1]}), pa.table({"a": [2]}), "the table has other values for the user"),
        (pa.table({"a": [1]}), pa.table({"a": ["x"]}), "the table has another schema"),
    ],
)
def test_the_place_is_named(owner: object, user: object, line: str) -> None:
    assert value_differences(owner, user)[0].startswith(line)


def test_what_is_missing_equals_itself() -> None:
    for value in (
        float("nan"),
        [float("nan")],
        np.array(["NaT", "2026-01-01"], "M8[s]"),
        np.array([np.nan]),
        pd.Series([None, pd.NA, float("nan")], dtype=object),
        pd.Series([1, None], dtype="Int64"),
        pd.Series(["a", None], dtype="category"),
        pd.Series([pd.NaT, datetime.datetime(2026, 1, 1)]),
    ):
        assert value_differences(value, value) == ()
    assert value_differences(pd.Series([1, None], dtype="Int64"), pd.Series([1, 2], dtype="Int64"))


def test_what_no_value_shows() -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"secret": "x"})
    assert "metadata" in value_differences(table, _crossed(table))[0]
    series = pd.Series([1])
    series.attrs["secret"] = 1
    assert "attrs" in value_differences(series, _crossed(series))[0]
    buffer = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("author", "secret")
    Image.new("RGB", (2, 2)).save(buffer, "png", pnginfo=info)
    image = Image.open(buffer)
    lines = value_differences(image, _crossed(image))
    assert lines[0].startswith("the value is PIL.Image.Image for the user")
    assert "info {'author': 'secret'}" in lines[1]
    assert len(lines) == 2


def test_there_are_a_dozen_at_most() -> None:
    lines = value_differences(list(range(100)), list(range(1, 101)))
    assert len(lines) == 13
    assert lines[-1] == "and more"


def test_a_value_whose_repr_raises() -> None:
    class Odd(dict[str, int]):
        def __repr__(self) -> str:
            raise RuntimeError

    assert value_differences([Odd()], [{}])
