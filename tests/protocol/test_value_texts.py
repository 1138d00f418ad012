"""Long columns of objects that are texts: the quick ways to send and make them, and the slow."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enclave_protocol.value_codec import (
    EncodedValue,
    ValueRefusedError,
    decode_value,
    encode_value,
)
from enclave_protocol.value_nodes import Tag

pd = pytest.importorskip("pandas")

ROOT = Path(__file__).parents[2]
ROWS = 30_000
NAN = float("nan")
WORDS = [f"wörd-{number}" for number in range(500)]


def column(items: list[Any]) -> Any:
    values = np.empty(len(items), object)
    values[:] = items
    return pd.Series(values, dtype=object)


def wire(encoded: EncodedValue) -> bytes:
    return encoded.header + b"".join(encoded.buffers)


def through(value: object) -> Any:
    encoded = encode_value(value)
    return decode_value(encoded.header, [memoryview(bytearray(b)) for b in encoded.buffers])


def same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(
        type(a) is type(b) and (a == b or (a != a and b != b))
        for a, b in zip(left.tolist(), right.tolist(), strict=True)
    )


COLUMNS = {
    "repeated": column([WORDS[row % 500] for row in range(ROWS)]),
    "repeated, some missing": column([[*WORDS, None, NAN][row % 502] for row in range(ROWS)]),
    "one object": column(["x"] * ROWS),
    "nothing but None": column([None] * ROWS),
    "all different": column([f"wörd-{row}" for row in range(ROWS)]),
    "all different, some missing": column(
        [[f"w-{row}", None, NAN][row % 3] for row in range(ROWS)]
    ),
    "equal, not the same objects": column([f"wörd-{row % 7}" for row in range(ROWS)]),
    "empty texts": column([""] * 5000),
    "few": column(["a", None, NAN, ""]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_long_columns_of_texts_arrive_as_they_were(name: str) -> None:
    back = through(COLUMNS[name])
    assert back.dtype == object
    assert same(COLUMNS[name], back)


def test_an_object_that_many_rows_have_travels_once() -> None:
    encoded = wire(encode_value(COLUMNS["repeated"]))
    assert len(encoded) < ROWS * 4 + 500 * (8 + 9) + 500
    assert encoded.count("wörd-499".encode()) == 1


def test_what_is_no_text_is_refused_wherever_it_is() -> None:
    odd: list[list[Any]] = [
        [*["a"] * ROWS, 1],
        [*["a"] * ROWS, 1.5],
        [*map(str, range(ROWS)), b"a"],
        [*map(str, range(ROWS)), 1.5],
    ]
    for items in odd:
        with pytest.raises(ValueRefusedError, match="a column of objects holds"):
            encode_value(column(items))
    for items in ([*["a"] * ROWS, "\ud800"], [*map(str, range(ROWS)), "\ud800"]):
        with pytest.raises(ValueRefusedError, match="lone surrogate"):
            encode_value(column(items))


ARRAY = int(Tag.ARRAY)


def repeated(codes: "np.ndarray[Any, Any]", words: list[object]) -> bytes:
    name = codes.dtype.str[1:]
    part = ["repeated", [ARRAY, codes.tobytes(), name, [len(codes)]], words]
    return msgspec.msgpack.encode(
        [int(Tag.SERIES), ["range", [None], 0, len(codes), 1], None, part]
    )


def texts(*items: str) -> list[object]:
    data = "".join(items).encode()
    ends = np.cumsum([0, *map(len, items)], dtype=np.int64)
    places = [ARRAY, ends.tobytes(), "i8", [len(ends)]]
    return ["objects", None, places, [ARRAY, data, "u1", [len(data)]]]


def test_forged_repetitions_are_refused() -> None:
    good = decode_value(repeated(np.array([1, 0, 1], "i4"), texts("a", "b")), [])
    assert good.tolist() == ["b", "a", "b"]
    inner: list[object] = ["repeated", [ARRAY, b"\0\0\0\0", "i4", [1]], texts("a")]
    for header in (
        repeated(np.array([1, 0, 2], "i4"), texts("a", "b")),
        repeated(np.array([1, 0, -1], "i4"), texts("a", "b")),
        repeated(np.array([1, 0, 1], "i8"), texts("a", "b")),
        repeated(np.array([0], "i4"), texts("a", "b")),
        repeated(np.array([0], "i4"), texts()),
        repeated(np.array([0], "i4"), inner),
        repeated(np.array([0], "i4"), ["plain", None]),
    ):
        with pytest.raises(ValueRefusedError):
            decode_value(header, [])


def test_long_texts_that_are_no_text_are_refused() -> None:
    size = 5000
    for content, ends in (
        (b"\xff" * size, np.arange(size + 1)),
        ("ü" * (size // 2), np.arange(size + 1)),
        (b"a" * size, np.arange(size + 1)[::-1]),
        (b"a" * size, np.arange(1, size + 2)),
    ):
        data = content if isinstance(content, bytes) else content.encode()
        node = ["objects", None, [ARRAY, 0, "i8", [size + 1]], [ARRAY, 1, "u1", [size]]]
        index = ["range", [None], 0, size, 1]
        header = msgspec.msgpack.encode([int(Tag.SERIES), index, None, node])
        buffers = [bytearray(ends.astype(np.int64).tobytes()), bytearray(data)]
        with pytest.raises(ValueRefusedError):
            decode_value(header, [memoryview(buffer) for buffer in buffers])


WITHOUT_ARROW = """
import hashlib, sys
sys.modules["pyarrow"] = None
from tests.protocol.test_value_texts import COLUMNS, encode_value, same, through, wire
for name, column in COLUMNS.items():
    assert same(column, through(column)), name
    print(hashlib.sha256(wire(encode_value(column))).hexdigest())
"""


def test_without_arrow_the_same_bytes_travel() -> None:
    command = [sys.executable, "-c", WITHOUT_ARROW]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = [hashlib.sha256(wire(encode_value(c))).hexdigest() for c in COLUMNS.values()]
    assert ended.stdout.split() == expected
