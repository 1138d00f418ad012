"""What arrives can be sent on, as the same bytes: each family, with values made by hypothesis."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enclave_protocol.value_codec import (
    EncodedValue,
    ValueRefusedError,
    decode_arguments,
    decode_value,
    encode_value,
)
from tests.support.value_examples import value_examples

pa = pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")
image_module = pytest.importorskip("PIL.Image")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
SLOW = settings(max_examples=150, deadline=None)


def arrived(encoded: EncodedValue) -> Any:
    return decode_value(encoded.header, [memoryview(bytearray(b)) for b in encoded.buffers])


def wire(encoded: EncodedValue) -> list[bytes]:
    return [encoded.header, *map(bytes, encoded.buffers)]


@pytest.mark.parametrize("value", value_examples(), ids=lambda value: type(value).__name__)
def test_what_arrived_is_sent_on_as_the_same_bytes(value: object) -> None:
    encoded = encode_value(value)
    back = arrived(encoded)
    assert type(back) is type(value)
    assert wire(encode_value(back)) == wire(encoded)


def nested(kind: Any, items: Any, depth: int) -> Any:
    """Pairs of an Arrow type and a strategy for one of its elements."""
    pairs = st.just((kind, st.one_of(st.none(), items)))
    if not depth:
        return pairs
    return st.one_of(
        pairs,
        st.just((pa.list_(kind), st.one_of(st.none(), st.lists(items, max_size=3)))),
        st.just(
            (pa.struct({"a": kind}), st.one_of(st.none(), st.fixed_dictionaries({"a": items})))
        ),
    )


ARROW_TYPES = st.one_of(
    nested(pa.int32(), INTEGERS, 1),
    nested(pa.float64(), st.floats(allow_nan=False), 1),
    nested(pa.bool_(), st.booleans(), 1),
    nested(pa.string(), TEXT, 1),
    nested(pa.large_binary(), st.binary(max_size=5), 1),
    nested(pa.date32(), st.dates(), 0),
    nested(pa.timestamp("us", "UTC"), INTEGERS, 0),
    nested(pa.list_(pa.int8(), 2), st.lists(st.integers(-9, 9), min_size=2, max_size=2), 0),
)


@given(ARROW_TYPES, st.data())
@SLOW
def test_arrow_arrays_and_slices_arrive_as_they_were(pair: Any, data: st.DataObject) -> None:
    kind, items = pair
    whole = pa.array(data.draw(st.lists(items, max_size=8)), kind)
    start = data.draw(st.integers(0, len(whole)))
    array = whole[start : start + data.draw(st.integers(0, len(whole)))]
    encoded = encode_value(array)
    back = arrived(encoded)
    assert back.equals(array) and back.type == array.type
    assert wire(encode_value(back)) == wire(encoded)
    if pa.types.is_string(kind):
        words = array.dictionary_encode()
        assert arrived(encode_value(words)).to_pylist() == words.to_pylist()


@given(
    hnp.arrays(
        st.sampled_from(["f8", "i4", "c16", "b1"]), hnp.array_shapes(min_dims=2, max_dims=2)
    ),
    st.sampled_from(["csr", "csc", "coo", "dia", "bsr"]),
    st.sampled_from(["array", "matrix"]),
)
@SLOW
def test_sparse_matrices_arrive_as_they_were(dense: Any, kind: str, form: str) -> None:
    dense = np.where(np.isfinite(dense), dense, 0).astype(dense.dtype)
    matrix = getattr(sparse, f"{kind}_{form}")(dense)
    encoded = encode_value(matrix)
    back = arrived(encoded)
    assert type(back) is type(matrix) and back.dtype == matrix.dtype
    assert np.array_equal(back.toarray(), dense)
    assert wire(encode_value(back)) == wire(encoded)


@given(st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]), st.data())
@SLOW
def test_images_arrive_as_they_were(mode: str, data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    image = image_module.new(mode, size)
    content = image.tobytes()
    pixels = data.draw(st.binary(min_size=len(content), max_size=len(content)))
    image = image_module.frombytes(mode, size, pixels)
    encoded = encode_value(image)
    back = arrived(encoded)
    assert (back.mode, back.size, back.tobytes()) == (mode, size, image.tobytes())
    assert wire(encode_value(back)) == wire(encoded)


def test_a_keyword_that_is_there_twice_is_refused() -> None:
    # Found by the fuzz targets: as many values as different names.
    for values in ([1], [1, 2]):
        header = msgspec.msgpack.encode([[], ["a", "a"], values])
        with pytest.raises(ValueRefusedError, match="keyword"):
            decode_arguments(header, [])
