"""The notebook's end: interrupts, death, many threads, forks, and finalizers."""

import contextlib
import gc
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.call_interrupt import INTERRUPT_TIMEOUT_S
from enclave_kernel.session.package_failures import EncryptedPackageError, VaultDiedError
from enclave_kernel.session.package_loading import LoadedPackage
from enclave_kernel.session.supervisor_link import LoadedVault
from enclave_kernel.session.vault_client import VaultClient
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed, spy_package


@pytest.fixture
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture
def loaded(link: VaultLink, tmp_path: Path) -> LoadedPackage:
    return load_sealed(link, spy_package(), tmp_path)


@pytest.fixture
def spy(loaded: LoadedPackage) -> Any:
    return loaded.proxy


@contextlib.contextmanager
def interrupt_after(seconds: float, times: int = 1) -> Iterator[None]:
    """Press Ctrl-C `times` times, half a second apart."""

    def press() -> None:
        time.sleep(seconds)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=press)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        "import os; os.read(os.pipe()[0], 1)",
        "import threading; threading.Event().wait()",
    ],
)
def test_an_interrupt_reaches_the_package_and_the_vault_lives_on(spy: Any, code: str) -> None:
    started = time.monotonic()
    with interrupt_after(0.3), pytest.raises(KeyboardInterrupt):
        spy.run(code)
    assert time.monotonic() - started < 3
    assert spy.echo("alive") == "alive"


def test_a_package_that_caught_the_first_interrupt_gets_the_second(spy: Any) -> None:
    code = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""
    started = time.monotonic()
    with interrupt_after(0.3, times=2), pytest.raises(KeyboardInterrupt):
        spy.run(code)
    assert time.monotonic() - started < 3
    assert spy.echo("alive") == "alive"


def test_a_package_that_ignores_interrupts_is_stopped(spy: Any) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    started = time.monotonic()
    with interrupt_after(0.2), pytest.raises(KeyboardInterrupt):
        spy.run(code)
    assert INTERRUPT_TIMEOUT_S <= time.monotonic() - started < INTERRUPT_TIMEOUT_S + 2
    with pytest.raises(VaultDiedError, match="did not react to an interrupt"):
        spy.echo(1)


def test_an_interrupt_between_calls_does_not_hit_the_next_one(
    link: VaultLink, loaded: LoadedPackage, spy: Any
) -> None:
    (vault,) = link.vaults.values()
    for _ in range(20):
        vault.interrupt()
        assert spy.echo(1) == 1


def test_interrupts_at_any_moment_leave_the_stream_whole(spy: Any) -> None:
    stop, armed = threading.Event(), threading.Event()
    delays = random.Random(1)

    def press() -> None:
        # One for each time that the main thread is ready to take it: one that came while the test
        # counts the last would end the test.
        while not stop.is_set():
            if armed.wait(0.1):
                armed.clear()
                time.sleep(delays.uniform(0, 0.005))
                os.kill(os.getpid(), signal.SIGINT)

    interrupted = 0
    thread = threading.Thread(target=press)
    end = time.monotonic() + 2
    thread.start()
    while time.monotonic() < end or interrupted <= 20:
        try:
            armed.set()
            for number in range(100_000):
                assert spy.echo(number) == number
        except KeyboardInterrupt:
            interrupted += 1
    stop.set()
    thread.join()
    assert spy.echo("whole") == "whole"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", r"exit code 3"),
        ("import os; os.abort()", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),
    ],
)
def test_a_vault_that_dies_says_why(spy: Any, code: str, reason: str) -> None:
    with pytest.raises(VaultDiedError, match=rf"<encrypted spy 1.0> has ended \(.*{reason}"):
        spy.run(code)
    with pytest.raises(VaultDiedError, match=reason):
        spy.echo(1)


def test_a_dying_vault_with_children_is_noticed(spy: Any) -> None:
    code = "import os, time\nif not os.fork():\n    time.sleep(60)\nos._exit(4)"
    started = time.monotonic()
    with pytest.raises(VaultDiedError, match="exit code 4"):
        spy.run(code)
    assert time.monotonic() - started < 5


def test_threads_take_turns(spy: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(spy.echo, range(400)))
    assert results == list(range(400))


def test_unloading_ends_a_call_in_another_thread(loaded: LoadedPackage, spy: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(spy.run, "import time; time.sleep(60)")
        time.sleep(0.3)
        loaded.client.close()
        with pytest.raises(VaultDiedError, match="it was unloaded"):
            call.result(5)


def test_a_forked_child_cannot_use_the_stream(spy: Any) -> None:
    box = spy.Box()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            spy.echo(1)
        except VaultDiedError as error:
            os.write(writer, str(error).encode())
        del box
        os._exit(0)
    os.waitpid(child, 0)
    assert b"forked process" in os.read(reader, 1000)
    os.close(reader)
    os.close(writer)
    assert spy.echo(1) == 1 and box.get() is None


COUNT = "import gc, spy; gc.collect(); result = sum(type(o) is spy.Box for o in gc.get_objects())"


def test_objects_nobody_holds_leave_the_vault(spy: Any) -> None:
    boxes = [spy.Box() for _ in range(50)]
    cycle: list[Any] = [spy.Box()]
    cycle.append(cycle)
    assert spy.run(COUNT) == 51
    del boxes[10:]
    assert spy.run(COUNT) == 11
    del boxes, cycle
    gc.collect()
    assert spy.run(COUNT) == 0


def test_objects_are_released_from_any_thread_during_calls(spy: Any) -> None:
    def churn(_: int) -> None:
        for _ in range(50):
            spy.Box().get()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    spy.empty()
    assert spy.run(COUNT) == 0


class ForgingVault:
    """A vault that answers with bytes of its own choice."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        self.client = VaultClient(LoadedVault("forged", theirs), "<encrypted bad 1>", self)
        self._thread = threading.Thread(target=self._serve, args=(ours, answer))
        self._thread.start()

    def _serve(self, sock: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        with sock:
            sock.recv(65536)
            answer(sock)
            while sock.recv(65536):
                continue

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        raise AssertionError((file_name, header_raw))

    def interrupt(self, vault_id: str) -> None:
        raise AssertionError(vault_id)

    def unload(self, vault_id: str) -> None:
        self.unloaded = vault_id

    def death_reason(self, vault_id: str) -> str | None:
        return None if vault_id else "never"

    def finish(self) -> None:
        self.client.close()
        self._thread.join(5)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        b"\0\0\0\1\0\0\0\0\xc1",
        b"\0\0\0\4\0\0\0\0\x93\x17\x63\xa0",  # a result for request 99
        b"\0\0\0\1\0\0\0\1" + b"\xff" * 8,  # a buffer of 2**64 - 1 bytes
    ],
)
def test_forged_replies_end_the_vault_and_nothing_else(data: bytes) -> None:
    vault = ForgingVault(lambda sock: sock.sendall(data))
    with pytest.raises(VaultDiedError, match="<encrypted bad 1> has ended"):
        vault.client.call("f", ((), {}), ())
    assert vault.unloaded == "forged"
    vault.finish()


def test_no_exception_but_known_ones_is_rebuilt() -> None:
    # Raised(1, "SystemExit", "bye", incident)
    incident = b"0123456789abcdef"
    payload = b"\x95\x18\x01\xaaSystemExit\xa3bye\xb0" + incident
    head = len(payload).to_bytes(4, "big") + bytes(4)
    vault = ForgingVault(lambda sock: sock.sendall(head + payload))
    with pytest.raises(EncryptedPackageError, match="SystemExit in"):
        vault.client.call("f", ((), {}), ())
    vault.finish()
