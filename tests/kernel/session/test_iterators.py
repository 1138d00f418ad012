"""Iterators of a package's, as a notebook uses them, from a real vault."""

import gc
import itertools
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enclave_kernel.session.package_failures import (
    CallLimitError,
    EncryptedPackageError,
    VaultDiedError,
)
from enclave_kernel.session.package_loading import LoadedPackage
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed

MANIFEST = """
[package]
name = "source"
version = "1"
module = "source"
[exports]
classes = { Table = { init = "Table(rows)", methods = ["each()", "each_row()"] } }
[exports.functions]
count = "count(n, fail_at=None)"
of = "of(code)"
state = "state()"
run = "run(code)"
[exports.returns]
count = "iter"
of = "iter"
each = "iter"
"Table.each_row" = "iter"
[policy]
errors = ["ValueError", "TypeError"]
"""
SOURCE = f'''
import numpy as np

closed = 0
made = 0


def count(n, fail_at=None):
    global closed, made
    try:
        for number in range(n):
            if number == fail_at:
                raise ValueError("no more")
            made = number + 1
            yield number
    finally:
        closed += 1


def run(code):
    scope = {{}}
    exec(code, scope)
    return scope.get("result")


of = run


def state():
    return closed


class Table:
    secret = "{CANARY}"

    def __init__(self, rows):
        self.rows = rows

    def each(self):
        return [np.full(3, row) for row in range(self.rows)]

    def each_row(self):
        return iter(range(self.rows))
'''


def source_package(policy: str = "") -> SealedPackage:
    return seal_package({"source.py": SOURCE}, MANIFEST + policy)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, source_package(), tmp_path_factory.mktemp("source"))


@pytest.fixture
def source(loaded: LoadedPackage) -> Any:
    return loaded.proxy


def test_a_loop_over_a_generator(source: Any) -> None:
    assert list(source.count(5000)) == list(range(5000))
    iterator = source.count(2)
    assert iter(iterator) is iterator
    assert repr(iterator) == "<encrypted source 1: iterator>"
    assert (next(iterator), next(iterator)) == (0, 1)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(iterator)
    with pytest.raises(TypeError, match="has no len"):
        len(iterator)


def test_what_can_be_looped_over(source: Any) -> None:
    table = source.Table(3)
    assert [array.tolist() for array in table.each()] == [[0] * 3, [1] * 3, [2] * 3]
    assert list(table.each_row()) == [0, 1, 2]
    assert list(source.of("result = {'a': 1}")) == ["a"]
    assert list(source.of("result = ''")) == []
    assert [
        array.sum()
        for array in source.of("import numpy as np; result = (np.ones(500_000) for _ in range(5))")
    ] == [500_000.0] * 5


@pytest.mark.parametrize(
    "code",
    [
        "result = 5",
        "result = None",
        "result = type('Secret', (), {})()",
        "result = type('Secret', (), {'__iter__': lambda self: 5})()",
        "result = [type('Secret', (), {})()]",
        "import source; result = [source.Table(1)]",
    ],
)
def test_what_is_no_iterator_of_data_stays_and_is_not_described(source: Any, code: str) -> None:
    with pytest.raises(EncryptedPackageError) as caught:
        list(source.of(code))
    assert "Secret" not in str(caught.value)


def test_an_error_comes_after_the_items_before_it(source: Any) -> None:
    seen = []
    with pytest.raises(ValueError, match=r"^no more$") as caught:
        for number in source.count(9, fail_at=4):
            seen.append(number)
    assert seen == [0, 1, 2, 3]
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames[1:]] == ["<encrypted source 1>"]
    iterator = source.of("result = (1 / (2 - i) for i in range(9))")
    assert [next(iterator), next(iterator)] == [0.5, 1.0]
    with pytest.raises(EncryptedPackageError, match=r"ZeroDivisionError in .*\[incident"):
        next(iterator)
    assert list(iterator) == []
    with pytest.raises(TypeError, match="missing a required argument: 'n'"):
        source.count()


def test_the_vault_does_not_run_far_ahead(source: Any) -> None:
    endless = source.of("import itertools; result = itertools.count()")
    assert list(itertools.islice(endless, 3000)) == list(range(3000))
    endless.close()
    with pytest.raises(StopIteration):
        next(endless)
    iterator = source.count(10**9)
    assert next(iterator) == 0
    assert source.run("import source; result = source.made") == 1
    assert list(itertools.islice(iterator, 9)) == list(range(1, 10))
    assert source.run("import source; result = source.made") < 9 * 4
    iterator.close()


