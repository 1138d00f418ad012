"""An iterator of the package's, from which the notebook takes items in batches.

Source: docs/spec/vault_calls.md, "Iterators".
"""

import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from enclave_kernel.vault.refusals import RefusedError, result_too_large
from enclave_protocol.value_codec import DEFAULT_LIMITS, EncodedValue
from enclave_protocol.vault_messages import MAX_BATCH_ITEMS

__all__ = ["Batch", "OpenIterator", "source_of"]

_BATCH_BYTES: Final = 1024 * 1024
_BATCH_S: Final = 0.02
"""A batch goes when it took so long, and the next ones are of one item again."""
_GROWTH: Final = 4
"""Each full batch makes the next one so much larger: an item is made to wait for the one after it
only where those before came fast. Nothing can take an item out of a batch whose next is slow."""


_Source = tuple[Callable[[], Any], Callable[[], object]]


def source_of(
    value: object, complete: Callable[[Coroutine[Any, Any, Any]], Any]
) -> Callable[[], _Source] | None:
    """Return what makes the `step` and the `finish` of an `OpenIterator`; None for no iterable.

    Args:
        value: What a call returned; no code of its is run in here.
        complete: Runs a coroutine to its end.
    """
    if hasattr(type(value), "__aiter__"):
        return lambda: _asynchronous(value, complete)
    if hasattr(type(value), "__iter__"):
        return lambda: _synchronous(value)
    return None


def _synchronous(value: Any) -> _Source:
    iterator = iter(value)

    def finish() -> None:
        close = getattr(iterator, "close", None)
        if callable(close):
            close()

    return lambda: next(iterator), finish


def _asynchronous(value: Any, complete: Callable[[Coroutine[Any, Any, Any]], Any]) -> _Source:
    iterator = aiter(value)

    async def step() -> Any:
        return await anext(iterator)

    async def finish() -> None:
        close = getattr(iterator, "aclose", None)
        if callable(close):
            await close()

    return lambda: complete(step()), lambda: complete(finish())


class Batch:
    """Items to send.

    Attributes:
        items: What was taken, encoded.
        ended: There is no more.
        failure: What came instead of the next item; sent once the items before it were.
    """

    def __init__(self) -> None:
        self.items: list[EncodedValue] = []
        self.ended = False
        self.failure: BaseException | None = None


class OpenIterator:
    """Takes items one by one until a batch is full, or long enough on its way.

    Args:
        step: Returns the next item, or raises what ends the iterator.
        finish: Ends it early; may run code of the package's.
        encode: Turns an item into bytes.
        max_result_bytes: What all items may have together, for they are one result; 0: no limit.
    """

    def __init__(
        self,
        step: Callable[[], Any],
        finish: Callable[[], object],
        encode: Callable[[object], EncodedValue],
        max_result_bytes: int,
    ) -> None:
        self.finish = finish
        self._step = step
        self._encode = encode
        self._max_result_bytes = max_result_bytes
        self._sent_bytes = 0
        self._most_items = 1
        self._carried: EncodedValue | None = None
        self._failure: BaseException | None = None

    def take(self, run: Callable[[Callable[[], Any]], Any], stop: Callable[[], bool]) -> Batch:
        """Return the next batch.

        Args:
            run: Runs code of the package's, where an interrupt can reach it.
            stop: Says that no further item is to be taken now.
        """
        batch = Batch()
        if self._failure is not None:
            batch.failure = self._failure
            return batch
        size = buffers = 0
        until = time.monotonic() + _BATCH_S
        if self._carried is not None:
            batch.items.append(self._carried)
            size, buffers = _size(self._carried), len(self._carried.buffers)
            self._carried = None
        while not stop() and not (batch.items and self._is_full(batch, size, until)):
            try:
                item = run(self._step)
            except (StopIteration, StopAsyncIteration):
                batch.ended = True
                break
            except BaseException as error:
                self._fail(batch, error)
                break
            try:
                encoded = self._bounded(item)
            except RefusedError as refusal:
                self._fail(batch, refusal)
                break
            size += _size(encoded)
            buffers += len(encoded.buffers)
            if batch.items and (size > _BATCH_BYTES or buffers > DEFAULT_LIMITS.buffers):
                self._carried = encoded
                break
            batch.items.append(encoded)
        if time.monotonic() >= until:
            self._most_items = 1
        elif len(batch.items) >= self._most_items:
            self._most_items = min(MAX_BATCH_ITEMS, _GROWTH * self._most_items)
        return batch

    def _is_full(self, batch: Batch, size: int, until: float) -> bool:
        return (
            len(batch.items) >= self._most_items
            or size >= _BATCH_BYTES
            or time.monotonic() >= until
        )

    def _fail(self, batch: Batch, error: BaseException) -> None:
        # An interrupt is for now: whoever asked for it does not wait for what came before.
        if batch.items and not isinstance(error, KeyboardInterrupt):
            self._failure = error
        else:
            batch.items.clear()
            batch.failure = error

    def _bounded(self, item: object) -> EncodedValue:
        encoded = self._encode(item)
        self._sent_bytes += _size(encoded)
        if self._max_result_bytes and self._sent_bytes > self._max_result_bytes:
            raise result_too_large(self._sent_bytes, self._max_result_bytes)
        return encoded


def _size(encoded: EncodedValue) -> int:
    return len(encoded.header) + sum(len(buffer) for buffer in encoded.buffers)
