"""Round trips of plain values, refusals that name the place, and forged bytes."""

import math
import struct
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enclave_protocol.value_codec import (
    EncodedValue,
    Handle,
    ValueRefusedError,
    decode_arguments,
    decode_value,
    encode_arguments,
    encode_value,
)
from enclave_protocol.value_limits import CodecLimits
from enclave_protocol.value_nodes import DTYPES, Tag

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ZONES = st.one_of(
    st.none(),
    st.timezones(),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.just(timezone(timedelta(hours=1), "own name")),
)
TIMES = st.one_of(
    st.dates(),
    st.times(timezones=ZONES),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.timedeltas(),
)
KEYS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT, st.binary()),
    *(TIMES, st.decimals(allow_nan=False), st.uuids()),
)
STEPS = st.integers().filter(bool)
ARRAYS = hnp.arrays(
    dtype=st.one_of(
        st.sampled_from([">i4", ">M8[us]", ">U3", *DTYPES]),
        st.sampled_from(["M8[ns]", "M8[25s]", "M8", "m8[D]", "S1", "S7", "U1", "U5"]),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)
LEAVES = st.one_of(
    *(KEYS, st.floats(), st.complex_numbers(), st.builds(bytearray, st.binary()), ARRAYS),
    *(st.builds(range, st.integers(), st.integers(), STEPS), st.builds(slice, KEYS, KEYS, KEYS)),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.sets(KEYS, max_size=5),
        st.frozensets(KEYS, max_size=5),
    ),
    max_leaves=20,
)


def received(encoded: EncodedValue) -> list[memoryview]:
    """The buffers as the other process has them: its own writable memory."""
    return [memoryview(bytearray(buffer)) for buffer in encoded.buffers]


def through(value: object) -> Any:
    encoded = encode_value(value)
    return decode_value(encoded.header, received(encoded))


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        if left.shape != right.shape or left.dtype.newbyteorder("=") != right.dtype:
            return False
        return bool(left.astype(right.dtype).tobytes() == right.tobytes())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, slice):
        return same([left.start, left.stop, left.step], [right.start, right.stop, right.step])
    if isinstance(left, Decimal):
        return str(left) == str(right)
    if isinstance(left, timezone):
        return bool(left == right and left.tzname(None) == right.tzname(None))
    if isinstance(left, date) and not isinstance(left, datetime):
        return bool(left == right)
    if isinstance(left, datetime | time):
        plain = left.replace(tzinfo=None) == right.replace(tzinfo=None)
        return bool(plain and left.fold == right.fold and same(left.tzinfo, right.tzinfo))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    return bool(left == right)


@given(VALUES)
@settings(max_examples=300)
def test_every_plain_value_arrives_as_it_was(value: Any) -> None:
    assert same(value, through(value))


@given(VALUES, st.data())
@settings(max_examples=300)
def test_mutated_bytes_give_a_value_or_a_refusal_and_nothing_else(
    value: Any, data: st.DataObject
) -> None:
    encoded = encode_value(value)
    mutated = bytearray(encoded.header)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] = data.draw(st.integers(0, 255))
    try:
        decode_value(bytes(mutated), received(encoded))
    except ValueRefusedError:
        return


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_value_or_a_refusal_and_nothing_else(header: bytes) -> None:
    try:
        decode_value(header, [])
    except ValueRefusedError:
        return


@pytest.mark.parametrize("size", [4096, 4097, 200_000])
def test_large_contents_travel_beside_the_header(size: int) -> None:
    value = ["ä" * size, b"x" * size, bytearray(size), np.arange(size, dtype=np.uint8)]
    encoded = encode_value(value)
    assert len(encoded.header) < 4 * 4200
    assert same(value, decode_value(encoded.header, received(encoded)))


def test_received_memory_becomes_the_array_and_read_only_memory_is_copied() -> None:
    encoded = encode_value(np.zeros(10_000))
    own = bytearray(encoded.buffers[0])
    array = decode_value(encoded.header, [memoryview(own)])
    array[0] = 1.5
    assert own[:8] == struct.pack("<d", 1.5)
    shared = bytes(encoded.buffers[0])
    copied = decode_value(encoded.header, [memoryview(shared)])
    copied[0] = 1.5
    assert shared[:8] == bytes(8)


def test_a_view_brings_its_own_elements_only() -> None:
    secret = np.arange(1_000_000, dtype=np.int64)
    encoded = encode_value(secret[::100_000])
    assert len(encoded.header) + sum(map(len, encoded.buffers)) < 200
    big = encode_value(secret[:5000].reshape(50, 100).T)
    assert [len(buffer) for buffer in big.buffers] == [40_000]


@pytest.mark.parametrize(
    "value",
    [
        *(np.float64(0.1), np.int8(-3), np.bool_(True), np.complex64(1j)),
        *(np.datetime64("2026-01-01T00:00:00.000000005"), np.timedelta64(5, ("s", 25))),
        *(np.str_("a\0"), np.bytes_(b"b\0\0"), np.str_("")),
    ],
)
def test_numpy_numbers_stay_numpy_numbers(value: Any) -> None:
    assert same(value, through(value)) and type(through(value)) is type(value)


