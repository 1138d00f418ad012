"""Values of pandas, Arrow, SciPy and PIL: as they were, nothing hidden with them, or refused."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_protocol.value_codec import ValueRefusedError, decode_value, encode_value
from enclave_protocol.value_nodes import Tag

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")
image_module = pytest.importorskip("PIL.Image")

CANARY = b"SECRETKEY"
SECRET = CANARY.decode()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def wire(value: object) -> bytes:
    encoded = encode_value(value)
    return encoded.header + b"".join(encoded.buffers)


def through(value: object) -> Any:
    encoded = encode_value(value)
    return decode_value(encoded.header, [memoryview(bytearray(part)) for part in encoded.buffers])


def column_of(draw: Any, size: int) -> Any:
    def many(items: Any) -> list[Any]:
        found: list[Any] = draw(st.lists(items, min_size=size, max_size=size))
        return found

    maybe = st.one_of
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return np.array(many(st.integers(-(2**31), 2**31 - 1)), draw(st.sampled_from(["i4", "i8"])))
    if kind == 1:
        return np.array(many(st.floats()), "f8")
    if kind == 2:
        return np.array(many(st.booleans()), bool)
    if kind == 3:
        unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
        return np.array(many(st.integers(-(10**9), 10**9)), "i8").view(f"M8[{unit}]")
    if kind == 4:
        moments = pd.DatetimeIndex(np.array(many(st.integers(0, 10**9)), "M8[s]"))
        return moments.tz_localize("UTC").tz_convert(draw(st.sampled_from(["Asia/Tokyo", "UTC"])))
    if kind == 5:
        labels = many(st.sampled_from(["a", "b", "ü", None]))
        return pd.Categorical(labels, categories=["ü", "b", "a"], ordered=draw(st.booleans()))
    if kind == 6:
        name = draw(st.sampled_from(["Int8", "UInt16", "Int64"]))
        return pd.array(many(maybe(st.none(), st.integers(0, 100))), dtype=name)
    if kind == 7:
        return pd.array(many(maybe(st.none(), st.floats(allow_nan=False))), dtype="Float64")
    if kind == 8:
        return pd.array(many(maybe(st.none(), st.booleans())), dtype="boolean")
    if kind == 9:
        name = draw(st.sampled_from(["str", "string[python]", "string[pyarrow]"]))
        return pd.array(many(maybe(st.none(), TEXT)), dtype=name)
    if kind == 10:
        return pd.array(many(maybe(st.none(), st.integers(0, 100))), dtype="int64[pyarrow]")
    values = np.empty(size, object)
    values[:] = many(maybe(st.none(), TEXT, st.just(np.nan)))
    return pd.Series(values, dtype=object)


@st.composite
def frames(draw: Any) -> Any:
    size = draw(st.integers(0, 6))
    number = draw(st.integers(0, 4))
    frame = pd.DataFrame(
        {place: pd.Series(column_of(draw, size)) for place in range(number)},
        index=pd.RangeIndex(size),
    )
    names = st.one_of(TEXT, st.integers(-5, 5), st.none())
    labels = draw(st.lists(names, min_size=number, max_size=number))
    frame.columns = pd.Index(labels, dtype=object)
    if draw(st.booleans()):
        column = column_of(draw, size)
        frame.index = pd.Index(column, name=draw(TEXT), dtype=getattr(column, "dtype", None))
    elif draw(st.booleans()):
        parts = [np.arange(size) % 3, np.array(["x", "y"] * size, dtype=object)[:size]]
        frame.index = pd.MultiIndex.from_arrays(parts, names=["a", None])
    return frame


@given(frames())
@SLOW
def test_frames_arrive_as_they_were(frame: Any) -> None:
    back = through(frame)
    # Unused categories are dropped on purpose; the order of the others is compared.
    for place in range(frame.shape[1]):
        left, right = frame.iloc[:, place], back.iloc[:, place]
        if isinstance(left.dtype, pd.CategoricalDtype):
            left = left.cat.remove_unused_categories()
        pd.testing.assert_series_equal(left, right, check_index=False)
    pd.testing.assert_index_equal(frame.columns, back.columns, exact=True)
    if isinstance(frame.index, pd.CategoricalIndex):
        frame.index = frame.index.remove_unused_categories()
    pd.testing.assert_index_equal(frame.index, back.index, exact=True)


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3, 90, 7, name="r"),
        pd.date_range("2026", periods=5, freq="h", tz="Europe/Berlin"),
        pd.timedelta_range("1D", periods=3, name=("a", 1)),
        pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["p", None])[1:3],
        pd.Index(["a", 1, None, (1, "b")], dtype=object, tupleize_cols=False),
    ],
)
def test_indexes_and_series_arrive_as_they_were(index: Any) -> None:
    back = through(index)
    pd.testing.assert_index_equal(index, back, exact=True)
    assert getattr(index, "freq", None) == getattr(back, "freq", None)
    series = pd.Series(np.arange(len(index)), index=index, name="s")
    pd.testing.assert_series_equal(series, through(series))


def test_frames_of_one_dtype_and_repeated_labels() -> None:
    for frame in (
        pd.DataFrame(np.arange(12.0).reshape(4, 3), columns=["a", "a", "b"]),
        pd.DataFrame([[1, "x"]], columns=["a", "a"]),
        pd.DataFrame(index=[1, 2]),
    ):
        pd.testing.assert_frame_equal(frame, through(frame))
    back = through(pd.DataFrame(np.zeros((1000, 3))))
    back.iloc[0, 0] = 1.0
    assert back.iloc[0, 0] == 1.0


@pytest.mark.parametrize(
    "value", [pd.Timestamp("2026-01-01 10:00", tz="Asia/Tokyo"), pd.Timedelta("1D"), pd.NaT, pd.NA]
)
def test_pandas_scalars(value: Any) -> None:
    back = through(value)
    assert type(back) is type(value)
    assert back is value or back == value


ARROW: list[Any] = [
    pa.array([1, None, 3]),
    pa.array([1.5, None, 2], pa.float16()),
    pa.array([True, None, False]),
    pa.array(["a", None, "ü", "cc"]),
    pa.array([b"a", None], pa.large_binary()),
    pa.array([b"ab", None], pa.binary(2)),
    pa.array([1, None], pa.decimal128(5, 2)),
    pa.array([1, None], pa.timestamp("us", tz="Asia/Tokyo")),
    pa.array([1, None], pa.time32("ms")),
    pa.nulls(3),
    pa.array([[1, 2], None, [], [3]]),
    pa.array([[["a"], None], None, [[]]], pa.list_(pa.large_list(pa.string()))),
    pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "z"}]),
]


@pytest.mark.parametrize("array", ARROW, ids=lambda array: str(array.type))
def test_arrow_arrives_as_it_was(array: Any) -> None:
    for value in (
        *(array, array[1:], array[:1], array[:0]),
        pa.chunked_array([array, array[1:]]),
        pa.chunked_array([], array.type),
        pa.table({"c": array, "d": array}),
        pa.record_batch({"c": array}),
    ):
        back = through(value)
        assert type(back) is type(value) and back.equals(value)
        back.validate(full=True)


def test_dictionaries_keep_order_and_lose_unused_entries() -> None:
    codes = pa.array([3, None, 1], pa.int8())
    value = pa.DictionaryArray.from_arrays(codes, ["z", "b", SECRET, "a"], ordered=True)
    back = through(value)
    assert back.to_pylist() == ["a", None, "b"] and back.dictionary.to_pylist() == ["b", "a"]
    assert back.type == value.type and CANARY not in wire(value)


@pytest.mark.parametrize("form", ["array", "matrix"])
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("dtype", ["f8", "i4", "c16"])
def test_sparse_matrices_arrive_as_they_were(kind: str, form: str, dtype: str) -> None:
    value = getattr(sparse, f"{kind}_{form}")((np.arange(12) % 5).reshape(4, 3).astype(dtype))
    back = through(value)
    assert type(back) is type(value) and back.dtype == value.dtype
    assert (back.toarray() == value.toarray()).all()


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "I;16"]


def picture(mode: str) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    image = image_module.fromarray(pixels)
    return image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)


def test_palettes_keep_their_kind_and_lose_unused_colours() -> None:
    for image in (picture("P").convert("PA"), picture("RGBA").quantize(8)):
        back = through(image)
        assert back.mode == image.mode
        assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()
    small = image_module.new("P", (1, 1), 1)
    small.putpalette(b"abcdef" + CANARY)
    assert CANARY not in wire(small) and b"abc" not in wire(small) and b"def" in wire(small)


@pytest.mark.parametrize("mode", MODES)
def test_images_arrive_as_they_were(mode: str) -> None:
    image = picture(mode)
    image.info["comment"] = SECRET
    back = through(image)
    assert type(back) is image_module.Image and (back.mode, back.size) == (image.mode, image.size)
    assert back.tobytes() == image.tobytes()
    if mode == "P":
        assert back.convert("RGB").tobytes() == image.convert("RGB").tobytes()
    assert CANARY not in wire(image) and not back.info


def test_images_from_files_come_as_plain_images() -> None:
    file = io.BytesIO()
    picture("RGB").save(file, "png")
    opened = image_module.open(io.BytesIO(file.getvalue()))
    assert type(opened) is not image_module.Image
    assert through(opened).tobytes() == picture("RGB").tobytes()


def hidden() -> Iterator[tuple[str, Any]]:
    yield "attrs", pd.DataFrame({"a": [1]})
    values = pd.array([1, 2], dtype="Int64")
    number = int.from_bytes(CANARY[:8], "little")
    values = pd.arrays.IntegerArray(np.array([number, 2]), np.array([True, False]))
    yield "under a mask", pd.Series(values)
    yield "unused category", pd.Series(pd.Categorical(["a"], categories=[SECRET, "a"]))
    frame = pd.DataFrame({"x": [1, 2], "k": [SECRET, "a"]}).set_index("k", append=True)
    yield "unused level", frame.iloc[1:]
    yield "rows outside a slice", pd.Series(["a", SECRET, "b"])[::2]
    yield "arrow slice", pa.array(["a", SECRET])[:1]
    yield "arrow list slice", pa.array([["a"], [SECRET]])[:1]
    yield "arrow struct slice", pa.array([{"s": "a"}, {"s": SECRET}])[:1]
    bits = pa.py_buffer(b"\1")
    where = pa.py_buffer(np.array([0, 1, 1 + len(CANARY)], np.int32))
    buffers = [bits, where, pa.py_buffer(b"a" + CANARY)]
    text = pa.Array.from_buffers(pa.string(), 2, buffers)
    yield "text under null", text
    yield (
        "text under null in a struct",
        pa.StructArray.from_arrays(
            [pa.array(["a", SECRET])], names=["s"], mask=pa.array([False, True])
        ),
    )
    fixed = [bits, pa.py_buffer(b"a" * 8 + CANARY[:8])]
    yield "number under null", pa.Array.from_buffers(pa.int64(), 2, fixed)
    schema = pa.schema([pa.field("c", pa.int64(), metadata={"k": SECRET})], {"k": SECRET})
    yield "arrow metadata", pa.Table.from_arrays([pa.array([1])], schema=schema)
    matrix = sparse.csr_array(np.eye(2))
    matrix.data = np.append(matrix.data, np.frombuffer(CANARY[:8], "f8"))
    matrix.indices = np.append(matrix.indices, matrix.indices[:1])
    yield "sparse spare room", matrix
    stripes = np.array([[1.0, *np.frombuffer(CANARY[:8], "f8")]])
    yield "outside the diagonals", sparse.dia_array((stripes, [0]), shape=(2, 1))
    base = np.frombuffer(b"a" * 8 + CANARY[:8], "i8")
    yield "array slice", base[:1]


HIDDEN = list(hidden())
HIDDEN[0][1].attrs["note"] = SECRET


@pytest.mark.parametrize("value", [value for _, value in HIDDEN], ids=[name for name, _ in HIDDEN])
def test_nothing_hidden_travels(value: Any) -> None:
    data = wire(value)
    assert CANARY[:8] not in data
    through(value)


class SubFrame(pd.DataFrame):  # type: ignore[misc,name-defined]
    pass


class Own:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (SubFrame({"a": [1]}), "SubFrame cannot cross"),
        (pd.DataFrame({"a": [1], "b": [Own()]}), "column 'b': a column of objects holds"),
        (pd.Series([1, "a"], dtype=object), "holds a value of type builtins.int"),
        (pd.Series([1.5, None], dtype=object), "holds a value of type builtins.float"),
        (pd.Series(["a"], name=Own()), "a label of a pandas object"),
        (pd.Series(pd.period_range("2026", periods=2)), "dtype period"),
        (pd.Series(pd.arrays.SparseArray([0, 1])), "dtype Sparse"),
        (pd.Series(["\ud800"], dtype=object), "lone surrogate"),
        (pd.period_range("2026", periods=2), "PeriodIndex cannot cross"),
        (pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))}), "column 'm'"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))), "type"),
        (sparse.lil_array(np.eye(2)), "lil_array cannot cross"),
        (image_module.new("RGBX", (1, 1)), "mode 'RGBX'"),
    ],
)
def test_everything_else_is_refused_and_named(value: Any, message: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        encode_value([value])
    assert message in str(caught.value) and str(caught.value).startswith("item 0")
    assert "\n" not in str(caught.value)


EXAMPLES: list[Any] = [
    *ARROW,
    *(value for _, value in HIDDEN),
    pa.table({"c": ARROW[0]}),
    pa.array(["a", "b"]).dictionary_encode(),
    pd.DataFrame({"a": ["x", None], "b": pd.Categorical(["q", "r"]), "c": [1, 2]}),
    pd.DataFrame({"a": pd.array([1, None], dtype="Int8"), "t": pd.to_datetime(["2026", None])}),
    pd.date_range("2026", periods=3, tz="Asia/Tokyo"),
    sparse.bsr_array(np.eye(4)),
    sparse.coo_matrix(np.eye(3)),
    sparse.dia_array(np.eye(3)),
    picture("P"),
    picture("1"),
]


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=600, deadline=None)
def test_mutated_bytes_give_a_value_or_a_refusal_and_nothing_else(
    value: Any, data: st.DataObject
) -> None:
    encoded = encode_value(value)
    mutated = bytearray(encoded.header)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    buffers = [memoryview(bytearray(part)) for part in encoded.buffers]
    try:
        back = decode_value(bytes(mutated), buffers)
    except ValueRefusedError:
        return
    # Whatever it is, it can be looked at and sent back.
    repr(back)
    encode_value(back)


def replaced(node: Any, draw: Any) -> Any:
    """Return `node` with one part of it exchanged for something of another kind."""
    if type(node) is list and node and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(node) - 1))
        return [*node[:place], replaced(node[place], draw), *node[place + 1 :]]
    odd = [None, -1, 2**62, "x", "pyarrow", b"", [], [None], True, 1.5]
    other: list[Any] = [[int(Tag.ARRAY), bytes(8), "i8", [1]], [int(Tag.ARRAY), b"", "u1", [0]]]
    return draw(st.sampled_from([*odd, *other]))


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=600, deadline=None)
def test_forged_nodes_give_a_value_or_a_refusal_and_nothing_else(
    value: Any, data: st.DataObject
) -> None:
    encoded = encode_value(value)
    forged = replaced(msgspec.msgpack.decode(encoded.header), data.draw)
    buffers = [memoryview(bytearray(part)) for part in encoded.buffers]
    try:
        repr(decode_value(msgspec.msgpack.encode(forged), buffers))
    except ValueRefusedError:
        return


def test_a_library_is_neither_imported_to_encode_nor_needed_to_refuse() -> None:
    frame = encode_value(pd.DataFrame({"a": [1, 2]})).header
    code = f"""
import sys
from enclave_protocol.value_codec import *
encode_value([1, {{"a": slice(1)}}])
loaded = {{"pandas", "pyarrow", "scipy", "PIL", "torch"}} & set(sys.modules)
sys.modules["pandas"] = None
try:
    decode_value({frame!r}, [])
except ValueRefusedError as refusal:
    print(loaded, refusal)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "set() a value of pandas came, and pandas is not installed here\n"


def test_torch_tensors_arrive_as_they_were() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.int64, torch.bool, torch.bfloat16):
        tensor = torch.arange(6).reshape(2, 3).T.to(dtype)
        back = through(tensor)
        assert back.dtype == dtype and torch.equal(back, tensor)
    assert len(wire(torch.zeros(100_000)[:1])) < 100
