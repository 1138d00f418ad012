"""What the supervisor tells the parent of an enclave's use: counts, and coarse numbers of vaults.

Every field is bounded: the gateway decodes them from a stream. What may be told of a vault, and
why no more, is in docs/decisions/usage_of_vaults.md.
"""

from typing import Annotated, Final

import msgspec

__all__ = [
    "MAX_LISTED_VAULTS",
    "OTHER_KIND",
    "RELEASE_BOUNDS_S",
    "EnclaveCounts",
    "ReleaseTimes",
    "VaultInfo",
]

MAX_LISTED_VAULTS: Final = 2000
"""In one status, which has to fit into a frame of 1 MiB: a vault takes 300 bytes at most."""

RELEASE_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram of key releases, in seconds; slower ones have no bound."""

OTHER_KIND: Final = "OtherError"
"""What errors count as that have no room of their own."""

_MAX_KINDS: Final = 64
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Label = Annotated[str, msgspec.Meta(max_length=64)]
"""A package's name or version: as long as its label may have it."""
_Kind = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z]{1,64}\Z")]
_Times = Annotated[
    tuple[_Count, ...],
    msgspec.Meta(min_length=len(RELEASE_BOUNDS_S) + 1, max_length=len(RELEASE_BOUNDS_S) + 1),
]


class VaultInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One vault. Of its package there is nothing but what the public label says.

    `walled`: its self-check found a boundary around it. `memory_bytes` (rounded up) and
    `cpu_percent` (of one processor, rounded up) are steps of a short scale, looked at twice a
    minute; None before the first look.
    """

    package: _Label
    version: _Label
    walled: bool
    uptime_s: _Count
    memory_bytes: _Count | None = None
    cpu_percent: _Count | None = None


class ReleaseTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long key releases took, from the attestation document to the opened key.

    Refused ones are among them. `counts` are those of the spans between `RELEASE_BOUNDS_S`, not
    cumulative, the last one being what was slower than all of them.
    """

    counts: _Times = (0,) * (len(RELEASE_BOUNDS_S) + 1)
    sum_s: _Seconds = 0.0


class EnclaveCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happened since the enclave's start: packages loaded, and refused by the error's class.

    Loads that the user cancelled are neither.
    """

    loads: _Count = 0
    refusals: Annotated[dict[_Kind, _Count], msgspec.Meta(max_length=_MAX_KINDS)] = {}
    releases: ReleaseTimes = ReleaseTimes()
