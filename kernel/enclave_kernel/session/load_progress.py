"""The bar that a cell shows while a package travels into its vault."""

import secrets
import time
from typing import Final

from IPython.display import display

__all__ = ["LoadProgress"]

_SHOW_AFTER_S: Final = 1.0
_REDRAW_S: Final = 0.1
_BAR_CHARS: Final = 40


class LoadProgress:
    """A progress bar that appears only when loading takes longer than a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._drawn = 0.0
        self._id: str | None = None

    def __call__(self, stage: str, share: float) -> None:
        """Show what is being done and the share of it that is done, 0 to 1.

        Args:
            stage: What is being done; "" takes the bar away, for one that shows more.
            share: Of it.
        """
        if not stage:
            self.finish()
            return
        now = time.monotonic()
        if now - self._started < _SHOW_AFTER_S or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        done = "=" * int(share * _BAR_CHARS)
        self._draw(f"{stage} [{done.ljust(_BAR_CHARS)}] {share:4.0%}")

    def finish(self) -> None:
        """Take the bar away, if one was drawn."""
        if self._id is not None:
            self._draw("")

    def _draw(self, text: str) -> None:
        update = self._id is not None
        self._id = self._id or secrets.token_hex(8)
        data = {"text/plain": text}
        options = {"raw": True, "display_id": self._id, "update": update}
        display(data, **options)  # type: ignore[no-untyped-call]
