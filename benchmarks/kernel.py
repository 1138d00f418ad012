"""Measures kernel `enclave` against the stock ipykernel, in one run, kernel by kernel in turn.

Both are driven through jupyter_client's KernelManager in exactly the same way. Ratios are what
counts: the seconds are this machine's. Run as `python benchmarks/kernel.py [--json]`.

Ours encrypts its channels with CurveZMQ, whose price per byte is libzmq's; the stock kernel does
when it is told to. They are compared doing the same: both do (the default), or `--encryption none`
of them. `--encryption as-is` compares them as they come.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

__all__ = ["MEASURES", "TIMEOUT_S", "Measure", "kernel_manager", "measure_once"]

BINARY_BYTES = 64 * 1024 * 1024
ROUND_TRIPS = 40
TIMEOUT_S = 60.0
# USS, as psutil counts it; read by the kernel itself, which works the same behind any wall.
PRIVATE_BYTES = """sum(
    int(line.split()[1]) * 1024
    for line in open('/proc/self/smaps_rollup')
    if line.startswith(('Private_Clean', 'Private_Dirty'))
)"""


@dataclass(frozen=True)
class Measure:
    """One row of the result: what is measured, in which unit, and the goal as a ratio to stock."""

    name: str
    unit: str
    scale: float
    goal: float


MEASURES = {
    "launch": Measure("launch to kernel_info_reply", "ms", 1e3, 0.35),
    "round_trip": Measure("`pass` round trip", "ms", 1e3, 1.15),
    "binary": Measure("64 MiB binary output", "ms", 1e3, 1.5),
    "memory": Measure("private memory, idle kernel", "MiB", 1 / 2**20, 0.6),
}


class BenchmarkError(Exception):
    """A kernel did not do what is measured."""


ENCRYPTION = ("both", "none", "as-is")


def kernel_manager(kernel_name: str, encryption: str) -> KernelManager:
    """Return the manager of a kernel whose channels are encrypted as asked for."""
    manager = KernelManager(kernel_name=kernel_name)
    if encryption == "both" and manager.kernel_spec is not None:
        # Kernelspecs of earlier installations of ipykernel do not say that it can.
        manager.kernel_spec.metadata["supported_encryption"] = ["curve"]
        manager.transport_encryption = "required"
    elif encryption == "none" and manager.kernel_spec is not None:
        provisioner = manager.kernel_spec.metadata.get("kernel_provisioner", {})
        provisioner["config"] = {"transport_encryption": "disabled"}
    return manager


def measure_once(kernel_name: str, encryption: str = "both") -> dict[str, float]:
    """Start one kernel, measure everything in MEASURES once, and shut it down.

    Args:
        kernel_name: As Jupyter knows it.
        encryption: One of ENCRYPTION.

    Returns:
        Seconds, and bytes for `memory`; `round_trip` is the median of 40.

    Raises:
        BenchmarkError: The kernel answered with an error or lost output.
    """
    manager = kernel_manager(kernel_name, encryption)
    begin = time.perf_counter()
    manager.start_kernel(stderr=subprocess.DEVNULL)  # the stock kernel warns about TCP
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        request = client.kernel_info()
        _reply(client, request)
        launch = time.perf_counter() - begin
        client.wait_for_ready(timeout=TIMEOUT_S)
        trips = [_timed(lambda: _execute(client, "pass")) for _ in range(ROUND_TRIPS)]
        memory = float(_execute(client, "", {"bytes": PRIVATE_BYTES})["bytes"])
        _execute(client, f"import comm, os\npayload = os.urandom({BINARY_BYTES})")
        binary = _timed(lambda: _binary_output(client))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return {
        "launch": launch,
        "round_trip": statistics.median(trips),
        "binary": binary,
        "memory": memory,
    }


def _timed(action: Callable[[], object]) -> float:
    """Return how many seconds `action` takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _reply(client: BlockingKernelClient, request: str) -> dict[str, Any]:
    """Return the content of the reply to `request` on the shell channel."""
    while True:
        message = client.get_shell_msg(timeout=TIMEOUT_S)
        if message["parent_header"].get("msg_id") == request:
            content: dict[str, Any] = message["content"]
            return content


