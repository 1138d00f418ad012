"""Python's own small values that msgpack does not know: slice, range, Decimal, UUID.

Source: docs/spec/vault_calls.md, "Values".
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from enclave_protocol.value_nodes import Tag, ValueRefusedError

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "ENCODERS"]

_DECIMAL: Final = re.compile(
    r"-?([0-9]+(\.[0-9]*)?(E[+-]?[0-9]{1,18})?|Infinity|s?NaN[0-9]*)", re.ASCII | re.IGNORECASE
)
_MAX_DECIMAL_CHARS: Final = 8192
"""As an int's bytes: more digits take a noticeable time to print."""
_UUID_BYTES: Final = 16


def _encode_slice(encoder: "Encoder", value: slice, depth: int) -> object:
    encoder.enter(3, depth)
    parts = (value.start, value.stop, value.step)
    return [Tag.SLICE, *(encoder.node(part, depth + 1) for part in parts)]


def _decode_slice(decoder: "Decoder", node: Any, depth: int) -> slice:
    parts = decoder.enter(node[1:], depth)
    return slice(*(decoder.value(part, depth + 1) for part in parts))


def _encode_range(encoder: "Encoder", value: range, depth: int) -> object:
    return [
        Tag.RANGE,
        *(encoder.node(int(n), depth) for n in (value.start, value.stop, value.step)),
    ]


def _decode_range(decoder: "Decoder", node: Any, depth: int) -> range:
    start, stop, step = (decoder.value(part, depth) for part in node[1:])
    if any(type(part) is not int for part in (start, stop, step)) or not step:
        raise ValueRefusedError("a range came malformed")
    return range(start, stop, step)


def _encode_decimal(_encoder: "Encoder", value: Decimal, _depth: int) -> object:
    text = str(value)
    if len(text) > _MAX_DECIMAL_CHARS:
        raise ValueRefusedError(
            f"a Decimal of {len(text)} characters, expected at most {_MAX_DECIMAL_CHARS}"
        )
    return [Tag.DECIMAL, text]


def _decode_decimal(_decoder: "Decoder", node: Any, _depth: int) -> Decimal:
    text = node[1]
    if type(text) is str and len(text) <= _MAX_DECIMAL_CHARS and _DECIMAL.fullmatch(text):
        try:
            return Decimal(text)
        except ArithmeticError:
            # An exponent that no Decimal can have.
            pass
    raise ValueRefusedError("a Decimal came malformed")


def _encode_uuid(_encoder: "Encoder", value: UUID, _depth: int) -> object:
    return [Tag.UUID, value.bytes]


def _decode_uuid(_decoder: "Decoder", node: Any, _depth: int) -> UUID:
    if type(node[1]) is not bytes or len(node[1]) != _UUID_BYTES:
        raise ValueRefusedError("a UUID came malformed")
    return UUID(bytes=node[1])


ENCODERS: Final[Mapping[type, Any]] = {
    slice: _encode_slice,
    range: _encode_range,
    Decimal: _encode_decimal,
    UUID: _encode_uuid,
}
DECODERS: Final[Mapping[tuple[int, int], Any]] = {
    (Tag.SLICE, 4): _decode_slice,
    (Tag.RANGE, 4): _decode_range,
    (Tag.DECIMAL, 2): _decode_decimal,
    (Tag.UUID, 2): _decode_uuid,
}
