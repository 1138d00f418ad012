"""Batches of an iterator, without a notebook to take them."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from enclave_kernel.vault.open_iterator import Batch, OpenIterator
from enclave_kernel.vault.refusals import RefusedError
from enclave_protocol.value_codec import decode_value, encode_value
from enclave_protocol.vault_messages import MAX_BATCH_ITEMS


def opened(iterator: Iterator[Any], limit: int = 0) -> OpenIterator:
    return OpenIterator(lambda: next(iterator), lambda: None, encode_value, limit)


def take(source: OpenIterator, stop: Callable[[], bool] = lambda: False) -> Batch:
    return source.take(lambda code: code(), stop)


def items(batch: Batch) -> list[Any]:
    return [decode_value(item.header, item.buffers) for item in batch.items]


def drain(source: OpenIterator) -> tuple[list[Any], list[int], BaseException | None]:
    """Return the items, the sizes of their batches, and what ended them."""
    found: list[Any] = []
    sizes = []
    while True:
        batch = take(source)
        found += items(batch)
        sizes.append(len(batch.items))
        if batch.ended or batch.failure is not None:
            return found, sizes, batch.failure


def test_a_fast_producer_goes_in_few_batches_of_a_bounded_number() -> None:
    found, sizes, failure = drain(opened(iter(range(5000))))
    assert (found, failure) == (list(range(5000)), None)
    assert max(sizes) <= MAX_BATCH_ITEMS
    assert sizes[0] == 1


def test_a_slow_producer_is_not_held_back() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    _, sizes, _ = drain(opened(slow()))
    assert sizes[:3] == [1, 1, 1]


def test_what_comes_before_a_pause_is_not_held_back_twice() -> None:
    def pauses() -> Iterator[int]:
        yield from range(20)
        time.sleep(0.05)
        yield from range(3)

    source = opened(pauses())
    assert items(take(source)) == [0]
    sizes = [1]
    while sum(sizes) < 20:
        sizes.append(len(take(source).items))
    assert len(take(source).items) == 1


def test_bytes_are_bounded_and_no_item_is_lost() -> None:
    arrays = [np.full(300_000 // 8, number, np.int64) for number in range(20)]
    found, sizes, _ = drain(opened(iter(arrays)))
    assert [int(array[0]) for array in found] == list(range(20))
    assert max(sizes) <= 3
    large = [np.zeros(3_000_000, np.uint8), 1, np.zeros(3_000_000, np.uint8)]
    found, sizes, _ = drain(opened(iter(large)))
    assert len(found) == 3 and found[1] == 1
    long_headers = ["x" * 4000] * 600
    found, _, _ = drain(opened(iter([long_headers, long_headers, 5])))
    assert found == [long_headers, long_headers, 5]


def test_an_error_comes_after_the_items_before_it() -> None:
    def breaks(error: BaseException) -> Iterator[int]:
        yield 1
        yield 2
        raise error

    found, _, failure = drain(opened(breaks(ValueError("x"))))
    assert found == [1, 2] and isinstance(failure, ValueError)
    found, _, failure = drain(opened(breaks(SystemExit())))
    assert found == [1, 2] and isinstance(failure, SystemExit)
    # Who interrupts does not wait for items.
    source = opened(breaks(KeyboardInterrupt()))
    assert items(take(source)) == [1]
    batch = take(source)
    assert not batch.items and isinstance(batch.failure, KeyboardInterrupt)


def test_a_refused_item_ends_it() -> None:
    def refuse(value: object) -> Any:
        if value == 3:
            raise RefusedError("EncryptedPackageError", "stays")
        return encode_value(value)

    numbers = iter(range(9))
    source = OpenIterator(lambda: next(numbers), lambda: None, refuse, 0)
    found, _, failure = drain(source)
    assert found == [0, 1, 2] and isinstance(failure, RefusedError)


def test_all_items_together_are_one_result() -> None:
    found, _, failure = drain(opened((bytes(100) for _ in range(1000)), 5000))
    assert 40 <= len(found) < 50
    assert isinstance(failure, RefusedError) and "owner allows 5000" in str(failure)


def test_an_interrupt_between_items_ends_the_batch_and_nothing_else() -> None:
    source = opened(iter(range(10)))
    calls = iter([False, False, False, True])
    assert items(take(source)) == [0]
    assert items(take(source, lambda: next(calls))) == [1, 2, 3]
    assert items(take(source, lambda: True)) == []
    assert drain(source)[0] == list(range(4, 10))


@pytest.mark.parametrize("count", [0, 1])
def test_the_end_is_said_with_the_last_items(count: int) -> None:
    source = opened(iter(range(count)))
    found, sizes, failure = drain(source)
    assert (found, failure) == (list(range(count)), None)
    assert len(sizes) == count + 1