def _outputs(client: BlockingKernelClient, request: str) -> Iterator[dict[str, Any]]:
    """Yield what `request` publishes, until the kernel is idle again."""
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT_S)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return
        yield message


def _execute(
    client: BlockingKernelClient, code: str, expressions: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Run `code` until its reply is here and the kernel is idle; returns the expressions' text."""
    request = client.execute(code, user_expressions=dict(expressions or {}), store_history=False)
    content = _reply(client, request)
    for _ in _outputs(client, request):
        continue
    results = content.get("user_expressions", {})
    failed = [result for result in results.values() if result["status"] != "ok"]
    if content["status"] != "ok" or failed:
        raise BenchmarkError(f"the kernel answered {failed or content} to {code!r}")
    return {name: result["data"]["text/plain"] for name, result in results.items()}


def _binary_output(client: BlockingKernelClient) -> None:
    """Have the kernel publish `payload` as one binary buffer and receive it."""
    code = "comm.create_comm(target_name='benchmark', buffers=[payload]);"
    request = client.execute(code, store_history=False)
    sizes = [
        sum(memoryview(buffer).nbytes for buffer in message["buffers"])
        for message in _outputs(client, request)
        if message["msg_type"] == "comm_open"
    ]
    _reply(client, request)
    if sizes != [BINARY_BYTES]:
        raise BenchmarkError(f"{sizes} bytes arrived, expected {BINARY_BYTES}")


@contextmanager
def enclave(kernel_name: str) -> Iterator[None]:
    """Keep an enclave of this run's own up; for a kernel that is not ours, do nothing."""
    if not kernel_name.startswith("enclave"):
        yield
        return
    command = str(Path(sys.executable).parent / "enclave")
    with tempfile.TemporaryDirectory(prefix="enclave-bench-", dir="/tmp") as runtime:
        os.environ["ENCLAVE_RUNTIME_DIR"] = runtime
        try:
            subprocess.run([command, "up"], check=True, stdout=sys.stderr)
            yield
        finally:
            subprocess.run([command, "down"], check=True, stdout=sys.stderr)


def run(stock: str, ours: str, rounds: int, encryption: str) -> dict[str, dict[str, float]]:
    """Return per measure the medians of both kernels, their ratio and the goal."""
    samples: dict[str, list[dict[str, float]]] = {stock: [], ours: []}
    names = [stock, ours]
    for number in range(rounds + 1):
        for name in names:
            sample = measure_once(name, encryption)
            if number:  # the first round only warms caches up
                samples[name].append(sample)
        names.reverse()
    result = {}
    for key, measure in MEASURES.items():
        medians = [statistics.median(s[key] for s in samples[name]) for name in (stock, ours)]
        ratio = medians[1] / medians[0]
        result[key] = {"stock": medians[0], "enclave": medians[1], "ratio": ratio}
        result[key]["goal"] = measure.goal
    return result


def table(result: Mapping[str, Mapping[str, float]]) -> str:
    """Return `result` as lines of text."""
    lines = [f"{'':30}{'stock':>12}{'enclave':>12}{'ratio':>8}   goal"]
    for key, measure in MEASURES.items():
        row = result[key]
        figures = [f"{row[who] * measure.scale:.1f} {measure.unit}" for who in ("stock", "enclave")]
        verdict = "✓" if row["ratio"] <= row["goal"] else "✗"
        lines.append(
            f"{measure.name:30}{figures[0]:>12}{figures[1]:>12}{row['ratio']:>7.2f}x"
            f"   at most {row['goal']:.2f}x {verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stock", default="python3", help="kernel to compare with")
    parser.add_argument("--kernel", default="enclave", help="kernel to measure")
    parser.add_argument("--rounds", type=int, default=9, help="kernels of each (default 9)")
    parser.add_argument(
        "--encryption",
        choices=ENCRYPTION,
        default=ENCRYPTION[0],
        help="of the channels",
    )
    parser.add_argument("--json", action="store_true", help="seconds, bytes and ratios as JSON")
    arguments = parser.parse_args()
    with enclave(arguments.kernel):
        result = run(arguments.stock, arguments.kernel, arguments.rounds, arguments.encryption)
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    return 0 if all(row["ratio"] <= row["goal"] for row in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
