"""Child processes of the demo: none outlives it, however it ends.

The demo is made the reaper of everything started below it, daemons included, so that at the end
it can see, and stop, what is left.
"""

import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["ChildFailedError", "Children", "StoppedError"]

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_POLL_S = 0.05
# What a child has after SIGINT, and again after SIGTERM, before the next signal.
_GRACE_S = 10.0


class StoppedError(Exception):
    """Somebody asked the demo to stop; `signal_number` says how."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class ChildFailedError(Exception):
    """A command did not end with exit code 0; the message ends with its last line."""


class Children:
    """Runs commands, one at a time, each in a session of its own.

    SIGINT, SIGTERM and SIGHUP are noted when they arrive and acted upon between two commands or
    while one runs, never in the middle of our own code: nothing is made and then forgotten.

    Args:
        log: File that receives what the commands print; begun anew.
    """

    def __init__(self, log: Path) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become the reaper of the demo's processes")
        log.write_bytes(b"")
        self._log = log
        self._signal: int | None = None
        self._ending = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or number

    def check(self) -> None:
        """Raise StoppedError when a signal has come and the end has not begun."""
        if self._signal is not None and not self._ending:
            raise StoppedError(self._signal)

    def begin_end(self) -> None:
        """Ignore signals from here on: tidying up is not to be cut short."""
        self._ending = True

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        terminal: bool = False,
        timeout_s: float = 600,
        until: Callable[[], bool] = lambda: True,
    ) -> str:
        """Run `argv` to its end and return what it printed on standard output.

        Args:
            argv: The command.
            env: Its whole environment.
            cwd: Its working directory.
            terminal: Let it print to the terminal, for its progress bar; "" is returned then.
            timeout_s: Seconds after which it is stopped and counts as failed.
            until: Called again and again while the command runs, until it returns True.

        Raises:
            ChildFailedError: It ended with another exit code than 0, or not in time.
            StoppedError: A signal arrived; the command has been stopped.
        """
        self.check()
        name = f"{Path(argv[0]).name} {argv[1] if len(argv) > 1 else ''}".strip()
        with tempfile.TemporaryFile() as output, self._log.open("ab") as log:
            log.write(f"\n$ {' '.join(argv)}\n".encode())
            log.flush()
            begin = log.tell()
            child = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=None if terminal else output,
                stderr=None if terminal else log,
                start_new_session=True,
            )
            in_time = self._wait(child, timeout_s, until)
            errors = self._log.read_bytes()[begin:]
            output.seek(0)
            text = output.read()
            log.write(text)
        if not in_time:
            raise ChildFailedError(f"{name} took more than {timeout_s:.1f} s")
        if child.returncode != 0:
            lines = [*_lines(text), *_lines(errors)]
            reason = f": {lines[-1].removeprefix('Error: ')}" if lines else ""
            raise ChildFailedError(f"{name} ended with code {child.returncode}{reason}")
        return text.decode(errors="replace")

    def _wait(
        self, child: subprocess.Popen[bytes], timeout_s: float, until: Callable[[], bool]
    ) -> bool:
        """Wait for `child`, collecting orphans meanwhile; False when it took too long."""
        deadline = time.monotonic() + timeout_s
        satisfied = False
        while child.poll() is None:
            satisfied = satisfied or until()
            self._collect(keep=child.pid)
            in_time = time.monotonic() < deadline
            try:
                self.check()
            except StoppedError:
                self._stop(child)
                raise
            if not in_time:
                self._stop(child)
                return False
            time.sleep(_POLL_S)
        return True

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """End `child` and what runs in its session, politely first."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            _signal_group(child.pid, number)
            deadline = time.monotonic() + _GRACE_S
            while child.poll() is None and time.monotonic() < deadline:
                self._collect(keep=child.pid)
                time.sleep(_POLL_S)
            if child.returncode is not None:
                return

    def end_all(self) -> int:
        """Wait for what ends by itself, end the rest, and return how many that were.

        What is still there after 2 s gets SIGTERM, after 10 s more SIGKILL.
        """
        begin = time.monotonic()
        ended: set[int] = set()
        self._collect()
        while pids := self._descendants():
            waited_s = time.monotonic() - begin
            if waited_s > 2.0:
                number = signal.SIGKILL if waited_s > 2.0 + _GRACE_S else signal.SIGTERM
                for pid in pids:
                    if pid not in ended or number == signal.SIGKILL:
                        _signal_one(pid, number)
                ended.update(pids)
            time.sleep(_POLL_S)
            self._collect()
        return len(ended)

    @staticmethod
    def _descendants() -> list[int]:
        """Return our children, adopted ones included; who is theirs becomes ours when they end."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                after_name = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if int(after_name[1]) == os.getpid():
                found.append(int(entry.name))
        return found

    @staticmethod
    def _collect(keep: int = 0) -> None:
        """Reap ended children but `keep`, whose exit code subprocess wants to see."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid == keep:
                return
            os.waitpid(ended.si_pid, 0)


def _lines(text: bytes) -> list[str]:
    """Return the lines of `text` that say something, not the rules drawn between them."""
    lines = text.decode(errors="replace").splitlines()
    return [line.strip() for line in lines if any(map(str.isalnum, line))]


def _signal_group(pid: int, number: int) -> None:
    """Send `number` to the process group of `pid`, which may have ended."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _signal_one(pid: int, number: int) -> None:
    """Send `number` to `pid`, which may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
