"""The egress proxy against a plain relay of sockets, in the same run.

    python -m benchmarks.proxy [--mib 512] [--rounds 7] [--json]

Both carry the same bytes from one process to another over loopback. "Proxy" is all of the way of a
notebook: a listener as the supervisor has it, the stream to the gateway (a Unix socket, as in the
local backend), the proxy, the server; each side in a process of its own. "Relay" is the same two
hops with nothing but `enclave_protocol.relay`, and connects to the second hop directly, where the
enclave announces a connection and the gateway opens the stream.
Exits with 1 if a goal is missed.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from enclave_kernel.supervisor.egress import Egress, EgressListener
from enclave_parent_gateway.egress.addresses import Address, AddressPolicy
from enclave_parent_gateway.egress.allowlist import Allowlist, Rule
from enclave_parent_gateway.egress.connection_log import ConnectionLog
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.proxy import EgressProxy
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import EgressWanted, Envelope, OpenEgress, decode_envelope, encode
from enclave_protocol.relay import relay

MIB: Final = 2**20
GOAL_RATE: Final = 0.8
"""Of the relay's. Behind its checks the proxy is the same pump."""
GOAL_OPEN_MS: Final = 10.0
"""Added to opening a connection; the network's own round trip is of that size."""

_PORTION: Final = 256 * 1024


@dataclass(frozen=True)
class Result:
    """Medians of the rounds."""

    name: str
    download_mib_per_s: float
    upload_mib_per_s: float
    open_ms: float
    download_ratio: float
    upload_ratio: float


# The server: sends or swallows as many bytes as it is told


