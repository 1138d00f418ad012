"""Functions of the user's that a real vault calls."""

import asyncio
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enclave_kernel.session.package_failures import (
    CallbackError,
    CallLimitError,
    EncryptedPackageError,
    VaultDiedError,
)
from enclave_kernel.session.package_loading import LoadedPackage
from tests.support.tuner_package import tuner_package
from tests.support.vault_link import VaultLink, payload_pid
from tests.support.vault_packages import CANARY, load_sealed


@pytest.fixture
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, tuner_package(), tmp_path_factory.mktemp("tuner"))


@pytest.fixture
def tuner(loaded: LoadedPackage) -> Any:
    return loaded.proxy


def test_the_function_is_called_with_what_was_declared(tuner: Any) -> None:
    seen: list[Any] = []
    reports: list[Any] = []

    def objective(x: Any, step: Any) -> float:
        seen.append((x, step, threading.current_thread()))
        return float(((x - 2) ** 2).sum())

    start = np.array([0.0, 1.0])
    assert tuner.minimise(objective, start, report=reports.append) == 1.0
    assert [step for _, step, _ in seen] == [0, 1, 2]
    assert all(type(x) is np.ndarray and type(step) is int for x, step, _ in seen)
    assert np.array_equal(seen[2][0], [2.0, 3.0])
    # In the thread, and so in the cell, that called.
    assert {thread for _, _, thread in seen} == {threading.current_thread()}
    assert reports == [5.0, 1.0, 1.0]
    assert tuner.minimise(start=start, objective=lambda x, step: step, steps=1) == 0
    assert tuner.minimise(objective, start, report=None) == 1.0


def test_large_arrays_and_many_calls(tuner: Any) -> None:
    big = np.arange(2_000_000.0)
    assert tuner.minimise(lambda x, step: x, big, steps=1).sum() == big.sum()
    assert tuner.minimise(lambda x, step: step, np.zeros(1), steps=2000) == 0


def test_methods_and_constructors_take_functions(tuner: Any) -> None:
    search = tuner.Search(lambda x, step: 7)
    assert search.step(lambda x, step: x.tolist(), np.zeros(2)) == [0, 0]
    assert search.step(objective=lambda x, step: step, x=np.zeros(2)) == 1


def test_the_users_exception_comes_out_with_the_users_frames(tuner: Any) -> None:
    original = LookupError("mine", 1)

    def deeper() -> None:
        raise original from KeyError("why")

    def objective(x: Any, step: int) -> float:
        if step == 1:
            deeper()
        return 1.0

    with pytest.raises(LookupError) as caught:
        tuner.minimise(objective, np.zeros(1))
    assert caught.value is original
    assert isinstance(original.__cause__, KeyError)
    frames = traceback.extract_tb(original.__traceback__)
    assert [frame.name for frame in frames] == [
        "test_the_users_exception_comes_out_with_the_users_frames",
        "minimise",
        "objective",
        "deeper",
    ]
    assert frames[1].filename == "<encrypted tuner 1>"
    assert not any("/enclave_kernel/" in frame.filename for frame in frames)
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_a_function_of_the_wrong_shape_reads_as_in_python(tuner: Any) -> None:
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        tuner.minimise(lambda x: 1, np.zeros(1))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_it_raises(tuner: Any, kind: type[BaseException]) -> None:
    def objective(x: Any, step: int) -> None:
        raise kind

    with pytest.raises(kind):
        tuner.minimise(objective, np.zeros(1))
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_the_package_may_catch_it_and_learns_nothing_of_it(tuner: Any) -> None:
    def objective(x: Any, step: int) -> float:
        raise ValueError("the user's own business")

    code = """
try:
    objective(X, 1)
except RuntimeError as error:
    result = [type(error).__name__, str(error), error.__cause__, error.__context__]
"""
    assert (
        tuner.run(code, objective)
        == ["CallbackError", "'objective' raised an exception"] + [None] * 2
    )
    with pytest.raises(EncryptedPackageError, match="ZeroDivisionError") as caught:
        tuner.run("try:\n    objective(X, 1)\nexcept RuntimeError:\n    1 / 0", objective)
    # Both are to be seen: what the package made of it, and what it was.
    assert str(caught.value.__cause__) == "the user's own business"
    code = "try:\n    objective(X, 1)\nexcept RuntimeError:\n    pass\nobjective(X, 2)\n1 / 0"
    answers = iter([ValueError("first"), None])

    def twice(x: Any, step: int) -> None:
        if (error := next(answers)) is not None:
            raise error

    with pytest.raises(EncryptedPackageError, match="ZeroDivisionError") as later:
        tuner.run(code, twice)
    assert later.value.__cause__ is None


@pytest.mark.parametrize("returned", [lambda: 0, object(), {1: object()}, iter(())])
def test_only_data_goes_back(tuner: Any, returned: object) -> None:
    with pytest.raises(TypeError, match=r"what the function passed as 'objective' returned"):
        tuner.minimise(lambda x, step: returned, np.zeros(1))
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


