"""Users that nothing else has, for kernels and vaults."""

import itertools
import os
from typing import Final

__all__ = ["UserIds"]

_FIRST: Final = 2_000_000
"""Above what distributions hand out to people, services and containers."""
_PER_SUPERVISOR: Final = 512


class UserIds:
    """Hands out each number once (THREATS X-11).

    Counted up, so that no two processes of a supervisor ever share a user. An enclave has one
    supervisor; on a developer's machine several start at different numbers.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(_FIRST + os.getpid() * _PER_SUPERVISOR)

    def next(self) -> int:
        """Return a number that serves as user and as group."""
        return next(self._numbers)
