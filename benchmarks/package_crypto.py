"""Package encryption and decryption against `openssl speed` in the same run, on one core.

    python benchmarks/package_crypto.py [--mib 256] [--runs 7] [--json]

A package with one large file, as weights are, goes from a tmpfs file through the shipped code:
encrypted to a file as `enclave-owner` does (without KMS), decrypted to memory as the vault does:
once with the ciphertext in memory, as it arrives over a socket, once read from the file.
Peak memory is of a fresh process, above what it had before it started and above the plaintext's
destination. Exits with 1 if a goal is missed.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from enclave_encryption.package_encryption import make_label
from enclave_encryption.package_plan import PackagePlan, plan_package
from enclave_encryption.source_tree import READ_BYTES as FILE_READ_BYTES
from enclave_protocol.chunked_encryption import Encryptor
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_archive import FileStart, encode_archive
from enclave_protocol.package_header import decode_header, encode_header
from enclave_protocol.package_reader import READ_BYTES, PackageReader, read_package

MIB: Final = 2**20
_GOALS: Final = {"encrypt": None, "decrypt": 0.6, "decrypt, file": None}
GOAL_MEMORY_MIB: Final = 64.0
KEY: Final = bytes(range(32))
ARN: Final = "arn:aws:kms:eu-central-1:123456789012:key/benchmark"


@dataclass(frozen=True)
class Result:
    """One direction: median rate, its ratio to openssl's, and memory of a fresh process."""

    name: str
    mib_per_s: float
    ratio: float
    goal: float | None
    memory_mib: float


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=256, help="size of the package's file")
    parser.add_argument("--runs", type=int, default=7, help="runs per direction, at least 5")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--memory-of", choices=list(_GOALS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.memory_of:
        print(_memory_mib(options.memory_of, options.folder, options.mib))
        return 0
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        folder = Path(name)
        make_source(folder, options.mib)
        openssl, results = _measure(folder, options.mib, max(options.runs, 5))
    ok = all(
        result.ratio >= (result.goal or 0) and result.memory_mib <= GOAL_MEMORY_MIB
        for result in results
    )
    if options.json:
        document = {
            "mib": options.mib,
            "openssl_mib_per_s": openssl,
            "results": [asdict(result) for result in results],
            "memory_goal_mib": GOAL_MEMORY_MIB,
            "ok": ok,
        }
        print(json.dumps(document, indent=1))
    else:
        _print_table(openssl, results)
    return 0 if ok else 1


def _measure(folder: Path, mib: int, runs: int) -> tuple[float, list[Result]]:
    plan = plan_package(folder / "source")
    destination = memoryview(bytearray(mib * MIB))
    seal(plan, folder / "package")
    sealed = (folder / "package").read_bytes()
    tasks: dict[str, Callable[[], None]] = {
        "encrypt": lambda: seal(plan, folder / "other"),
        "decrypt": lambda: _decrypt_memory(sealed, destination),
        "decrypt, file": lambda: unseal_file(folder / "package", destination),
    }
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    baseline: list[float] = []
    for task in tasks.values():
        task()  # caches warm, pages there
    for _ in range(runs):  # interleaved, so that a slow phase of the machine hits all alike
        baseline.append(_openssl_mib_per_s())
        for name, task in tasks.items():
            # Processor time, system calls included: what `openssl speed` counts, too.
            started = time.process_time()
            task()
            rates[name].append(mib / (time.process_time() - started))
    if destination != memoryview((folder / "source/weights.bin").read_bytes()):
        raise SystemExit("decryption gave something else")
    openssl = statistics.median(baseline)
    results = []
    for name, values in rates.items():
        rate = statistics.median(values)
        memory = _memory_in_fresh_process(name, folder, mib)
        # Pairs of one round: the machine's other load hits both of them.
        ratio = statistics.median(r / b for r, b in zip(values, baseline, strict=True))
        results.append(Result(name, rate, ratio, _GOALS[name], memory))
    return openssl, results


