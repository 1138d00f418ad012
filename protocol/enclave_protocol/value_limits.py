"""How large a value may be. Apart from the codec: what only counts bytes needs no numpy."""

from typing import Final, NamedTuple

__all__ = ["DEFAULT_LIMITS", "CodecLimits"]


class CodecLimits(NamedTuple):
    """How much one value may be; checked before anything is allocated for it."""

    depth: int = 24
    """Containers inside each other; also what ends a list that contains itself."""
    items: int = 1_000_000
    """About a microsecond of work each; see `value_work`."""
    header_bytes: int = 4 * 1024 * 1024
    int_bytes: int = 8192
    """65 536 bits: beyond that, printing an int alone takes a noticeable time."""
    buffers: int = 65_536
    bulk_bytes: int = 4 * 1024**3


DEFAULT_LIMITS: Final = CodecLimits()
