"""Calls into an encrypted package, against RPyC, multiprocessing.managers and a direct call.

    python -m benchmarks.vault_call [--rounds 7] [--mib 1024] [--rows 1000000] [--json]

A local enclave of this run's own, a kernel in it, and a package that its owner encrypted: all that
is measured goes through the real supervisor, the real vault and the client in the notebook's
process. Medians; ratios are what counts. Exits with 1 if a goal is missed.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks.own_enclave import evaluate, kernel_in, own_enclave, publish
from benchmarks.package_crypto import KEY, make_source, seal, unseal_file

__all__ = ["Row", "main"]

SPARE_S: Final = 2.0
"""How long a spare vault gets to be ready; as in the cells."""
CELLS: Final = Path(__file__).with_name("vault_call_cells.py")
MANIFEST: Final = """
[package]
name = "bench"
publisher = "Benchmark"
module = "bench"
[exports.functions]
nothing = "nothing()"
total = "total(array)"
rows = "rows(frame)"
"""
SOURCE: Final = '''
"""What is measured: as `Peer` in the notebook's cells."""
import numpy as np

def nothing():
    pass

def total(array):
    return float(array.sum())

def rows(frame):
    return len(frame)
'''


@dataclass(frozen=True)
class Row:
    """One measurement: ours and the peer's median seconds, and the goal for one of the numbers.

    Attributes:
        name: What was done.
        ours: Through the vault.
        peer: The peer's; None where a time alone is the goal.
        ratio: Ours in the peer's, the median of the rounds': the machine's other load hits both.
        against: Who the peer is.
        goal: In words; empty for none.
        met: Whether it is met; True where there is none.
    """

    name: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    against: str = ""
    goal: str = ""
    met: bool = True


def _compare(
    name: str,
    ours: list[float],
    peer: list[float],
    against: str,
    goal: tuple[float, str] | None = None,
) -> Row:
    """Return a row; `goal` is the largest ratio accepted, and how to say it."""
    ratio = statistics.median(our / their for our, their in zip(ours, peer, strict=False))
    met = goal is None or ratio <= goal[0]
    words = "" if goal is None else goal[1]
    medians = statistics.median(ours), statistics.median(peer)
    return Row(name, *medians, ratio, against, words, met)


def _limit(name: str, ours: list[float], limit_s: float, words: str) -> Row:
    middle = statistics.median(ours)
    return Row(name, middle, goal=words, met=middle <= limit_s)


_THREE_TIMES: Final = (1 / 3, "at least 3x faster")


def _make_package(folder: Path) -> Path:
    folder.mkdir()
    (folder / "enclave.toml").write_text(MANIFEST)
    (folder / "bench.py").write_text(SOURCE)
    return folder


def _measure_calls(client: BlockingKernelClient, options: argparse.Namespace) -> list[Row]:
    rounds, rows = options.rounds, options.rows
    empty = evaluate(client, f"measure_empty(bench, {rounds})")
    array = evaluate(client, f"measure_array(bench, {rounds}, {options.mib})")
    call, name = "empty call", f"{options.mib} MiB of float64 in, their sum out"
    result = [
        _limit(call, empty["vault"], 120e-6, "at most 120 µs"),
        _compare(call, empty["vault"], empty["rpyc"], "RPyC, Unix socket", _THREE_TIMES),
        _compare(call, empty["vault"], empty["rpyc, bound"], "RPyC, function fetched before"),
        _compare(call, empty["vault"], empty["manager"], "multiprocessing.managers"),
        _compare(call, empty["vault"], empty["direct"], "direct call"),
        _compare(name, array["vault"], array["copy"], "array.copy()", (3.0, "at most 3x as long")),
        _compare(name, array["vault"], array["copy, warm"], "copy into memory in use"),
        _compare(name, array["vault"], array["direct"], "direct call"),
        _compare(name, array["vault"], array["manager"], "multiprocessing.managers"),
    ]
    peer = "multiprocessing.managers (pickle)"
    for text, column in (("str", "texts as str"), ("object", "texts as objects")):
        figures = evaluate(client, f"measure_table(bench, {rounds}, {rows}, {text!r})")
        goal = _THREE_TIMES if text == "str" else None
        name = f"DataFrame of {rows:,} rows, {column}"
        result.append(_compare(name, figures["vault"], figures["manager"], peer, goal))
    return result


def _measure_loads(
    client: BlockingKernelClient, options: argparse.Namespace, folder: Path
) -> list[Row]:
    """Measure loading, and between the loads what decrypting alone takes."""
    size = options.mib * 2**20
    warm = memoryview(bytearray(size))
    times: dict[str, list[float]] = {"bare": [], "warm": [], "small": [], "large": []}
    with _memory_like_a_vaults(folder / "memory") as new_memory:
        for number in range(options.rounds + 1):
            for name in times:
                if name in ("small", "large"):
                    call = f"measure_load(get_ipython(), '{name}.encrypted', '{name}')"
                    seconds = evaluate(client, call)
                else:
                    # As long as before a load: a hypervisor takes back memory that nobody uses,
                    # and new memory then has its price.
                    time.sleep(SPARE_S)
                    begin = time.perf_counter()
                    unseal_file(folder / "bare", warm if name == "warm" else new_memory(size))
                    seconds = time.perf_counter() - begin
                if number:
                    times[name].append(seconds)
    name = f"%load_encrypted, {options.mib} MiB package"
    goal = (1.5, "at most 1.5x as long")
    small = "%load_encrypted, small package with numpy"
    return [
        _limit(small, times["small"], 0.4, "at most 0.4 s"),
        _compare(name, times["large"], times["bare"], "decrypting it, to new memory", goal),
        _compare(name, times["large"], times["warm"], "decrypting it, to memory in use"),
    ]


@contextmanager
def _memory_like_a_vaults(folder: Path) -> Iterator[Callable[[int], memoryview]]:
    """Yield what returns new memory of a size: of a file in a tmpfs as a vault's own is.

    Without root, where a vault has none either, anonymous memory.
    """
    if os.geteuid() != 0:
        yield lambda size: memoryview(mmap.mmap(-1, size))
        return
    folder.mkdir()
    options = "huge=within_size,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "bench", str(folder)], check=True)

    def new_memory(size: int) -> memoryview:
        with (folder / "file").open("w+b") as file:
            (folder / "file").unlink()
            file.truncate(size)
            os.posix_fallocate(file.fileno(), 0, size)
            return memoryview(mmap.mmap(file.fileno(), size))

    try:
        yield new_memory
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run(options: argparse.Namespace) -> list[Row]:
    """Measure everything once."""
    with own_enclave() as status, tempfile.TemporaryDirectory(prefix="enclave-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        plan = make_source(folder, options.mib)
        seal(plan, folder / "bare", key=KEY)
        publish(status, folder / "source", folder / "large.encrypted")
        (folder / "source/weights.bin").unlink()
        publish(status, _make_package(folder / "small"), folder / "small.encrypted")
        with kernel_in(folder) as client:
            evaluate(client, "1", CELLS.read_text())
            rows = _measure_loads(client, options, folder)
            evaluate(client, "1", "%load_encrypted small.encrypted as bench")
            return [*_measure_calls(client, options), *rows]


def table(rows: list[Row]) -> str:
    """Return `rows` as lines of text."""
    lines = [f"{'':46}{'vault':>11}{'peer':>11}{'ratio':>8}  peer and goal"]
    for row in rows:
        peer = "" if row.peer is None else _shown(row.peer)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        verdict = f"{row.goal} {'✓' if row.met else '✗'}" if row.goal else ""
        words = ": ".join(part for part in (row.against, verdict) if part)
        lines.append(f"{row.name:46}{_shown(row.ours):>11}{peer:>11}{ratio:>8}  {words}")
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement (default 7)")
    parser.add_argument("--mib", type=int, default=1024, help="size of array and large package")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the DataFrame")
    parser.add_argument("--json", action="store_true", help="seconds as JSON")
    options = parser.parse_args()
    rows = run(options)
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
