"""What a value may cost: counted before it is built, the same on both sides."""

import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from types import FrameType
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol.value_codec import (
    ValueRefusedError,
    decode_arguments,
    decode_value,
    encode_value,
)
from enclave_protocol.value_decoder import Decoder
from enclave_protocol.value_encoder import Encoder
from enclave_protocol.value_limits import DEFAULT_LIMITS, CodecLimits
from enclave_protocol.value_nodes import Tag
from enclave_protocol.value_work import check_header

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")
image_module = pytest.importorskip("PIL.Image")

MIB = 2**20
ITEMS = 20_000
SMALL = CodecLimits(items=ITEMS)
PRIME = 2**61 - 1
"""Python's numbers hash to themselves modulo this."""
pack = msgspec.msgpack.encode


def through(value: object, limits: CodecLimits = DEFAULT_LIMITS) -> Any:
    encoded = encode_value(value, limits=limits)
    buffers = [memoryview(bytearray(part)) for part in encoded.buffers]
    return decode_value(encoded.header, buffers, limits=limits)


def calls_of(name: str, action: Callable[[], object]) -> int:
    """How often a Python function of this name was called by `action`."""
    number = 0

    def see(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal number
        number += event == "call" and frame.f_code.co_name == name

    sys.setprofile(see)
    try:
        action()
    finally:
        sys.setprofile(None)
    return number


def refused(header: bytes, limits: CodecLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(ValueRefusedError) as caught:
        decode_value(header, [], limits=limits)
    return str(caught.value)


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\xdc\x00\x00"])
def test_more_containers_than_items_are_refused_before_one_is_made(item: bytes) -> None:
    number = (4 * MIB - 16) // len(item)
    header = b"\xdd" + number.to_bytes(4, "big") + item * number
    assert "more than 1000000 items" in refused(b"\x92\x01" + header)
    with pytest.raises(ValueRefusedError, match="more than 1000000 items"):
        decode_arguments(b"\x93" + header + b"\x90\x90", [])
    tracemalloc.start()
    try:
        assert "more than 1000000 items" in refused(header)
        # The lists would take 250.
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


def test_arguments_are_items() -> None:
    header = pack([[None] * 11, [], []])
    with pytest.raises(ValueRefusedError, match="more than 10 items"):
        decode_arguments(header, [], limits=CodecLimits(items=10))


MSGPACK = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text()),
        *(st.binary(), st.binary(min_size=200, max_size=300), st.just("x" * 70_000)),
        *(st.just(b"\x90" * 70_000), st.just(datetime(2026, 1, 1, tzinfo=UTC))),
        st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=40)),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


def containers_in(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(containers_in, value.values()))
    return 1 + sum(map(containers_in, value)) if isinstance(value, list) else 0


@given(MSGPACK)
@settings(deadline=None)
def test_containers_are_counted_exactly(value: Any) -> None:
    number = containers_in(value)
    check_header(pack(value), CodecLimits(items=number))
    if number:
        with pytest.raises(ValueRefusedError):
            check_header(pack(value), CodecLimits(items=number - 1))


@given(st.binary(max_size=300), st.integers(0, 100))
def test_counting_ends_on_whatever_comes(data: bytes, items: int) -> None:
    try:
        check_header(data, CodecLimits(items=items))
    except ValueRefusedError:
        return


def test_a_header_full_of_bytes_that_look_like_containers_passes() -> None:
    value = [b"\x90" * 4096] * 20
    assert through(value, CodecLimits(items=100)) == value


EMPTY_ARRAY = [int(Tag.ARRAY), b"", "f8", [0]]
EMPTY_INDEX = ["range", [None], 0, 0, 1]
EMPTY_FRAME = [int(Tag.FRAME), EMPTY_INDEX, EMPTY_INDEX, ["columns", []]]


