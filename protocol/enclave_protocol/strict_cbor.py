"""One CBOR item, read strictly: what cbor2 accepts by default is too much for signed data.

Refused: trailing bytes, duplicate keys, indefinite lengths, every tag, deep nesting. Sizes are
the caller's to check before it calls; nothing here allocates more than the input holds.
Source: FACTS, "Attestation document" (cbor2's defaults); RFC 8949 section 5.
"""

import io
from collections.abc import Callable
from typing import Any, NoReturn

import cbor2

__all__ = ["StrictCborError", "decode_item", "decode_map"]

_MAX_DEPTH = 4  # an attestation payload needs 2
_INDEFINITE_MAP = 0xBF
_BREAK = 0xFF
# Every tag cbor2 decodes by itself; all the others reach the tag hook.
_KNOWN_TAGS = (
    *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100),
    *(256, 258, 260, 261, 1004, 43000, 55799),
)


class StrictCborError(ValueError):
    """The bytes are not exactly one CBOR item of the accepted subset."""


def _refuse_tag(*_arguments: object) -> NoReturn:
    raise ValueError("tags are not accepted")


_TAG_DECODERS: dict[int, Callable[..., NoReturn]] = dict.fromkeys(_KNOWN_TAGS, _refuse_tag)


def _decoder(stream: io.BytesIO) -> cbor2.CBORDecoder:
    return cbor2.CBORDecoder(
        stream,
        tag_hook=_refuse_tag,
        semantic_decoders=_TAG_DECODERS,
        max_depth=_MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
    )


def decode_item(data: bytes) -> Any:
    """Return the one item that `data` is.

    Args:
        data: Untrusted bytes; the caller has limited their number.

    Raises:
        StrictCborError: Not CBOR, or outside the accepted subset, or bytes are left over.
    """
    stream = io.BytesIO(data)
    try:
        value = _decoder(stream).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError) as error:
        raise StrictCborError(f"malformed CBOR: {error}") from error
    if stream.tell() != len(data):
        raise StrictCborError(f"{len(data) - stream.tell()} bytes follow the CBOR item")
    return value


def decode_map(data: bytes) -> dict[str, Any]:
    """Return a map with text keys; its own length, and only that, may be indefinite.

    Nitro writes the payload with a definite length until 2024 and with an indefinite one in
    2025 (tests/vectors/attestation/sui-fastcrypto-1.cbor), so both are genuine.

    Raises:
        StrictCborError: As `decode_item`; also a key that is not text, or no map at all.
    """
    if data[:1] == bytes((_INDEFINITE_MAP,)):
        value = _decode_indefinite_map(data)
    else:
        value = decode_item(data)
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise StrictCborError("expected a map with text keys")
    return value


def _decode_indefinite_map(data: bytes) -> dict[Any, Any]:
    """Read the pairs between the opening byte and the break one by one."""
    end = len(data) - 1
    if end < 1 or data[end] != _BREAK:
        raise StrictCborError("the map is not closed by the last byte")
    stream = io.BytesIO(data[1:end])
    decoder = _decoder(stream)
    result: dict[Any, Any] = {}
    try:
        while stream.tell() < end - 1:
            key = decoder.decode()
            if type(key) is not str or key in result:
                raise StrictCborError(f"map key {key!r:.60} is repeated or not text")
            result[key] = decoder.decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError) as error:
        raise StrictCborError(f"malformed CBOR map: {error}") from error
    return result
