"""Counts of what the enclave did since its start, for `enclave status` and `enclave metrics`."""

import threading
from bisect import bisect_left
from collections import Counter
from typing import Final

from enclave_protocol.enclave_usage import (
    OTHER_KIND,
    RELEASE_BOUNDS_S,
    EnclaveCounts,
    ReleaseTimes,
)

__all__ = ["Counters"]

_MAX_KINDS: Final = 60
"""There are some forty errors with which a load ends."""


class Counters:
    """Counts. Safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._refusals: Counter[str] = Counter()
        self._releases = [0] * (len(RELEASE_BOUNDS_S) + 1)
        self._release_s = 0.0

    def loaded(self) -> None:
        """Count a package that was loaded."""
        with self._lock:
            self._loads += 1

    def refused(self, error: Exception) -> None:
        """Count a load that was refused, by the error's class and nothing else of it."""
        kind = type(error).__name__
        with self._lock:
            if kind not in self._refusals and len(self._refusals) >= _MAX_KINDS:
                kind = OTHER_KIND
            self._refusals[kind] += 1

    def released(self, seconds: float) -> None:
        """Count a key release, however it ended, that took so long."""
        with self._lock:
            self._releases[bisect_left(RELEASE_BOUNDS_S, seconds)] += 1
            self._release_s += seconds

    def snapshot(self) -> EnclaveCounts:
        """Return the counts as they are now."""
        with self._lock:
            releases = ReleaseTimes(tuple(self._releases), round(self._release_s, 3))
            return EnclaveCounts(self._loads, dict(self._refusals), releases)
