"""One value of each kind that crosses the boundary, small, and some whose contents are large."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import scipy.sparse as sparse  # type: ignore[import-untyped]
from PIL import Image


def value_examples() -> list[Any]:
    return [*_plain(), *_arrays(), *_tables(), *_arrow(), *_others()]


def _plain() -> list[Any]:
    zones = [None, UTC, timezone(timedelta(hours=2), "here"), ZoneInfo("Europe/Berlin")]
    return [
        *(None, True, -5, 2**63, -(2**90), 0.5, 1 + 2j, "text", "ü" * 3000, b"bytes", bytes(5000)),
        *(bytearray(b"ab"), bytearray(5000), [1, [2, []]], (1, ("a",)), {1, "a"}, frozenset([2.0])),
        *({"a": {"b": [None]}, (1, "x"): 2}, slice(1, None, 2), range(1, 9, 3)),
        *(Decimal("1.50"), UUID(int=7), date(2026, 1, 2), timedelta(1, 2, 3)),
        *(time(1, 2, 3, 4, zone) for zone in zones),
        *(datetime(2026, 1, 2, 3, 4, 5, 6, zone) for zone in zones),
    ]


def _arrays() -> list[Any]:
    names = ["b1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", "M8[ns]", "m8[25s]"]
    return [
        *(np.zeros((2, 3), name) for name in names),
        *(np.array(["a", "bc"]), np.array([b"a", b"bc"]), np.zeros(()), np.zeros((0, 5))),
        *(np.arange(2000), np.array(["x" * 50] * 100), np.float32(1.5), np.datetime64(5, "s")),
        *(np.str_("a"), np.bytes_(b"a")),
    ]


def _tables() -> list[Any]:
    columns = {
        "number": [1, 2, 3],
        "text": pd.Series(["a", None, float("nan")], dtype=object),
        "string": pd.Series(["a", "ü", None], dtype="str"),
        "python": pd.Series(["a", "b", None], dtype="string[python]"),
        "category": pd.Categorical(["x", "y", "x"], ordered=True),
        "masked": pd.array([1, None, 3], dtype="Int64"),
        "flag": pd.array([True, None, False], dtype="boolean"),
        "moment": pd.date_range("2026", periods=3, tz="Asia/Tokyo"),
        "arrow": pd.array([1, None, 3], dtype="int64[pyarrow]"),
    }
    frame = pd.DataFrame(columns)
    return [
        *(
            frame,
            pd.DataFrame(np.zeros((3, 4))),
            pd.DataFrame(),
            frame.set_index(["text", "number"]),
        ),
        *(frame["text"], pd.Series(["ü" * 100] * 100), pd.Series(np.arange(1000), name=("a", 1))),
        *(pd.Index(["a", 1, None], dtype=object), pd.date_range("2026", periods=4, freq="B")),
        *(pd.MultiIndex.from_product([[1, 2], ["a", "b"]]), pd.CategoricalIndex(["a", "b"])),
        *(pd.RangeIndex(5, 90, 7), pd.Timestamp("2026", tz="Asia/Tokyo"), pd.Timedelta(5), pd.NaT),
    ]


def _arrow() -> list[Any]:
    arrays = [
        pa.array([1, None, 3]),
        pa.array(["a", None, "bc"]),
        pa.array([b"a"], pa.large_binary()),
        pa.array([True, None]),
        pa.array([[1], [], None]),
        pa.array([{"a": 1, "b": "x"}, None]),
        pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
        pa.array([Decimal("1.5")], pa.decimal128(5, 2)),
        pa.array([datetime(2026, 1, 1, tzinfo=UTC)]),
        pa.array([bytes(3)], pa.binary(3)),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.nulls(3),
    ]
    return [*arrays, pa.chunked_array([["a"], ["b"]]), pa.table({"a": [1], "b": [["x"]]})]


def _others() -> list[Any]:
    return [
        *(getattr(sparse, f"{kind}_array")(np.eye(3)) for kind in ("csr", "csc", "coo", "dia")),
        sparse.bsr_matrix(np.eye(4), blocksize=(2, 2)),
        *(Image.new(mode, (3, 2)) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16", "F")),
    ]
