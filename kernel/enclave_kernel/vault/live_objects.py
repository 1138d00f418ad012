"""What of the package's lives on between calls because the notebook holds a handle of it."""

import contextlib
import functools
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final

from enclave_kernel.vault.exports import ExportedType
from enclave_kernel.vault.open_iterator import OpenIterator
from enclave_kernel.vault.refusals import RefusedError

__all__ = ["LiveObjects"]

_MAX_HANDLES: Final = 65_536
_HANDLE_BITS: Final = 62

_Run = Callable[[Callable[[], Any]], Any]


class LiveObjects:
    """Objects and iterators of one notebook by random number, each with what may be done to it."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[ExportedType, Any]] = {}
        self._iterators: dict[int, OpenIterator] = {}

    def add(self, exported: ExportedType, instance: object) -> int:
        """Keep an object of an exported class; return its number.

        Raises:
            RefusedError: The notebook holds too many.
        """
        number = self._new_number()
        self._objects[number] = exported, instance
        return number

    def add_iterator(self, iterator: OpenIterator) -> int:
        """Keep an iterator; return its number.

        Raises:
            RefusedError: The notebook holds too many.
        """
        number = self._new_number()
        self._iterators[number] = iterator
        return number

    def object(self, number: int) -> tuple[ExportedType, Any]:
        """Return an object and its class.

        Raises:
            RefusedError: There is none of this number.
        """
        entry = self._objects.get(number)
        if entry is None:
            raise RefusedError("ReferenceError", "the vault has no such object (any more)")
        return entry

    def iterator(self, number: int) -> OpenIterator:
        """Return an iterator.

        Raises:
            RefusedError: There is none of this number.
        """
        iterator = self._iterators.get(number)
        if iterator is None:
            raise RefusedError("ReferenceError", "the vault has no such iterator (any more)")
        return iterator

    def drop_iterator(self, number: int) -> None:
        """Forget an iterator that has ended."""
        del self._iterators[number]

    def release(self, numbers: Iterable[int], run: _Run) -> None:
        """Forget what the notebook forgot; unknown numbers are fine.

        Args:
            numbers: Its handles.
            run: Runs code of the package's: finalizers, and what a generator does at its end.
        """
        for number in numbers:
            iterator = self._iterators.pop(number, None)
            # Nobody waits for an answer, and nobody is told of an error.
            with contextlib.suppress(BaseException):
                if iterator is not None:
                    run(iterator.finish)
                else:
                    run(functools.partial(self._drop, number))

    def _drop(self, number: int) -> None:
        # In here, so that its finalizer runs where an interrupt reaches it.
        self._objects.pop(number, None)

    def _new_number(self) -> int:
        if len(self._objects) + len(self._iterators) >= _MAX_HANDLES:
            raise RefusedError(
                "BudgetExceededError",
                f"the notebook holds {_MAX_HANDLES} objects of this package: delete some",
            )
        number = secrets.randbits(_HANDLE_BITS)
        while number in self._objects or number in self._iterators:
            number = secrets.randbits(_HANDLE_BITS)
        return number
