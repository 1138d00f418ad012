"""The workspace's mirror against rsync, over a local socket, in the same run.

Type: make bench, or .venv/bin/python -m benchmarks.sync [--size-mib 1024] [--files 10000]

Both bring the same tree from one folder to another in memory (/dev/shm); rsync as a daemon on
127.0.0.1, the mirror's enclave end as a process at a Unix socket (gateway and supervisor,
which carry the stream of a real one, are not in it). Alternating, the best of some rounds of each.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from enclave_parent_gateway.sync.session import MirrorSession
from enclave_protocol.workspace.messages import decode_from_enclave
from enclave_protocol.workspace.stream import MessageStream

_MIB = 2**20
_MEMORY = Path("/dev/shm")  # noqa: S108 (a folder of our own is made in it)
_RSYNCD = """
use chroot = no
pid file = {folder}/rsyncd.pid
[target]
path = {target}
read only = false
{user}
"""


@dataclass(frozen=True)
class Result:
    """One comparison: seconds of the best round of each, and the bound it is held to."""

    what: str
    mirror_s: float
    rsync_s: float
    bound: str
    kept: bool


def main() -> None:
    """Measure, print, and end with 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync", description=__doc__)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=0, help="also bring so many files, once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("rsync") is None:
        sys.exit("rsync is not here; type: .ci/apt-install rsync")
    with tempfile.TemporaryDirectory(prefix="bench-sync-", dir=_MEMORY) as name:
        bench = Bench(Path(name), options.rounds)
        results = [bench.large(options.size_mib), bench.small(options.files)]
        moved = bench.append(options.size_mib)
        sparse_s = bench.sparse()
        many_s = bench.many(options.many) if options.many else None
    report = {
        "results": [asdict(result) for result in results],
        "append_moves_bytes": moved,
        "sparse_1_gib_s": sparse_s,
        "many_files_s": many_s,
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for result in results:
            print(
                f"{result.what}: mirror {result.mirror_s:.2f} s, rsync {result.rsync_s:.2f} s; "
                f"{result.bound}: {'kept' if result.kept else 'NOT KEPT'}"
            )
        print(f"1 MiB appended to {options.size_mib} MiB: {moved / _MIB:.2f} MiB moved (bound 10)")
        print(f"1 GiB of nothing (sparse): {sparse_s:.2f} s")
        if many_s is not None:
            print(f"{options.many} files: {many_s:.1f} s")
    sys.exit(0 if all(result.kept for result in results) and moved < 10 * _MIB else 1)


class Bench:
    """Folders of one run, below `root`."""

    def __init__(self, root: Path, rounds: int) -> None:
        self._root = root
        self._rounds = rounds
        self._source = root / "source"
        self._target = root / "target"

    def large(self, size_mib: int) -> Result:
        """Bring one large file."""
        self._fresh(self._source)
        write_random(self._source / "large.bin", size_mib)
        mirror_s, rsync_s = self._compare()
        return Result(
            f"one file of {size_mib} MiB",
            mirror_s,
            rsync_s,
            "at least half of rsync's rate",
            mirror_s <= 2 * rsync_s,
        )

    def small(self, count: int) -> Result:
        """Bring many small files."""
        self._fresh(self._source)
        write_small(self._source, count)
        mirror_s, rsync_s = self._compare()
        return Result(
            f"{count} files of 2 KiB",
            mirror_s,
            rsync_s,
            "at most 1.5 x rsync's time",
            mirror_s <= 1.5 * rsync_s,
        )

    def append(self, size_mib: int) -> int:
        """Append 1 MiB to a large file that was brought; return the bytes that moved."""
        self._fresh(self._source)
        self._fresh(self._target)
        path = self._source / "large.bin"
        write_random(path, size_mib)
        with self._session() as (session, stream):
            session.first_pass()
            with path.open("ab") as file:
                file.write(os.urandom(_MIB))
            before = stream.sent_bytes + stream.received_bytes
            session.first_pass()
            moved = stream.sent_bytes + stream.received_bytes - before
        self._check()
        return moved

    def sparse(self) -> float:
        """Bring a file of 1 GiB that is one hole."""
        self._fresh(self._source)
        with (self._source / "sparse.bin").open("wb") as file:
            file.truncate(1024 * _MIB)
        return self._timed(self._mirror)

    def many(self, count: int) -> float:
        """Bring very many files, once."""
        self._fresh(self._source)
        write_small(self._source, count)
        return self._timed(self._mirror)

    def _compare(self) -> tuple[float, float]:
        mirror: list[float] = []
        rsync: list[float] = []
        for _ in range(self._rounds):
            mirror.append(self._timed(self._mirror))
            with self._rsync_daemon() as port:
                rsync.append(self._timed(partial(self._rsync, port)))
        return min(mirror), min(rsync)

    def _timed(self, bring: Callable[[], float]) -> float:
        self._fresh(self._target)
        # What was just made has come to rest, for both.
        time.sleep(0.1)
        took = bring()
        self._check()
        return took

    def _check(self) -> None:
        command = ["diff", "-rq", "--exclude=.enclave-sync", str(self._source), str(self._target)]
        subprocess.run(command, check=True)

    @staticmethod
    def _fresh(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    @contextmanager
    def _session(self) -> Iterator[tuple[MirrorSession, MessageStream[object]]]:
        (self._root / "journal").unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        control, its_control = socket.socketpair()
        command = [sys.executable, "-I", "-m", "enclave_kernel.workspace.agent"]
        command += ["--stream", str(theirs.fileno()), "--control", str(its_control.fileno())]
        command += ["--root", str(self._target), "--workspace", "0" * 32]
        agent = subprocess.Popen(command, pass_fds=(theirs.fileno(), its_control.fileno()))
        theirs.close()
        its_control.close()
        stream = MessageStream(ours, decode_from_enclave)
        try:
            session = MirrorSession(
                self._source, self._root / "journal", stream, lambda _progress: None
            )
            yield session, stream  # type: ignore[misc]
            session.close()
        finally:
            stream.close()
            control.close()
            agent.wait(30)

    def _mirror(self) -> float:
        """Return the seconds of a first pass; both ends run already, as rsync's daemon does."""
        with self._session() as (session, _):
            began = time.monotonic()
            session.first_pass()
            took = time.monotonic() - began
            assert not session.progress.problems, session.progress.problems
            return took

    @contextmanager
    def _rsync_daemon(self) -> Iterator[int]:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
        config = self._root / "rsyncd.conf"
        user = "uid = 0\ngid = 0" if os.geteuid() == 0 else ""
        config.write_text(_RSYNCD.format(folder=self._root, target=self._target, user=user))
        command = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1"]
        daemon = subprocess.Popen([*command, f"--port={port}", f"--config={config}"])
        try:
            wait_for_port(port)
            yield port
        finally:
            daemon.terminate()
            daemon.wait(30)

    def _rsync(self, port: int) -> float:
        target = f"rsync://127.0.0.1:{port}/target/"
        began = time.monotonic()
        subprocess.run(["rsync", "-a", f"{self._source}/", target], check=True)
        return time.monotonic() - began


def wait_for_port(port: int) -> None:
    """Return when something listens there."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError("rsync's daemon does not listen")


def write_random(path: Path, size_mib: int) -> None:
    """Write a file that no hole and no compression makes smaller."""
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(_MIB))


def write_small(folder: Path, count: int) -> None:
    """Write files of 2 KiB, 100 in a folder."""
    for number in range(count):
        below = folder / f"{number // 100:05}"
        if number % 100 == 0:
            below.mkdir()
        (below / f"{number}.dat").write_bytes(number.to_bytes(8, "big") * 256)


if __name__ == "__main__":
    main()