@pytest.mark.parametrize(
    "arguments",
    ["SECRET, 1", "X, 'text'", "X, 1, 2", "X", "x=X", "X, 1, step=1", "X, None", "[1], 1",
     "X.view(type('S', (np.ndarray,), {})), 1", "X, np.float64(1)", "np.array([object()]), 1"],
)  # fmt: skip
def test_the_package_cannot_tell_it_anything_else(tuner: Any, arguments: str) -> None:
    seen: list[Any] = []
    code = f"from tuner import SECRET\nobjective({arguments})"
    with pytest.raises((EncryptedPackageError, TypeError)) as caught:
        tuner.run(code, lambda *args: seen.append(args))
    assert seen == []
    assert CANARY not in str(caught.value)


def test_functions_elsewhere_are_refused_by_name(tuner: Any) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: tuner.minimise(lambda x, step: 1, print), "start"),
        (lambda: tuner.minimise(lambda x, step: 1, np.zeros(1), steps=print), "steps"),
        (lambda: tuner.run(lambda: 1), "code"),
        (lambda: tuner.other(print), "x"),
        (lambda: tuner.minimise([print], np.zeros(1)), "objective"),
    ]
    for call, name in calls:
        with pytest.raises(TypeError, match=f"argument '{name}'"):
            call()


def test_what_is_announced_as_a_function_must_be_declared(loaded: LoadedPackage) -> None:
    attempts: list[tuple[str, list[Any], dict[str, object], str]] = [
        ("minimise", [1, None], {}, "start"),
        ("minimise", [None], {"start": None}, "start"),
        ("minimise", [1, 2], {}, "objective"),
        ("minimise", [], {"start": 1}, "objective"),
        ("other", [1], {"objective": None}, "objective"),
        ("other", [None], {}, "x"),
    ]
    for name, args, kwargs, announced in attempts:
        with pytest.raises(TypeError, match=rf"argument '{announced}' (cannot be|was announced)"):
            loaded.client.call(name, (args, kwargs), (), functions={announced: print})