class Sub(dict[str, int]):
    pass


class OwnZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta:
        raise RuntimeError("no code of a zone may run")

    def tzname(self, _moment: datetime | None) -> str:
        raise RuntimeError("no code of a zone may run")

    dst = utcoffset


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("repr must not run")

    __array__ = __reduce__ = __iter__ = __len__ = __repr__


class StrSub(str):
    __slots__ = ()


class LoudClass(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise RuntimeError("no code of the value's class must run")
        return super().__getattribute__(name)


NoModule: Any = eval("type('NoModule', (), {})", {})  # noqa: S307 (without a __name__)
OddModule: Any = LoudClass("OddModule", (), {"__module__": Loud()})


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: 0, "a function cannot cross"),
        ([1, {"a": (print,)}], "item 1, key 'a', item 0: a value of type builtin_function"),
        (Sub(), "Sub cannot cross"),
        (StrSub("x"), "StrSub cannot cross"),
        ({StrSub("x"): 1}, "a key of a dict: a value of type"),
        (Loud(), "Loud cannot cross"),
        (NoModule(), "a value of type NoModule cannot cross"),
        (OddModule(), "a value of type OddModule cannot cross"),
        (np.array([None], dtype=object), "dtype |O"),
        (np.zeros(2, dtype=[("a", "i4")]), "cannot cross"),
        (np.zeros(2, dtype="V3"), "cannot cross"),
        (np.array(["\ud800"]), "no text"),
        (np.array([1, 2]).astype("T"), "cannot cross"),
        (datetime(2026, 1, 1, tzinfo=OwnZone()), "OwnZone cannot cross"),
        (Decimal("9" * 9000), "a Decimal of 9000 characters"),
        (np.zeros(2, dtype=np.longdouble), "cannot cross"),
        (np.ma.masked_array([1], [True]), "MaskedArray cannot cross"),
        (np.zeros(1).view(np.recarray), "recarray cannot cross"),
        ("\ud800", "lone surrogate"),
        (RECURSIVE, "inside itself"),
        ([1 << 65_537], "item 0: an int of"),
        (int, "a class cannot cross"),
        (Handle(1, "X"), "Handle cannot cross"),
        (memoryview(b""), "memoryview cannot cross"),
        ({frozenset([("a", b"c")]): {1, ()}, "x": [{2: ...}]}, "ellipsis"),
    ],
)
def test_everything_else_is_refused_and_named(value: object, message: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        encode_value(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_an_argument_is_named() -> None:
    with pytest.raises(ValueRefusedError, match=r"^argument 'image', item 3: a function cannot"):
        encode_arguments(([0, 1, 2, test_an_argument_is_named],), {}, names=["image"])
    with pytest.raises(ValueRefusedError, match=r"^argument 2: a module"):
        encode_arguments((1, math), {}, names=["image"])
    with pytest.raises(ValueRefusedError, match=r"^argument 'scale', key 'a': "):
        encode_arguments((), {"scale": {"a": object()}})


@given(st.lists(VALUES, max_size=3), st.dictionaries(TEXT, VALUES, max_size=3))
def test_arguments_arrive_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    encoded = encode_arguments(args, kwargs)
    left, right = decode_arguments(encoded.header, received(encoded))
    assert same(args, left) and same(kwargs, right)


def test_limits_hold_in_both_directions() -> None:
    small = CodecLimits(
        depth=3, items=10, header_bytes=200, int_bytes=4, buffers=1, bulk_bytes=5000
    )
    both: list[object] = [[[[[]]]], list(range(11)), ["x" * 150, "x" * 150], 1 << 64]
    for value in (
        *both,
        [bytes(4097), bytes(4097)],
        np.zeros(5001, np.uint8),
    ):
        with pytest.raises(ValueRefusedError):
            encode_value(value, limits=small)
    for value in both:
        with pytest.raises(ValueRefusedError):
            decode_value(encode_value(value).header, [], limits=small)


def test_handles_pass_only_where_somebody_resolves_them() -> None:
    thing = object()
    encoded = encode_value(thing, handle_of=lambda _: Handle(7, "Scorer"))
    assert decode_value(encoded.header, [], resolve=lambda handle: handle) == Handle(7, "Scorer")
    with pytest.raises(ValueRefusedError, match="only plain data"):
        decode_value(encoded.header, [])
    forged = msgspec.msgpack.encode([[[int(Tag.HANDLE), 7, "Scorer"]], [], []])
    with pytest.raises(ValueRefusedError, match="only plain data"):
        decode_arguments(forged, [])


def node(*parts: object) -> bytes:
    return msgspec.msgpack.encode(list(parts))


ARRAY = int(Tag.ARRAY)
BAD_DTYPES = (
    *("U0", "S0", "U9999999", "M8[0s]", "M8[s", "M8[s]//7", "m8[99999999s]", "M8[generic]", "T"),
    *("|O8", "<f8", "a3", "f8,f8", "(2,)f8", "V1", "f16", "g", "U1\n"),
)
BAD_ZONES = (
    *("../../etc/passwd", "/etc/passwd", "Europe/../UTC", "Europe", "Nowhere/City", "", "UTC\n"),
    *([86_400_000_000, None], [2**63, None], [0, 1], [0], [True, None], 0),
)


@pytest.mark.parametrize(
    "header",
    [
        node(ARRAY, bytes(8), "O", [1]),
        node(ARRAY, bytes(8), "V8", [1]),
        node(ARRAY, bytes(8), "f8,O", [1]),
        node(ARRAY, bytes(8), ["f8"], [1]),
        node(ARRAY, bytes(8), "f8", [-1]),
        node(ARRAY, bytes(8), "f8", [2]),
        node(ARRAY, bytes(8), "f8", [1.0]),
        node(ARRAY, bytes(8), "f8", [True]),
        node(ARRAY, bytes(8), "f8", [1] * 33),
        node(ARRAY, b"", "f8", [0, 2**39, 2**39]),
        node(ARRAY, b"", "f8", [2**32, 2**32]),
        node(ARRAY, b"\x02", "b1", [1]),
        node(ARRAY, 0, "f8", [1]),
        node(ARRAY, -1, "f8", [1]),
        node(ARRAY, 2**63, "f8", [1]),
        node(ARRAY, b"\xff" * 4, "U1", [1]),
        node(ARRAY, b"\0\xd8\0\0", "U1", [1]),
        *(node(ARRAY, b"", name, [0]) for name in BAD_DTYPES),
        node(int(Tag.NUMPY_SCALAR), bytes(4), "U1"),
        node(int(Tag.NUMPY_TEXT), 1),
        node(int(Tag.SLICE), 1, 2),
        node(int(Tag.RANGE), 1, 2, 0),
        node(int(Tag.RANGE), 1, 2, 1.0),
        *(node(int(Tag.DECIMAL), text) for text in ("1_0", " 1", "٣", "0x1", "", "1E" + "9" * 19)),
        node(int(Tag.DECIMAL), "9" * 8193),
        node(int(Tag.UUID), bytes(15)),
        node(int(Tag.DATE), 0),
        node(int(Tag.DATE), 2**40),
        node(int(Tag.TIME), [24, 0, 0, 0, 0], None),
        node(int(Tag.TIME), [0, 0, 0, 0, 2], None),
        node(int(Tag.TIME), [0, 0, 0, 0, 2**63], None),
        node(int(Tag.DATETIME), [0, 0, 0, 0, 0, 0], None),
        node(int(Tag.DATETIME), [1, 0, 0, 0, 0], None),
        node(int(Tag.TIMEDELTA), [10**10, 0, 0]),
        *(node(int(Tag.TIME), [0, 0, 0, 0, 0], zone) for zone in BAD_ZONES),
        node(int(Tag.SET), [[int(Tag.DECIMAL), "sNaN"]]),
        node(int(Tag.NUMPY_SCALAR), bytes(7), "f8"),
        node(int(Tag.NUMPY_SCALAR), b"\x02", "b1"),
        node(int(Tag.BIG_INT), b""),
        node(int(Tag.BIG_INT), "9" * 5000),
        node(int(Tag.COMPLEX), 1, 2.0),
        node(int(Tag.LONG_STR), 0),
        node(int(Tag.DICT), ["a", "a"], [1, 2]),
        node(int(Tag.DICT), ["a"], []),
        node(int(Tag.DICT), [[int(Tag.LIST), []]], [1]),
        node(int(Tag.SET), [1, 1]),
        node(int(Tag.SET), [[int(Tag.DICT), [], []]]),
        node(int(Tag.LIST), "ab"),
        node(99, []),
        node(True, []),
        node(),
        node("\0a", 1),
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"")),
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xdd\x7f\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
        b"\x91" * 60_000,
        b"\xa3\xed\xa0\x80",
        b"\xc1",
        b"",
        b"\x01\x02",
    ],
)
def test_forged_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ValueRefusedError):
        decode_value(header, [])


def test_buffers_are_used_once_and_all() -> None:
    def two() -> list[memoryview]:
        return [memoryview(bytearray(8)), memoryview(bytearray(8))]

    twice = node(int(Tag.LIST), [[ARRAY, 0, "f8", [1]], [ARRAY, 0, "f8", [1]]])
    with pytest.raises(ValueRefusedError, match="two values refer to one buffer"):
        decode_value(twice, two())
    with pytest.raises(ValueRefusedError, match="does not use"):
        decode_value(node(ARRAY, 1, "f8", [1]), two())
    with pytest.raises(ValueRefusedError, match="no text"):
        decode_value(node(int(Tag.LONG_STR), 0), [memoryview(b"\xff")])
