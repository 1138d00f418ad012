import threading
import time
from collections.abc import Callable

import pytest

from enclave_kernel.rsa_pool import RsaPool, RsaPoolClosedError


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rsa-pool"]


def test_keys_are_fresh_and_rsa_2048() -> None:
    with RsaPool(3) as pool:
        keys = [pool.get() for _ in range(6)]
    assert {key.key_size for key in keys} == {2048}
    assert len({key.public_key().public_numbers().n for key in keys}) == 6


def test_a_warm_pool_answers_at_once_and_refills() -> None:
    with RsaPool(4) as pool:
        _wait(lambda: pool.ready == 4)
        durations = []
        for _ in range(3):
            started = time.perf_counter()
            pool.get()
            durations.append(time.perf_counter() - started)
        # Making one takes 44 ms on average; the shortest of three leaves room for a busy machine.
        assert min(durations) < 0.005
        _wait(lambda: pool.ready == 4)
        time.sleep(0.2)
        assert pool.ready == 4


def test_threads_never_get_the_same_key() -> None:
    found: list[int] = []
    with RsaPool(2) as pool:
        threads = [
            threading.Thread(
                target=lambda: found.append(pool.get().public_key().public_numbers().n)
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found)) == 8


def test_close_leaves_no_thread_and_no_key() -> None:
    before = len(_pool_threads())
    pool = RsaPool(2)
    assert len(_pool_threads()) == before + 1
    _wait(lambda: pool.ready == 2)
    pool.close()
    assert len(_pool_threads()) == before
    assert pool.ready == 0
    with pytest.raises(RsaPoolClosedError):
        pool.get()
    pool.close()


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RsaPool(0)