def test_depth_one(tuner: Any, loaded: LoadedPackage) -> None:
    def objective(x: Any, step: int) -> Any:
        return tuner.minimise(lambda x, step: 1, x)

    with pytest.raises(CallbackError, match="cannot be used in it"):
        tuner.minimise(objective, np.zeros(1))
    # Objects may be made unreachable in it; the vault hears of it afterwards.
    search = [tuner.Search()]
    assert tuner.minimise(lambda x, step: search.clear(), np.zeros(1), steps=1) is None
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_other_threads_wait_their_turn(tuner: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = list(
            pool.map(lambda n: tuner.minimise(lambda x, step: n, np.zeros(1), steps=20), range(12))
        )
    assert parts == list(range(12))


def test_it_can_be_called_only_while_its_call_runs(tuner: Any) -> None:
    tuner.Search(lambda x, step: 1)
    tuner.run("import tuner; tuner.kept = objective", lambda x, step: 1)
    with pytest.raises(EncryptedPackageError, match="CallbackError"):
        tuner.run("import tuner; tuner.kept(X, 1)", lambda x, step: 1)
    # Neither by a thread that outlives it, nor by a generator.
    code = """
import threading, time, tuner
def late():
    time.sleep(0.3)
    try:
        objective(X, 1)
    except Exception as error:
        tuner.late = str(error)
tuner.thread = threading.Thread(target=late)
tuner.thread.start()
"""
    calls: list[Any] = []
    tuner.run(code, lambda x, step: calls.append(x))
    late = tuner.run("import tuner; tuner.thread.join(); result = tuner.late")
    assert late == "the call that 'objective' was passed to has ended"
    items = tuner.stream(lambda x, step: calls.append(x))
    assert next(items) == 1
    with pytest.raises(EncryptedPackageError, match="CallbackError"):
        next(items)
    assert calls == []


def test_threads_of_the_package_ask_one_after_the_other(tuner: Any) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    result = sorted(pool.map(lambda step: objective(X, step), range(40)))
"""
    running: list[int] = []

    def objective(x: Any, step: int) -> int:
        running.append(step)
        assert len(running) == 1
        running.remove(step)
        return step

    assert tuner.run(code, objective) == list(range(40))


def test_a_thread_of_the_package_is_waited_for(tuner: Any) -> None:
    code = """
import threading, time
threading.Thread(target=lambda: objective(X, 1)).start()
time.sleep(0.2)
"""
    done: list[int] = []

    def objective(x: Any, step: int) -> None:
        time.sleep(0.6)
        done.append(step)

    tuner.run(code, objective)
    assert done == [1]
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_output_comes_in_order(tuner: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = "for step in range(3):\n    print('package', step)\n    objective(X, step)\nprint('end')"
    tuner.run(code, lambda x, step: print("user", step))  # noqa: T201
    assert capsys.readouterr().out.splitlines() == [
        "package 0", "user 0", "package 1", "user 1", "package 2", "user 2", "end",
    ]  # fmt: skip


def press_soon(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_an_interrupt_in_the_function_is_the_functions(tuner: Any) -> None:
    def objective(x: Any, step: int) -> None:
        time.sleep(60)

    timer = press_soon(0.5)
    with pytest.raises(KeyboardInterrupt) as caught:
        tuner.minimise(objective, np.zeros(1))
    timer.join()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "objective"
    caught_inside: list[bool] = []

    def patient(x: Any, step: int) -> int:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            caught_inside.append(True)
        return 5

    timer = press_soon(0.5)
    assert tuner.minimise(patient, np.zeros(1), steps=1) == 5
    timer.join()
    assert caught_inside == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_between_functions_is_the_packages(tuner: Any) -> None:
    timer = press_soon(0.5)
    with pytest.raises(KeyboardInterrupt):
        tuner.run("objective(X, 1)\nimport time; time.sleep(60)", lambda x, step: step)
    timer.join()
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_interrupts_at_any_moment_leave_the_stream_whole(tuner: Any) -> None:
    stop = threading.Event()

    def press() -> None:
        while not stop.wait(0.004):
            os.kill(os.getpid(), signal.SIGINT)

    interrupted = 0
    thread = threading.Thread(target=press)
    end = time.monotonic() + 3
    thread.start()
    try:
        while time.monotonic() < end:
            try:
                tuner.minimise(lambda x, step: step, np.zeros(1), steps=50)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        while thread.is_alive():
            try:
                stop.set()
                thread.join()
            except KeyboardInterrupt:
                continue
    assert interrupted > 5
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_unloading_in_a_function(link: VaultLink, tmp_path: Path) -> None:
    loaded = load_sealed(link, tuner_package(), tmp_path)
    tuner: Any = loaded.proxy
    with pytest.raises(VaultDiedError, match="it was unloaded"):
        tuner.minimise(lambda x, step: loaded.client.close(), np.zeros(1))
    with pytest.raises(VaultDiedError, match="it was unloaded"):
        tuner.minimise(lambda x, step: 1, np.zeros(1))


def test_a_vault_that_dies_meanwhile(link: VaultLink, tmp_path: Path) -> None:
    loaded = load_sealed(link, tuner_package(), tmp_path)
    tuner: Any = loaded.proxy
    (vault_id,) = link.vaults

    def objective(x: Any, step: int) -> int:
        pid = payload_pid(link.vaults[vault_id].pid)
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)
        return 1

    with pytest.raises(VaultDiedError):
        tuner.minimise(objective, np.zeros(1))


def test_a_fork_in_a_function_stays_out_of_the_stream(tuner: Any) -> None:
    reader, writer = os.pipe()

    def objective(x: Any, step: int) -> int:
        return os.fork()

    pid = os.getpid()
    try:
        child = tuner.minimise(objective, np.zeros(1), steps=1)
    except BaseException as error:
        if os.getpid() != pid:
            os.write(writer, type(error).__name__.encode())
            os._exit(0)
        raise
    if os.getpid() != pid:
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 100) == b"ChildProcessError"
    os.close(reader)
    os.close(writer)
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2


def test_what_leaves_for_functions_counts(link: VaultLink, tmp_path: Path) -> None:
    loaded = load_sealed(link, tuner_package("max_result_bytes = 2000\nmax_calls = 3"), tmp_path)
    tuner: Any = loaded.proxy
    assert tuner.minimise(lambda x, step: step, np.zeros(10), steps=5) == 0
    seen: list[Any] = []
    with pytest.raises(EncryptedPackageError, match="CallbackError"):
        tuner.run("while True: objective(np.zeros(50), 1)", lambda x, step: seen.append(x))
    assert 3 <= len(seen) <= 4
    tuner.minimise(lambda x, step: step, np.zeros(10), steps=5)
    with pytest.raises(CallLimitError, match="allows 3 calls"):
        tuner.minimise(lambda x, step: step, np.zeros(10))


async def test_async_calls_call_back_from_their_thread(tuner: Any) -> None:
    threads: list[Any] = []

    def objective(x: Any, step: int) -> int:
        threads.append(threading.current_thread())
        return step

    assert await tuner.awaited(objective) == 0
    assert threads[0] is not threading.main_thread()

    def fails(x: Any, step: int) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        await tuner.awaited(fails)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fails"

    def leaves(x: Any, step: int) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        await tuner.awaited(leaves)
    slow = asyncio.ensure_future(tuner.awaited(lambda x, step: time.sleep(1)))
    await asyncio.sleep(0.5)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert tuner.minimise(lambda x, step: 2, np.zeros(1)) == 2
