"""A blocking call, awaited: it runs in a thread of its own, and the event loop goes on."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from enclave_kernel.session.package_failures import EncryptedPackageError
from enclave_kernel.session.user_functions import UserFunctionError

__all__ = ["in_thread"]

_T = TypeVar("_T")
_WAKE_S: Final = 0.2


async def in_thread(work: Callable[[], _T], cancel: Callable[[], None]) -> _T:
    """Return what `work` returns.

    It has this task's context, and so shows its output in this task's cell.

    Args:
        work: The call. Its thread does not keep a process from ending.
        cancel: Makes `work` end soon; called when this is cancelled, which does not wait for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result: object = None
        failure: BaseException | None = None
        try:
            result = context.run(work)
        except BaseException as error:
            failure = _raisable(error)
        # A loop that was closed meanwhile has nobody who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name="encrypted package call", daemon=True).start()
    try:
        while not future.done():
            # ipykernel's handler of SIGINT cancels the cell's task without waking the loop, which
            # would hear of it only when something else happens: see to it that something does.
            await asyncio.wait((future,), timeout=_WAKE_S)
        outcome: _T = future.result()
        return outcome
    except asyncio.CancelledError:
        cancel()
        raise


def _raisable(error: BaseException) -> BaseException:
    """Return what a task may raise: some exceptions would end the event loop instead."""
    if isinstance(error, UserFunctionError) and not isinstance(error.original, Exception):
        error = error.original
    if isinstance(error, KeyboardInterrupt):
        return EncryptedPackageError("the call was interrupted")
    if isinstance(error, StopIteration):
        return RuntimeError("the call raised StopIteration")
    return error
