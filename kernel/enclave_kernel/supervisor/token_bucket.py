"""A limit on how often something happens: so many at once, then so many a second."""

import time
from collections.abc import Callable

__all__ = ["TokenBucket"]


class TokenBucket:
    """Says how long to wait before the next one.

    Args:
        burst: How many may come at once, 1 or more.
        every_s: Seconds after which one more may come.
        clock: Seconds that only grow.
    """

    def __init__(
        self, burst: int, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        self._level = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Take one and return the seconds to wait before it is due; 0.0 within the burst."""
        now = self._clock()
        self._level = min(float(self._burst), self._level + (now - self._at) / self._every_s)
        self._at = now
        self._level -= 1.0
        return max(0.0, -self._level * self._every_s)