@pytest.mark.parametrize(
    ("node", "function", "cost"),
    [
        (EMPTY_ARRAY, "_array", 4),
        ([int(Tag.INDEX), EMPTY_INDEX], "_decode_index", 16),
        (EMPTY_FRAME, "_decode_frame", 64),
        ([int(Tag.ARROW_ARRAY), ["null", None, 0, None, []]], "decode_array", 8),
        ([int(Tag.IMAGE), "L", [1, 1], [int(Tag.ARRAY), b"a", "u1", [1]], None], "_decode", 12),
        ([int(Tag.PANDAS_SCALAR), "Timestamp", 0, "s", "UTC"], "_decode_scalar", 8),
    ],
)
def test_what_takes_longer_to_build_counts_as_more_items(
    node: list[object], function: str, cost: int
) -> None:
    header = pack([int(Tag.LIST), [node] * (ITEMS // containers_in(node) - 2)])
    made = calls_of(function, lambda: refused(header, SMALL))
    assert 1 <= made <= ITEMS // cost
    assert len(decode_value(pack([int(Tag.LIST), [node] * 100]), [], limits=SMALL)) == 100


def test_honest_sizes_pass() -> None:
    assert len(through([()] * 300_000)) == 300_000
    assert len(through([{"name": "x", "age": 3}] * 100_000)) == 100_000
    assert len(through([np.zeros(3)] * 10_000)) == 10_000
    wide = pd.DataFrame({place: ["a"] if place % 2 else [1] for place in range(3000)})
    pd.testing.assert_frame_equal(wide, through(wide))


SAME_HASH: dict[str, list[Any]] = {
    "ints": [k * PRIME for k in range(2000)],
    "UUIDs": [UUID(int=k * PRIME) for k in range(2000)],
    "Decimals": [Decimal(k * PRIME) for k in range(2000)],
    "complex": [complex(-1000003 * k, k) for k in range(2000)],
    "tuples": [(k * PRIME,) for k in range(2000)],
    "frozensets": [frozenset([k * PRIME]) for k in range(2000)],
    "both": [[k * PRIME, Decimal(-k * PRIME)][k % 2] for k in range(2000)],
}


@pytest.mark.parametrize("kind", SAME_HASH)
def test_keys_with_one_hash_are_refused_before_they_are_compared(kind: str) -> None:
    keys = SAME_HASH[kind]
    assert len(set(map(hash, keys))) == 1
    nodes = [msgspec.msgpack.decode(encode_value(key).header) for key in keys]
    for header in (
        pack([int(Tag.SET), nodes]),
        pack([int(Tag.FROZENSET), nodes]),
        pack([int(Tag.DICT), nodes, [None] * len(nodes)]),
    ):
        # UUID's comparison is written in Python: that of the others cannot be counted.
        assert calls_of("__eq__", lambda header=header: refused(header)) == 0  # type: ignore[misc]
    # Two sets that are within the limit alone.
    half = [int(Tag.SET), nodes[:1300]]
    assert "one and the same hash" in refused(pack([int(Tag.LIST), [half, half]]))
    for value in (set(keys), dict.fromkeys(keys), [set(keys[:1300]), set(keys[:1300])]):
        with pytest.raises(ValueRefusedError, match="one and the same hash"):
            encode_value(value)


def test_long_tuples_with_one_hash_count_with_their_length() -> None:
    keys = {(*range(1000), k * PRIME) for k in range(60)}
    with pytest.raises(ValueRefusedError, match="one and the same hash"):
        encode_value(keys)
    few = {(*range(10), k * PRIME) for k in range(60)}
    assert through(few) == few


def test_honest_keys_that_share_hashes_pass() -> None:
    for value in (
        {1 << bit for bit in range(5000)},
        {2.0**power for power in range(-1000, 1000)},
        set(product(range(-2, 3), repeat=6)),
        {complex(x, y) for x in range(-50, 50) for y in range(-50, 50)},
        {k * PRIME for k in range(1000)},
    ):
        assert through(value) == value


def colliding(number: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Numbers that pandas' hash table of 64-bit integers takes for one, in no order."""
    high = np.arange(number, dtype=np.uint64)
    low = (high ^ high << np.uint64(11) ^ high << np.uint64(22)) & np.uint64(2**32 - 1)
    return np.random.default_rng(0).permutation((high << np.uint64(33) | low).astype(np.int64))


def test_pandas_tables_are_not_asked_whether_labels_differ() -> None:
    numbers = colliding(30_000)
    for labels in (
        pd.Index(numbers),
        pd.DatetimeIndex(numbers.view("M8[us]")),
        pd.DatetimeIndex(numbers.view("M8[ns]"), tz="UTC"),
        pd.Index(numbers.astype(object)),
    ):
        # As if unique: not even the test's own table is filled.
        labels._cache["is_unique"] = True
        for value in (
            pd.Series(pd.Categorical.from_codes(np.arange(len(labels)), labels)),
            pd.Series(1, pd.MultiIndex([labels], [np.arange(len(labels))], verify_integrity=False)),
        ):
            back = through(value)
            levels = back.index.levels[0] if value.dtype == int else back.cat.categories
            assert len(levels) == len(numbers)
            assert not levels._engine.is_mapping_populated


TWICE: list[Any] = [
    *(np.array([3, 3]), np.array([0.5, 0.5]), np.array([np.nan, np.nan]), np.array([True, True])),
    *(np.array([5, 5], "M8[s]"), np.array(["NaT", "NaT"], "M8[s]"), [None, None], ["a", "a"]),
    [float("nan"), float("nan")],
]


@pytest.mark.parametrize("labels", TWICE)
def test_a_label_that_is_there_twice_is_refused(labels: Any) -> None:
    index = pd.Index(labels, dtype=object if type(labels) is list else None)
    part = msgspec.msgpack.decode(encode_value(index).header)[1]
    codes = [int(Tag.ARRAY), b"\0\1", "i1", [2]]
    categorical = [int(Tag.SERIES), EMPTY_INDEX, None, ["categories", False, codes, part]]
    categorical[1] = ["range", [None], 0, 2, 1]
    assert "twice" in refused(pack(categorical))
    assert "twice" in refused(pack([int(Tag.INDEX), ["multi", [None], [part], [codes]]]))


def test_labels_that_nothing_has_are_refused() -> None:
    many = ["range", [None], 0, 2**40, 1]
    codes = [int(Tag.ARRAY), b"\0\1", "i1", [2]]
    column = ["categories", False, codes, many]
    header = pack([int(Tag.SERIES), ["range", [None], 0, 2, 1], None, column])
    assert "nothing has" in refused(header)
    assert "nothing has" in refused(pack([int(Tag.INDEX), ["multi", [None], [many], [codes]]]))


def test_an_image_without_pixels_takes_no_memory_for_its_rows() -> None:
    nothing = [int(Tag.ARRAY), b"", "u1", [0]]
    assert "malformed" in refused(pack([int(Tag.IMAGE), "L", [0, 2**24], nothing, None]))
    with pytest.raises(ValueRefusedError, match="without pixels"):
        encode_value(image_module.new("L", (0, 3)))


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2, {3}), {4: frozenset([(5,)])}], "b": slice(1, 2), "c": range(3)},
        {k * PRIME for k in range(30)},
        np.zeros((2, 3)),
        pd.DataFrame(np.zeros((3, 4))),
        pd.DataFrame({"a": [1], "b": ["x"], "c": pd.Categorical(["y"])}),
        pd.Series(1, pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["x", None])),
        pd.Series(pd.date_range("2026", periods=3, tz="UTC"), name=("a", 1)),
        [pd.Timestamp("2026"), pd.NaT, pd.Timedelta(1)],
        pa.table({"a": [1, None], "b": [["x"], []], "c": [{"d": 1}, None]}),
        pa.array(["a", "b"]).dictionary_encode(),
        sparse.csr_array(np.eye(3)),
        image_module.new("P", (3, 3)),
    ],
)
def test_both_sides_count_the_same(value: object) -> None:
    encoder = Encoder(DEFAULT_LIMITS, None)
    encoded = encoder.finish(encoder.node(value, 0))
    decoder = Decoder(DEFAULT_LIMITS, [memoryview(bytearray(b)) for b in encoded.buffers], None)
    decoder.value(decoder.open(encoded.header), 0)
    assert encoder.items == decoder.items > 0
