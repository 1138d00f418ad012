"""What `vault_call` runs in the notebook: sent to the kernel as a cell, never imported.

Every peer does the same as the package: takes the arguments, answers with one number or nothing.
Rounds take turns, so that a slow phase of the machine hits all alike.
"""

import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

CALLS = 500
RPYC_SERVER = """
import sys, rpyc
from rpyc.utils.server import ThreadedServer
class Peer(rpyc.Service):
    def exposed_nothing(self): pass
ThreadedServer(Peer, socket_path=sys.argv[1]).start()
"""


class Peer:
    """The package's functions, in this process or in a manager's."""

    def nothing(self) -> None:
        """Do nothing."""

    def total(self, array: "np.ndarray[Any, Any]") -> float:
        """Return the sum of an array: it reads all of it."""
        return float(array.sum())

    def rows(self, frame: Any) -> int:
        """Return the number of rows of a table."""
        return len(frame)


class Manager(BaseManager):
    """A peer in another process, by pickle."""


Manager.register("Peer", Peer)


@contextmanager
def rpyc_peer() -> Iterator[Any]:
    """Return RPyC's view of a service in another process, over a Unix socket."""
    import rpyc

    folder = Path(tempfile.mkdtemp())
    path = folder / "socket"
    server = subprocess.Popen([sys.executable, "-c", RPYC_SERVER, str(path)])
    try:
        while not path.exists():
            time.sleep(0.05)
        time.sleep(0.2)
        connection = rpyc.utils.factory.unix_connect(str(path))
        yield connection.root
        connection.close()
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


@contextmanager
def manager_peer() -> Iterator[Any]:
    """Return a proxy of a peer in a manager's process."""
    manager = Manager(ctx=multiprocessing.get_context("fork"))
    manager.start()
    try:
        yield manager.Peer()  # type: ignore[attr-defined]
    finally:
        manager.shutdown()


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds `action` takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_turn(
    actions: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each action, one number a round: the median of `repeat`.

    The first round only warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = statistics.median(timed(action) for _ in range(repeat))
            if number:
                times[name].append(seconds)
    return times


def measure_empty(package: Any, rounds: int) -> dict[str, list[float]]:
    """Measure a call without arguments."""
    direct = Peer()
    with rpyc_peer() as rpyc, manager_peer() as manager:
        actions = {
            # As one writes it. RPyC asks the other side for the function each time.
            "vault": lambda: package.nothing(),
            "rpyc": lambda: rpyc.nothing(),
            "rpyc, bound": rpyc.nothing,
            "manager": lambda: manager.nothing(),
            "direct": lambda: direct.nothing(),
        }
        return in_turn(actions, rounds, CALLS)


def measure_array(package: Any, rounds: int, mib: int) -> dict[str, list[float]]:
    """Measure an array in, a number out."""
    array = np.ones(mib * 2**20 // 8)
    warm = np.ones_like(array)
    with manager_peer() as manager:
        actions = {
            "vault": lambda: package.total(array),
            "copy": array.copy,
            "copy, warm": lambda: np.copyto(warm, array),
            "direct": lambda: Peer().total(array),
        }
        result = in_turn(actions, rounds)
        return result | in_turn({"manager": lambda: manager.total(array)}, 2)


def table(rows: int, text: str) -> Any:
    """Return a table with numbers, texts, categories and times."""
    source = np.random.default_rng(0)
    names = np.array([f"customer-{number}" for number in range(rows // 20)], dtype=object)
    kinds = [f"kind-{number}" for number in range(20)]
    return pd.DataFrame(
        {
            "number": np.arange(rows),
            "amount": source.random(rows),
            "name": pd.Series(names[source.integers(0, len(names), rows)], dtype=text),
            "kind": pd.Categorical.from_codes(source.integers(0, len(kinds), rows), kinds),
            "when": pd.date_range("2020", periods=rows, freq="s"),
        }
    )


def measure_table(package: Any, rounds: int, rows: int, text: str) -> dict[str, list[float]]:
    """Measure a table in, a number out."""
    frame = table(rows, text)
    with manager_peer() as manager:
        actions = {
            "vault": lambda: package.rows(frame),
            "manager": lambda: manager.rows(frame),
            "direct": lambda: Peer().rows(frame),
        }
        return in_turn(actions, rounds)


def measure_load(shell: Any, file: str, name: str, flags: str) -> float:
    """Measure `%load_encrypted` once; a spare vault waits."""
    seconds = timed(lambda: shell.run_line_magic("load_encrypted", f"{file} as {name}{flags}"))
    shell.run_line_magic("unload_encrypted", name)
    return seconds