def test_an_iterator_nobody_holds_is_closed_in_the_vault(source: Any) -> None:
    before = source.state()
    iterators = [source.count(10**9) for _ in range(3)]
    for iterator in iterators:
        next(iterator)
    iterators[0].close()
    iterators[0].close()
    assert source.state() == before + 1
    del iterator, iterators
    gc.collect()
    assert source.state() == before + 3
    # One that was never begun has nothing to close.
    source.count(5)
    gc.collect()
    assert source.state() == before + 3


def test_a_generator_that_will_not_close_can_be_interrupted(source: Any) -> None:
    code = """
def stubborn():
    try:
        while True:
            yield 1
    finally:
        while True:
            pass
result = stubborn()
"""
    iterator = source.of(code)
    assert next(iterator) == 1
    iterator.close()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        source.state()
        time.sleep(60)
    timer.join()
    assert source.state() >= 0


def test_an_interrupt_ends_the_iterator_and_not_the_vault(source: Any) -> None:
    code = """
import time
def naps():
    yield 1
    time.sleep(60)
    yield 2
result = naps()
"""
    iterator = source.of(code)
    assert next(iterator) == 1
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    timer.join()
    assert list(iterator) == []
    assert list(source.count(2)) == [0, 1]


def test_many_threads_share_one_iterator(source: Any) -> None:
    iterator = source.count(4000)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: list(iterator), range(4)))
    assert sorted(itertools.chain(*parts)) == list(range(4000))


def test_many_iterators_at_once(source: Any) -> None:
    pairs = list(zip(source.count(2000), source.count(2000), strict=True))
    assert pairs == [(number, number) for number in range(2000)]


def test_it_cannot_be_pickled(source: Any) -> None:
    with pytest.raises(TypeError, match="stays in its vault"):
        pickle.dumps(source.count(1))


def test_handles_of_iterators_are_for_nothing_else(loaded: LoadedPackage) -> None:
    client = loaded.client
    iterator: Any = loaded.proxy
    counted = iterator.count(5)
    handle = counted._release.peek()[2][0]
    for attempt in (
        lambda: client.call_method(handle, "each", ((), {}), ()),
        lambda: client.get_attribute(handle, "gi_frame"),
        lambda: client.next_items(handle ^ 1),
        lambda: client.next_items(iterator.Table(1)._handle),
    ):
        with pytest.raises(ReferenceError, match="the vault has no such"):
            attempt()
    assert list(counted) == list(range(5))
    with pytest.raises(ReferenceError):
        client.next_items(handle)


def test_a_dead_vault(tmp_path: Path) -> None:
    with VaultLink() as link:
        source: Any = load_sealed(link, source_package(), tmp_path).proxy
        iterator = source.of("import os\nresult = iter(lambda: os._exit(3), 1)")
        with pytest.raises(VaultDiedError, match="exit code 3"):
            next(iterator)
        assert list(iterator) == []


def test_all_its_items_are_one_result_of_one_call(tmp_path: Path) -> None:
    with VaultLink() as link:
        policy = "max_calls = 2\nmax_result_bytes = 5000"
        source: Any = load_sealed(link, source_package(policy), tmp_path).proxy
        assert list(source.count(1500)) == list(range(1500))
        arrays = source.of("import numpy as np; result = (np.ones(50) for _ in range(99))")
        seen = []
        with pytest.raises(CallLimitError, match="owner allows 5000"):
            for array in arrays:
                seen.append(array)
        assert 10 <= len(seen) <= 12 and np.array_equal(seen[0], np.ones(50))
        with pytest.raises(CallLimitError, match="allows 2 calls"):
            source.count(1)


def test_an_expired_package_delivers_no_more(tmp_path: Path) -> None:
    until = (datetime.now(UTC) + timedelta(seconds=4)).isoformat(timespec="seconds")
    with VaultLink() as link:
        policy = f'expires = "{until}"'
        source: Any = load_sealed(link, source_package(policy), tmp_path).proxy
        with pytest.raises(CallLimitError, match="expired"):
            for _ in source.of("import itertools; result = itertools.count()"):
                time.sleep(0.001)
