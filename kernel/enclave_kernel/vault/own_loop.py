"""The event loop of a vault: runs what the package's `async` functions return, to its end.

One for the vault's life, so that what a package keeps between calls (locks, sessions) stays usable;
it only runs while a call does.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

__all__ = ["OwnLoop"]


class OwnLoop:
    """Made when it is first needed: most packages have no `async` code."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what `coroutine` returns.

        Raises:
            BaseException: Whatever it raises. After an interrupt it is cancelled, and has ended.
        """
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with contextlib.suppress(BaseException):
                    loop.run_until_complete(task)
            raise
