"""Starts and ends background processes: own session, clean descriptors, output in a log file."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.process_identity import ProcessIdentity, stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.log_lines import decode_log_line

__all__ = ["Daemon", "small_environ", "stop_daemons"]

_POLL_S = 0.005
_PASSED_ON = ("PATH", "LANG", "TZ", "HOME")
"""All of this user's environment that enters the enclave's processes."""
_MAX_READY_BYTES = 64 * 1024


class Daemon:
    """A background process that this process started.

    Args:
        name: Names its log file and its entry in the state file.
        command: Program and arguments; no secrets, other users can read them.
        environ: Its whole environment.
        paths: Where its files go.
        log_output: It says nothing when it is ready, and its standard output is its log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        paths: EnclavePaths,
        *,
        log_output: bool = False,
    ) -> None:
        self.name = name
        self._log = paths.log(name)
        self._ready = paths.runtime / f"{name}.ready"
        if self._log.exists():
            # The last run's log tells why that enclave died.
            self._log.replace(self._log.with_suffix(".log.1"))
        with _create(self._ready) as ready, _create(self._log) as log:
            # Standard output goes to a file and not a pipe: nobody may be there to read it later.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log if log_output else ready,
                stderr=log,
                env=dict(environ),
                cwd="/",
                start_new_session=True,
                close_fds=True,
            )
        self.identity = ProcessIdentity.of(self._process.pid)

    def check(self) -> None:
        """See that it still runs.

        Raises:
            EnclaveStartError: It ended; the text has the last line of its log.
        """
        code = self._process.poll()
        if code is not None:
            raise EnclaveStartError(
                f"the {self.name} ended with code {code}: {_last_line(self._log)}"
            )

    def wait_ready(self, deadline: float, check: Callable[[], None]) -> dict[str, str]:
        """Return the text fields of the JSON line that it prints when it is ready.

        Args:
            deadline: On the monotonic clock, in seconds.
            check: Called while waiting; what it raises ends the wait.

        Raises:
            EnclaveStartError: It ended before, printed something else, or is too slow.
        """
        while True:
            line, newline, _ = self._ready.read_bytes()[:_MAX_READY_BYTES].partition(b"\n")
            if newline:
                try:
                    fields = msgspec.json.decode(line, type=dict[str, object])
                except (msgspec.MsgspecError, ValueError) as error:
                    raise EnclaveStartError(
                        f"the {self.name} did not print a ready line; see: enclave logs"
                    ) from error
                return {key: value for key, value in fields.items() if isinstance(value, str)}
            check()
            self.check()
            if time.monotonic() > deadline:
                raise EnclaveStartError(f"the {self.name} is not ready in time; see: enclave logs")
            time.sleep(_POLL_S)


def small_environ() -> dict[str, str]:
    """Return the environment for processes that are, or stand in for, the enclave's."""
    return {key: os.environ[key] for key in _PASSED_ON if key in os.environ}


def stop_daemons(
    paths: EnclavePaths, state: EnclaveState | None, names: Sequence[str], *, grace_s: float
) -> None:
    """End these, one after another, and remove what they and the gateway said of being ready.

    Args:
        paths: Of the enclave.
        state: Tells their processes; None: there are none.
        names: Those to end; what does not run is fine.
        grace_s: Seconds each gets to end by itself.
    """
    for name in names:
        if state is not None and name in state.processes:
            stop_process(state.processes[name], grace_s=grace_s)
    for name in (*names, "gateway"):
        (paths.runtime / f"{name}.ready").unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    """Open a new or emptied file that only this user can read, for appending."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "wb")


def _last_line(path: Path) -> str:
    """Return the last line of a log file, for a message."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace")[-4096:].splitlines()
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    logged = decode_log_line(last.encode())
    if logged is None:
        return last
    return f"{logged.message} ({logged.error})" if logged.error else logged.message
