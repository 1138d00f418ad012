"""Tells the gateway which cells a kernel has not answered: at most so often, and the newest word.

A kernel process is anybody's: it can say something new a million times a second.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from enclave_protocol.messages import KernelCells, PendingCell

__all__ = ["CellsTeller"]

_PAUSE_S: Final = 0.05


class CellsTeller:
    """One kernel's.

    Args:
        kernel_id: Its.
        tell: Takes the event.
    """

    def __init__(self, kernel_id: str, tell: Callable[[KernelCells], None]) -> None:
        self._kernel_id = kernel_id
        self._tell = tell
        self._cells: tuple[PendingCell, ...] = ()
        self._told: tuple[PendingCell, ...] = ()
        self._pause: asyncio.TimerHandle | None = None

    def take(self, cells: tuple[PendingCell, ...]) -> None:
        """Note what the kernel said, and tell it at once, or when the pause is over."""
        self._cells = cells
        if self._pause is None:
            self._tell_news()

    def tell(self) -> None:
        """Tell it again, if there is anything to tell: to a gateway that may not know."""
        if self._cells:
            self._told = self._cells
            self._tell(KernelCells(self._kernel_id, self._cells))

    def close(self) -> None:
        """Tell nothing more."""
        self._cells = self._told = ()
        if self._pause is not None:
            self._pause.cancel()

    def _tell_news(self) -> None:
        self._pause = None
        if self._cells != self._told:
            self._told = self._cells
            self._tell(KernelCells(self._kernel_id, self._cells))
            self._pause = asyncio.get_running_loop().call_later(_PAUSE_S, self._tell_news)
