import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.strict_cbor import StrictCborError, decode_item, decode_map

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text()
)
_ITEMS = (
    _SCALARS | st.lists(_SCALARS, max_size=5) | st.dictionaries(st.text(), _SCALARS, max_size=5)
)


@given(_ITEMS)
def test_reads_what_cbor2_writes(value: object) -> None:
    assert decode_item(cbor2.dumps(value)) == value


@given(st.dictionaries(st.text(), _SCALARS, max_size=5))
def test_a_map_may_have_an_indefinite_length_only_itself(value: dict[str, object]) -> None:
    pairs = b"".join(cbor2.dumps(item) for pair in value.items() for item in pair)
    assert decode_map(b"\xbf" + pairs + b"\xff") == value
    assert decode_map(cbor2.dumps(value)) == value


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused_with_the_one_error(data: bytes) -> None:
    for decode in (decode_item, decode_map):
        try:
            decode(data)
        except StrictCborError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="nothing"),
        pytest.param("0000", id="trailing byte"),
        pytest.param("a2616101616102", id="duplicate key"),
        pytest.param("9f01ff", id="indefinite array"),
        pytest.param("5f4101ff", id="indefinite bytes"),
        pytest.param("bf616101ff", id="indefinite map as an item"),
        pytest.param("c24101", id="tag 2, bignum"),
        pytest.param("d8236161", id="tag 35, regular expression"),
        pytest.param("d81c80", id="tag 28, shared reference"),
        pytest.param("d9ffff01", id="unknown tag"),
        pytest.param("818181818101", id="too deep"),
        pytest.param("9bffffffffffffffff", id="array of 2^64 items"),
        pytest.param("5b0fffffffffffffff01", id="byte string of 2^60 bytes"),
        pytest.param("61ff", id="text that is not UTF-8"),
        pytest.param("1c", id="reserved length"),
    ],
)
def test_refused_item(data: str) -> None:
    with pytest.raises(StrictCborError):
        decode_item(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("80", id="no map"),
        pytest.param("a10101", id="key is a number"),
        pytest.param("bf0101ff", id="indefinite, key is a number"),
        pytest.param("bf616101616102ff", id="indefinite, duplicate key"),
        pytest.param("bf6161bf616202ffff", id="indefinite within indefinite"),
        pytest.param("bf616101", id="indefinite, not closed"),
        pytest.param("bf6161ff", id="indefinite, key without value"),
        pytest.param("bf616101ff00", id="indefinite, trailing byte"),
        pytest.param("bf616101ffff", id="indefinite, closed twice"),
        pytest.param("bf", id="only opened"),
    ],
)
def test_refused_map(data: str) -> None:
    with pytest.raises(StrictCborError):
        decode_map(bytes.fromhex(data))