def make_source(folder: Path, mib: int) -> PackagePlan:
    """Write the folder of a package with one file of `mib` MiB, and return its plan."""
    source = folder / "source"
    source.mkdir()
    (source / "enclave.toml").write_text('[package]\nname = "benchmark"\npublisher = "Benchmark"\n')
    with (source / "weights.bin").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    return plan_package(source)


def seal(plan: PackagePlan, target: Path, *, key: bytes = KEY) -> None:
    """Encrypt a package to a file as `enclave-owner` does, without KMS."""
    header = encode_header(make_label(plan, key), KeySlot(ARN, b"wrapped"))
    encryptor = Encryptor(key, decode_header(header).context)
    buffer = memoryview(bytearray(FILE_READ_BYTES))
    sealed = memoryview(bytearray(encryptor.update_size(FILE_READ_BYTES)))
    files = {file.entry.path: file for file in plan.tree.files}
    entries = [file.entry for file in plan.tree.files]
    with target.open("wb", buffering=0) as out:
        out.write(header)
        for piece in encode_archive(entries, lambda e: plan.tree.read(files[e.path], buffer)):
            out.write(sealed[: encryptor.update_into(piece, sealed)])
        out.write(encryptor.finalize())


def _decrypt_memory(sealed: bytes, destination: memoryview) -> None:
    header = decode_header(sealed)
    reader = PackageReader(header, KEY, place=_into(destination))
    body = memoryview(sealed)[len(header.raw) :]
    for start in range(0, len(body), READ_BYTES):
        for _ in reader.feed(body[start : start + READ_BYTES]):
            pass
    for _ in reader.finish():
        pass


def unseal_file(path: Path, destination: memoryview, *, key: bytes = KEY) -> None:
    """Decrypt a package of `make_source`; its one file goes to `destination`."""
    with path.open("rb", buffering=0) as stream:
        for _ in read_package(stream, lambda _: bytearray(key), place=_into(destination)):
            pass


def _into(destination: memoryview) -> Callable[[FileStart], memoryview | None]:
    return lambda start: destination if start.path == "weights.bin" else None


def _memory_mib(name: str, folder: Path, mib: int) -> float:
    """Return the peak memory of one run above the process before it and its destination."""
    plan = plan_package(folder / "source")
    destination = memoryview(bytearray(0 if name == "encrypt" else mib * MIB))
    destination[:] = bytes(len(destination))  # resident before, so that it does not count
    sealed = (folder / "package").read_bytes() if name == "decrypt" else b""
    before = _reset_peak_mib()
    if name == "encrypt":
        seal(plan, folder / "other")
    elif name == "decrypt":
        _decrypt_memory(sealed, destination)
    else:
        unseal_file(folder / "package", destination)
    return _peak_mib() - before


def _reset_peak_mib() -> float:
    """Make the peak what is resident now, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(match[1]) / 1024


def _memory_in_fresh_process(name: str, folder: Path, mib: int) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--mib", str(mib)]
    answer = subprocess.run(
        [*command, "--folder", str(folder)], check=True, capture_output=True, text=True
    )
    return float(answer.stdout)


def _openssl_mib_per_s() -> float:
    command = ["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", "16384", "-seconds", "1"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    match = re.search(r"AES-256-GCM\s+([\d.]+)k", answer.stdout, re.IGNORECASE)
    if match is None:
        raise SystemExit("openssl speed printed no rate for AES-256-GCM")
    return float(match[1]) * 1000 / MIB


def _fast_folder() -> str | None:
    """Return a tmpfs, so that the disk is not what is measured; None for the default."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def _print_table(openssl: float, results: list[Result]) -> None:
    table = Table(title="Packages, one core")
    for column in ("", "MiB/s", "of openssl", "goal", "memory, MiB", "goal"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("openssl speed, AES-256-GCM, 16 KiB", f"{openssl:.0f}", "1.00", "", "", "")
    for result in results:
        goal = "" if result.goal is None else f">= {result.goal:.2f}"
        memory, limit = f"{result.memory_mib:.1f}", f"<= {GOAL_MEMORY_MIB:.0f}"
        rate, ratio = f"{result.mib_per_s:.0f}", f"{result.ratio:.2f}"
        table.add_row(result.name, rate, ratio, goal, memory, limit)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
