"""Calls into an encrypted package, against RPyC, multiprocessing.managers and a direct call.

    python -m benchmarks.vault_call [--rounds 7] [--mib 1024] [--rows 1000000] [--json]

A local enclave of this run's own, a kernel in it, and a package that its owner encrypted: all that
is measured goes through the real supervisor, the real vault and the client in the notebook's
process. Medians; ratios are what counts. Exits with 1 if a goal is missed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks.own_enclave import evaluate, kernel_in, own_enclave, publish
from benchmarks.package_load import measure_loads, prepare_loads
from benchmarks.rows import Row, compare, limit, table

__all__ = ["main"]

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
        limit(call, empty["vault"], 120e-6, "at most 120 µs"),
        compare(call, empty["vault"], empty["rpyc"], "RPyC, Unix socket", _THREE_TIMES),
        compare(call, empty["vault"], empty["rpyc, bound"], "RPyC, function fetched before"),
        compare(call, empty["vault"], empty["manager"], "multiprocessing.managers"),
        compare(call, empty["vault"], empty["direct"], "direct call"),
        compare(name, array["vault"], array["copy"], "array.copy()", (3.0, "at most 3x as long")),
        compare(name, array["vault"], array["copy, warm"], "copy into memory in use"),
        compare(name, array["vault"], array["direct"], "direct call"),
        compare(name, array["vault"], array["manager"], "multiprocessing.managers"),
    ]
    peer = "multiprocessing.managers (pickle)"
    for text, column in (("str", "texts as str"), ("object", "texts as objects")):
        figures = evaluate(client, f"measure_table(bench, {rounds}, {rows}, {text!r})")
        goal = _THREE_TIMES if text == "str" else None
        name = f"DataFrame of {rows:,} rows, {column}"
        result.append(compare(name, figures["vault"], figures["manager"], peer, goal))
    return result


def run(options: argparse.Namespace) -> list[Row]:
    """Measure everything once."""
    with own_enclave() as status, tempfile.TemporaryDirectory(prefix="enclave-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        loads = prepare_loads(status, folder, options.mib)
        publish(status, _make_package(folder / "small"), folder / "small.encrypted")
        with kernel_in(folder) as client:
            evaluate(client, "1", CELLS.read_text())
            rows = measure_loads(client, loads, options.rounds)
            evaluate(client, "1", "%load_encrypted small.encrypted as bench")
            return [*_measure_calls(client, options), *rows]


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
