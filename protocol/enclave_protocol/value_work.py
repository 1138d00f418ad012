"""What a value costs to build, bounded before it is built: 4 MiB can ask for minutes of work.

The unit is the item of a container, about a microsecond. What takes longer counts as more of them,
on both sides alike, so that a sender learns of it with the name of the part.

Source: docs/spec/vault_calls.md, "Work"; THREATS D-03, D-06.
"""

import enum
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from enclave_protocol.value_limits import CodecLimits
from enclave_protocol.value_nodes import ValueRefusedError, count

__all__ = ["Cost", "check_hashes", "check_header"]


class Cost(enum.IntEnum):
    """How many items something counts as, beside those that are in it."""

    ARRAY = 4
    TENSOR = 8
    ARROW = 8
    IMAGE = 8
    SCALAR = 8
    """One of pandas'; with a zone."""
    COLUMN = 16
    INDEX = 16
    FRAME = 32
    SPARSE = 32


_CONTAINER_STARTS: Final = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))
# Lengths of msgpack's items by their first byte, without what is in a container; 0: see _SIZED.
_LENGTHS: Final = bytes(
    (
        *(1 for _ in range(0xA0)),
        *(range(1, 33)),  # short text
        *(1, 1, 1, 1),  # nil, unused, false, true
        *(0, 0, 0, 0, 0, 0),  # bytes, extensions
        *(5, 9, 2, 3, 5, 9, 2, 3, 5, 9),  # floats, integers
        *(3, 4, 6, 10, 18),  # extensions of fixed length
        *(0, 0, 0),  # text
        *(3, 5, 3, 5),  # arrays, maps
        *(1 for _ in range(0xE0, 0x100)),
    )
)
# First byte: bytes of the length that follows it, and bytes that the length does not count.
_SIZED: Final = {
    **{0xC4: (1, 2), 0xC5: (2, 3), 0xC6: (4, 5)},
    **{0xC7: (1, 3), 0xC8: (2, 4), 0xC9: (4, 6)},
    **{0xD9: (1, 2), 0xDA: (2, 3), 0xDB: (4, 5)},
}


def check_header(header: bytes, limits: CodecLimits) -> None:
    """Check that msgpack has no more containers than a value may have items.

    An empty list is one byte here and 64 in memory. Whether it is msgpack at all is not checked.

    Raises:
        ValueRefusedError: It has more.
    """
    # Almost always true, and quick: no more containers than bytes, or than bytes that begin one.
    if len(header) <= limits.items:
        return
    if len(header) - len(header.translate(None, _CONTAINER_STARTS)) <= limits.items:
        return
    containers = position = 0
    while position < len(header):
        first = header[position]
        if first in _CONTAINER_STARTS:
            containers += 1
            if containers > limits.items:
                count(0, containers, limits)
        length = _LENGTHS[first]
        if not length:
            digits, around = _SIZED[first]
            length = around + int.from_bytes(header[position + 1 : position + 1 + digits], "big")
        position += length


def check_hashes(keys: Sequence[Any], before: int, limits: CodecLimits) -> int:
    """Return `before` and how many items' worth of comparing a set or dict of `keys` takes.

    Text and bytes hash with a secret of the process; numbers, UUIDs and tuples do not, and whoever
    makes them can give all of them one hash. Each is then compared with each.

    Args:
        keys: Of the types that keys may have, all hashable.
        before: Items counted before.
        limits: Limits in items.

    Raises:
        ValueRefusedError: That is more than a value may have items.
    """
    hashes = list(map(hash, keys))
    if len(set(hashes)) == len(hashes):
        return before
    number: dict[int, int] = defaultdict(int)
    largest: dict[int, int] = defaultdict(int)
    for key, key_hash in zip(keys, hashes, strict=True):
        number[key_hash] += 1
        largest[key_hash] = max(largest[key_hash], _size(key))
    work = sum(same * (same - 1) // 2 * largest[key] for key, same in number.items())
    if before + work > limits.items:
        raise ValueRefusedError(
            "too many keys or elements of a set that have one and the same hash"
        )
    return before + work


def _size(key: Any) -> int:
    """Return how many values are compared at most when this one is."""
    return 1 + sum(map(_size, key)) if type(key) in (tuple, frozenset) else 1
