"""Runs code of the package's in the main thread, where an interrupt reaches it and nothing else."""

import contextlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, TypeVar

from enclave_kernel.vault.own_loop import OwnLoop

__all__ = ["PackageRunner"]

_T = TypeVar("_T")


class PackageRunner:
    """The one place where code of the package's is entered.

    Attributes:
        interrupted: An interrupt came while none of it ran.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._running = False
        self._pid = os.getpid()
        self._loop = OwnLoop()

    def install(self) -> None:
        """Take SIGINT: from now on it means the call that runs."""
        signal.signal(signal.SIGINT, self._on_interrupt)

    def run(
        self,
        code: Callable[..., _T],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> _T:
        """Return what `code` returns.

        Raises:
            BaseException: Whatever the package let out, SystemExit and KeyboardInterrupt included.
        """
        try:
            self._running = True
            value = code(*args, **kwargs)
            self._running = False
        except BaseException:
            # First of all: Python looks for signals at calls and jumps, and there was none yet.
            self._running = False
            self._leave_fork()
            raise
        self._leave_fork()
        return value

    def call(self, code: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what `code` returns or, if that is a coroutine, what comes of it; as `run`."""
        return self.run(self._call, (code, args, kwargs))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep interrupts from code of ours in the midst of the package's; they come afterwards.

        Does nothing outside the main thread, where no interrupt comes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._running = False
        try:
            yield
        finally:
            self._running = True
            if self.interrupted:
                self.interrupted = False
                raise KeyboardInterrupt

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what comes of `coroutine`; only for code that runs in `run`."""
        return self._loop.complete(coroutine)

    def _call(
        self, code: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        value = code(*args, **kwargs)
        return self._loop.complete(value) if inspect.iscoroutine(value) else value

    def _leave_fork(self) -> None:
        if os.getpid() != self._pid:
            # A fork in the package's code came back here: there is one vault, and this is not it.
            os._exit(0)

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._running:
            raise KeyboardInterrupt
        self.interrupted = True
