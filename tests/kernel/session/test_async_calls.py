"""`async` functions of a package: awaited by the user, run to their end in a real vault."""

import asyncio
import inspect
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.call_thread import in_thread
from enclave_kernel.session.package_failures import EncryptedPackageError, VaultDiedError
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

MANIFEST = """
[package]
name = "awaited"
version = "1"
module = "awaited"
[exports.functions]
double = "async double(x, *, wait=0.0)"
plain = "async plain(x)"
blocking = "blocking(x)"
numbers = "async numbers(n, fail_at=None)"
numbers_too = "numbers_too(n)"
listed = "async listed(n)"
run = "async run(code)"
state = "state()"
[exports.classes.Model]
init = "Model(x)"
methods = ["async ask(y)", "async parts()", "x_plus(y)"]
[exports.returns]
numbers = "iter"
numbers_too = "iter"
listed = "iter"
"Model.parts" = "iter"
[docs]
double = "Return twice x."
[policy]
errors = ["ValueError"]
"""
SOURCE = """
import asyncio

lock = asyncio.Lock()
ended = []


async def double(x, *, wait=0.0):
    async with lock:
        try:
            await asyncio.sleep(wait)
        finally:
            ended.append(x)
    return 2 * x


def plain(x):
    return x


async def blocking(x):
    return await double(x)


async def numbers(n, fail_at=None):
    try:
        for number in range(n):
            if number == fail_at:
                raise ValueError("no more")
            await asyncio.sleep(0)
            yield number
    finally:
        ended.append("numbers")


numbers_too = numbers


def listed(n):
    return list(range(n))


async def run(code):
    scope = {}
    exec(code, scope)
    return await scope["main"]()


def state():
    found, ended[:] = list(ended), []
    return found


class Model:
    def __init__(self, x):
        self.x = x

    async def ask(self, y):
        await asyncio.sleep(0)
        return self.x + y

    async def parts(self):
        for part in range(self.x):
            yield part

    def x_plus(self, y):
        return self.x + y
"""


def awaited_package() -> SealedPackage:
    return seal_package({"awaited.py": SOURCE}, MANIFEST)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with VaultLink() as link:
        yield load_sealed(link, awaited_package(), tmp_path_factory.mktemp("awaited")).proxy


async def test_calls_are_awaited(package: Any) -> None:
    assert inspect.iscoroutinefunction(package.double)
    assert package.double.__doc__ == "Return twice x."
    assert str(inspect.signature(package.double)) == "(x, *, wait=0.0)"
    assert await package.double(21) == 42
    assert await asyncio.gather(*(package.double(x) for x in range(20))) == list(range(0, 40, 2))
    assert await package.plain([1]) == [1]
    assert package.blocking(4) == 8
    model = package.Model(5)
    assert await model.ask(y=2) == 7
    assert model.x_plus(1) == 6


async def test_the_event_loop_goes_on_meanwhile(package: Any) -> None:
    call = asyncio.ensure_future(package.double(1, wait=0.5))
    turns = 0
    while not call.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await call == 2
    assert turns > 10


async def test_async_iterators(package: Any) -> None:
    iterator = package.numbers(3000)
    assert repr(iterator) == "<encrypted awaited 1: async iterator>"
    assert [number async for number in iterator] == list(range(3000))
    assert [number async for number in iterator] == []
    assert [part async for part in package.Model(3).parts()] == [0, 1, 2]
    assert [part async for part in package.listed(3)] == [0, 1, 2]
    # Declared without async: the same generator in an ordinary loop.
    assert list(package.numbers_too(3)) == [0, 1, 2]


async def test_closing_an_async_iterator(package: Any) -> None:
    package.state()
    iterator = package.numbers(10**9)
    assert await anext(iterator) == 0
    await iterator.aclose()
    assert package.state() == ["numbers"]
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)
    never_begun = package.numbers(5)
    await never_begun.aclose()
    assert [number async for number in never_begun] == []


async def test_errors_come_as_for_other_calls(package: Any) -> None:
    with pytest.raises(ValueError, match=r"^no more$") as caught:
        async for number in package.numbers(9, fail_at=2):
            assert number < 2
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames[1:]] == ["<encrypted awaited 1>"]
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        await package.double()
    with pytest.raises(TypeError, match="argument 'x': a function cannot cross"):
        await package.double(lambda: 0)
    with pytest.raises(TypeError, match="missing a required argument: 'n'"):
        await anext(package.numbers())
    with pytest.raises(EncryptedPackageError, match="ZeroDivisionError") as hidden:
        await package.run("async def main(): 1 / 0")
    frames = traceback.extract_tb(hidden.value.__traceback__)
    assert [frame.filename for frame in frames[1:]] == ["<encrypted awaited 1>"]
    with pytest.raises(TypeError, match="takes an object of Model first"):
        await package.Model.ask()


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SystemExit", "asyncio.CancelledError"])
async def test_what_ends_loops_does_not_end_the_users(package: Any, kind: str) -> None:
    with pytest.raises(EncryptedPackageError):
        await package.run(f"import asyncio\nasync def main(): raise {kind}")
    assert await package.double(1) == 2


async def test_a_cancelled_call_ends_in_the_vault(package: Any) -> None:
    package.state()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(package.double(7, wait=600), 1.0)
    assert package.state() == [7]
    assert await package.double(1) == 2


async def test_a_cancelled_call_that_waits_its_turn_is_never_made(package: Any) -> None:
    package.state()
    first = asyncio.ensure_future(package.double(1, wait=2.0))
    await asyncio.sleep(0.6)
    second = asyncio.ensure_future(package.double(2))
    await asyncio.sleep(0.3)
    second.cancel()
    assert await first == 2
    await asyncio.sleep(0.1)
    assert package.state() == [1]
    assert second.cancelled()


async def test_what_a_coroutine_keeps_is_usable_in_the_next_call(package: Any) -> None:
    code = """
import asyncio, awaited
async def main():
    awaited.queue = asyncio.Queue()
    awaited.task = asyncio.ensure_future(awaited.queue.get())
"""
    assert await package.run(code) is None
    code = """
import awaited
async def main():
    await awaited.queue.put(5)
    return await awaited.task
"""
    assert await package.run(code) == 5


async def test_a_vault_that_dies(tmp_path: Path) -> None:
    with VaultLink() as link:
        package: Any = load_sealed(link, awaited_package(), tmp_path).proxy
        with pytest.raises(VaultDiedError, match="exit code 3"):
            await package.run("import os\nasync def main(): os._exit(3)")
        with pytest.raises(VaultDiedError, match="exit code 3"):
            await package.double(1)


async def test_a_loop_that_ends_first_loses_nothing_but_the_result() -> None:
    gone = threading.Event()

    def work() -> int:
        gone.wait(30)
        return 1

    async def wait() -> None:
        with pytest.raises(asyncio.CancelledError):
            await in_thread(work, gone.set)

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert gone.is_set()


async def test_stop_iteration_is_no_result() -> None:
    def work() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_thread(work, lambda: None)
