"""Bytes a little wrong: what the fuzz targets get when no fuzzer is there, and with it."""

import random
from typing import Any, Final

import msgspec

__all__ = ["mutate_bytes", "mutate_header"]

_NUMBERS: Final = (0, 1, -1, 2, 127, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
_SCALARS: Final[tuple[Any, ...]] = (
    *_NUMBERS,
    None,
    True,
    0.5,
    float("nan"),
    "",
    "a",
    "f8",
    b"",
    b"\0" * 8,
    [],
    [1],
)


def mutate_bytes(source: random.Random, data: bytes) -> bytes:
    """Return `data` with one to four places changed, taken out or doubled."""
    result = bytearray(data)
    for _ in range(source.randint(1, 4)):
        start = source.randint(0, len(result))
        end = min(len(result), start + source.randint(0, 8))
        kind = source.randrange(20)
        if kind < 5:
            result[start:end] = bytes(source.randrange(256) for _ in range(end - start))
        elif kind < 10:
            del result[start:end]
        elif kind < 14:
            result[start:start] = result[start:end]
        elif kind < 19:
            result[start:end] = source.choice([b"\xff", b"\0", b"\x7f"]) * (end - start)
        else:
            del result[start + source.randrange(64) :]
    return bytes(result)


def mutate_header(source: random.Random, header: bytes) -> bytes:
    """Return msgpack with one to three of its items changed, so that it is still msgpack."""
    try:
        root = [msgspec.msgpack.decode(header)]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return mutate_bytes(source, header)
    for _ in range(source.randint(1, 3)):
        place = _some_list(source, root)
        index = source.randrange(len(place)) if place else 0
        kind = source.randrange(5)
        if not place or kind == 0:
            place.insert(index, source.choice(_SCALARS))
        elif kind == 1 and place is not root:
            del place[index]
        elif kind == 2:
            place[index] = _some_list(source, root)[:]
        elif type(place[index]) is int:
            place[index] += source.choice(_NUMBERS)
        elif type(place[index]) is bytes:
            place[index] = mutate_bytes(source, place[index])
        else:
            place[index] = source.choice(_SCALARS)
    try:
        return msgspec.msgpack.encode(root[0])
    except (ValueError, OverflowError, RecursionError):
        return header


def _some_list(source: random.Random, root: list[Any]) -> list[Any]:
    place = root
    while True:
        inner = [item for item in place if type(item) is list]
        if not inner or (place is not root and source.random() < 0.3):
            return place
        place = source.choice(inner)