async def _serve_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        order = (await reader.readline()).split()
        count = int(order[1])
        if order[0] == b"download":
            block = bytes(_PORTION)
            for _ in range(count // _PORTION):
                writer.write(block)
                await writer.drain()
        elif order[0] == b"upload":
            while count > 0:
                count -= len(await reader.read(_PORTION))
            writer.write(b"!")
            await writer.drain()
        else:
            writer.write(b"!")
            await writer.drain()
    finally:
        writer.close()


# The two hops, one process each. Both listen on Unix sockets below `folder` but for the last


async def _listen(sock: socket.socket, carry: Callable[[socket.socket], Awaitable[None]]) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        client, _ = await loop.sock_accept(sock)
        client.setblocking(False)
        task = asyncio.ensure_future(carry(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _connected(path: Path | tuple[str, int]) -> socket.socket:
    loop = asyncio.get_running_loop()
    family = socket.AF_UNIX if isinstance(path, Path) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    await loop.sock_connect(sock, str(path) if isinstance(path, Path) else path)
    return sock


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(512)
    return sock


async def _relay_inner(sock: socket.socket, folder: Path) -> None:
    async def carry(client: socket.socket) -> None:
        await relay(client, await _connected(folder / "relay"))

    await _listen(sock, carry)


async def _relay_outer(folder: Path, port: int) -> None:
    async def carry(client: socket.socket) -> None:
        await relay(client, await _connected(("127.0.0.1", port)))

    await _listen(_unix(folder / "relay"), carry)


async def _proxy_inner(sock: socket.socket, folder: Path) -> None:
    """The supervisor: announces on a control connection, takes streams on another socket."""
    control = await _connected(folder / "control")
    loop = asyncio.get_running_loop()

    def announce(wanted: EgressWanted) -> bool:
        control.send(encode_frame(encode(Envelope(wanted))))
        return True

    egress = Egress(announce)

    async def take(stream: socket.socket) -> None:
        data = await loop.sock_recv(stream, 4 + len(encode(OpenEgress("0" * 32))))
        (payload,) = FrameDecoder().feed(data)
        egress.take(_open_egress(payload), stream)

    sock.setblocking(False)
    listener = EgressListener(egress, sock, "ab-cd")
    try:
        await _listen(_unix(folder / "streams"), take)
    finally:
        listener.close()


def _open_egress(payload: bytes) -> OpenEgress:
    from enclave_protocol.messages import decode_open

    opened = decode_open(payload)
    if not isinstance(opened, OpenEgress):
        raise TypeError("not an egress stream")
    return opened


async def _proxy_outer(folder: Path, port: int) -> None:
    """The gateway: hears of a connection, opens a stream, serves the proxy on it."""

    async def resolve(_name: str) -> tuple[Address, ...]:
        return (ip_address("127.0.0.1"),)

    async def suggest(destination: Destination) -> str:
        return str(destination)

    proxy = EgressProxy(
        allowlist=lambda: Allowlist([Rule(f"server.example:{port}")]),
        addresses=AddressPolicy(reachable=[ip_network("127.0.0.0/8")]),
        resolve=resolve,
        log=ConnectionLog(folder / "log"),
        suggest=suggest,
    )
    tasks: set[asyncio.Task[None]] = set()

    async def stream(wanted: EgressWanted) -> None:
        sock = await _connected(folder / "streams")
        sock.send(encode_frame(encode(OpenEgress(wanted.ticket))))
        await proxy.serve(sock, wanted.kernel_id)

    async def control(sock: socket.socket) -> None:
        decoder = FrameDecoder()
        while data := await asyncio.get_running_loop().sock_recv(sock, 65536):
            for payload in decoder.feed(data):
                body = decode_envelope(payload).body
                if isinstance(body, EgressWanted):
                    task = asyncio.create_task(stream(body))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    await _listen(_unix(folder / "control"), control)


def _process(work: Callable[..., Awaitable[None]], ready: Event, *arguments: object) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(work(*arguments))
        await asyncio.sleep(0.1)
        ready.set()
        await task

    asyncio.run(run())


async def _server(sock: socket.socket) -> None:
    async with await asyncio.start_server(_serve_bytes, sock=sock) as made:
        await made.serve_forever()


# What is measured


def _open(port: int, target: str | None) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    if target is not None:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        if not sock.recv(1000).startswith(b"HTTP/1.1 200 "):
            raise RuntimeError("the proxy refused")
    return sock


def _download(port: int, target: str | None, count: int) -> float:
    buffer = bytearray(_PORTION)
    with _open(port, target) as sock:
        began = time.perf_counter()
        sock.sendall(b"download %d\n" % count)
        left = count
        while left:
            left -= sock.recv_into(buffer) or _short()
        return count / MIB / (time.perf_counter() - began)


def _short() -> int:
    raise RuntimeError("the stream ended early")


def _upload(port: int, target: str | None, count: int) -> float:
    block = bytes(_PORTION)
    with _open(port, target) as sock:
        began = time.perf_counter()
        sock.sendall(b"upload %d\n" % count)
        for _ in range(count // _PORTION):
            sock.sendall(block)
        if sock.recv(1) != b"!":
            _short()
        return count / MIB / (time.perf_counter() - began)


def _open_time(port: int, target: str | None, tries: int = 50) -> float:
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        with _open(port, target) as sock:
            sock.sendall(b"hello 0\n")
            if sock.recv(1) != b"!":
                _short()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=512, help="bytes of one transfer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listeners = {
            what: socket.create_server(("127.0.0.1", 0), backlog=512)
            for what in ("server", "relay", "proxy")
        }
        ports = {what: sock.getsockname()[1] for what, sock in listeners.items()}
        works: list[tuple[Callable[..., Awaitable[None]], tuple[object, ...]]] = [
            (_server, (listeners["server"],)),
            (_relay_outer, (folder, ports["server"])),
            (_relay_inner, (listeners["relay"], folder)),
            (_proxy_outer, (folder, ports["server"])),
            (_proxy_inner, (listeners["proxy"], folder)),
        ]
        processes = []
        for work, arguments in works:
            ready = context.Event()
            process = context.Process(target=_process, args=(work, ready, *arguments), daemon=True)
            process.start()
            processes.append(process)
            ready.wait(10)
        try:
            results = _measure(ports, options.mib * MIB, options.rounds)
        finally:
            for process in processes:
                process.terminate()
                process.join()
    met = _goals_met(results)
    if options.json:
        print(json.dumps({"results": [asdict(result) for result in results], "goals_met": met}))
    else:
        _show(results, met)
    return 0 if met else 1


def _measure(ports: dict[str, int], count: int, rounds: int) -> list[Result]:
    ways = {"relay": None, "proxy": f"server.example:{ports['server']}"}
    figures: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, target in ways.items():
            port = ports[way]
            taken = (
                _download(port, target, count),
                _upload(port, target, count),
                _open_time(port, target),
            )
            if number:  # the first round warms up
                figures[way].append(taken)
    plain = figures["relay"]
    results = []
    for way, own in figures.items():
        medians = [statistics.median(values) for values in zip(*own, strict=True)]
        ratios = [
            statistics.median(mine[i] / theirs[i] for mine, theirs in zip(own, plain, strict=True))
            for i in range(2)
        ]
        results.append(Result(way, *medians, *ratios))
    return results


def _goals_met(results: list[Result]) -> bool:
    plain, proxy = results
    rates = min(proxy.download_ratio, proxy.upload_ratio)
    return rates >= GOAL_RATE and proxy.open_ms - plain.open_ms <= GOAL_OPEN_MS


def _show(results: list[Result], met: bool) -> None:
    table = Table(title=f"Egress, {os.cpu_count()} cores")
    for title in ("", "download MiB/s", "upload MiB/s", "open and first byte", "of the relay"):
        table.add_column(title)
    for result in results:
        table.add_row(
            result.name,
            f"{result.download_mib_per_s:.0f}",
            f"{result.upload_mib_per_s:.0f}",
            f"{result.open_ms:.2f} ms",
            f"{result.download_ratio:.2f} / {result.upload_ratio:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"Goals: at least {GOAL_RATE:g} of the relay's rate, at most {GOAL_OPEN_MS:g} ms more to "
        f"open: {'met' if met else 'MISSED'}"
    )


if __name__ == "__main__":
    sys.exit(main())
