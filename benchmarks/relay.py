"""The relay of Jupyter's channels: its throughput, and the latency that it adds.

    python -m benchmarks.relay [--mib 64] [--rounds 9] [--json]

The heartbeat channel answers with what it was sent, in C, whatever the kernel does: what is
measured is the way, from the notebook's server through the gateway and the supervisor to the
kernel's process and back. Beside it the stock ipykernel, which has no way to go, and the same with
neither encrypting: CurveZMQ's price is libzmq's, and hides the relay's. There is no goal: what a
user feels has one in `benchmarks.kernel`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import zmq

from benchmarks.kernel import TIMEOUT_S, kernel_manager
from benchmarks.own_enclave import BenchmarkError, own_enclave

__all__ = ["Figures", "main"]

_MIB: Final = 2**20
_TRIPS: Final = 500
_NAMES: Final = ("python3", "enclave")
_ENCRYPTION: Final = ("both", "none")


@dataclass(frozen=True)
class Figures:
    """Medians of one kind of kernel.

    Attributes:
        kernel: Its kernelspec's name.
        encryption: "both" or "none" of the two kernels encrypt.
        round_trip_s: Of one byte, in seconds.
        mib_per_s: Of one large message, there and back: so many MiB/s each way.
    """

    kernel: str
    encryption: str
    round_trip_s: float
    mib_per_s: float


@contextmanager
def _heartbeat(name: str, encryption: str) -> Iterator[zmq.Socket[bytes]]:
    """Keep a kernel running; yield a socket of its heartbeat channel."""
    manager = kernel_manager(name, encryption)
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        client.wait_for_ready(timeout=TIMEOUT_S)
        with manager.connect_hb() as heartbeat:
            heartbeat.rcvtimeo = int(TIMEOUT_S * 1000)
            heartbeat.linger = 0
            yield heartbeat
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _echo(heartbeat: Any, payload: bytes) -> float:
    begin = time.perf_counter()
    heartbeat.send(payload, copy=False)
    frame = heartbeat.recv(copy=False)
    seconds = time.perf_counter() - begin
    if len(frame.buffer) != len(payload):
        raise BenchmarkError(f"{len(frame.buffer)} bytes came back, expected {len(payload)}")
    return seconds


def run(options: argparse.Namespace) -> list[Figures]:
    """Measure both kinds in turn: a slow phase of the machine hits both."""
    large = bytes(options.mib * _MIB)
    result = []
    with own_enclave(), ExitStack() as stack:
        for encryption in _ENCRYPTION:
            sockets = {name: stack.enter_context(_heartbeat(name, encryption)) for name in _NAMES}
            trips: dict[str, list[float]] = {name: [] for name in _NAMES}
            seconds: dict[str, list[float]] = {name: [] for name in _NAMES}
            for number in range(options.rounds + 1):  # the first one warms up
                for name, heartbeat in sockets.items():
                    trip = statistics.median(_echo(heartbeat, b"x") for _ in range(_TRIPS))
                    bulk = _echo(heartbeat, large)
                    if number:
                        trips[name].append(trip)
                        seconds[name].append(bulk)
            for name in _NAMES:
                rate = options.mib / statistics.median(seconds[name])
                result.append(Figures(name, encryption, statistics.median(trips[name]), rate))
    return result


def table(result: list[Figures], mib: int) -> str:
    """Return `result` as lines of text."""
    lines = [f"{'':30}{'stock':>12}{'enclave':>12}"]
    for encryption in _ENCRYPTION:
        stock, ours = (figures for figures in result if figures.encryption == encryption)
        way = "encrypted" if encryption == "both" else "plain"
        added = (ours.round_trip_s - stock.round_trip_s) * 1e6
        lines += [
            f"{f'one byte and back, {way}':30}{stock.round_trip_s * 1e6:>9.0f} µs"
            f"{ours.round_trip_s * 1e6:>9.0f} µs   {added:.0f} µs added",
            f"{f'{mib} MiB and back, {way}':30}{stock.mib_per_s:>6.0f} MiB/s"
            f"{ours.mib_per_s:>6.0f} MiB/s   {ours.mib_per_s / stock.mib_per_s:.2f}x the rate",
        ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=64, help="size of the large message")
    parser.add_argument("--rounds", type=int, default=9, help="of each measurement (default 9)")
    parser.add_argument("--json", action="store_true", help="seconds and MiB/s as JSON")
    options = parser.parse_args()
    result = run(options)
    figures = [asdict(each) for each in result]
    print(json.dumps(figures, indent=2) if options.json else table(result, options.mib))
    return 0


if __name__ == "__main__":
    sys.exit(main())
