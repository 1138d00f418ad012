"""One line for every connection that was opened, closed or refused. No paths, no headers.

JSON lines, at most two files of 4 MiB: a notebook that is refused in a loop fills no disk.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

__all__ = ["ConnectionLog", "Event", "LogEntry", "log_size", "read_log"]

_log = logging.getLogger(__name__)
_MAX_BYTES: Final = 4 * 1024 * 1024

Event = Literal["opened", "closed", "refused"]


class LogEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened to one connection.

    Args:
        time: Seconds since 1970.
        event: `opened`, `closed` or `refused`.
        kernel: Id of the notebook's kernel; None: the enclave itself, for KMS.
        destination: `HOST:PORT`; None where the request was not understood.
        address: The one that was connected to.
        bytes_out: To the destination, so far.
        bytes_in: From it.
        seconds: How long it was open.
        reason: Why it was refused or cut.
    """

    time: float
    event: Event
    kernel: str | None = None
    destination: str | None = None
    address: str | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    reason: str | None = None


class ConnectionLog:
    """Appends to a file and, when it is full, starts the next one.

    Args:
        path: The file; the one before it has `.1` at its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encoder = msgspec.json.Encoder()

    def write(self, entry: LogEntry) -> None:
        """Append one line. A full disk loses it, with a word in the gateway's own log."""
        line = self._encoder.encode(entry) + b"\n"
        try:
            with suppress(FileNotFoundError):
                if self._path.stat().st_size + len(line) > _MAX_BYTES:
                    self._path.replace(previous(self._path))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.warning("a connection was not logged: %s", error)

    def now(self) -> float:
        """Return the time for an entry."""
        return round(time.time(), 3)


def previous(path: Path) -> Path:
    """Return where the file before this one is."""
    return path.with_name(f"{path.name}.1")


def log_size(path: Path) -> tuple[int, ...]:
    """Return something that differs when something was logged meanwhile."""
    sizes = []
    for file in (previous(path), path):
        with suppress(FileNotFoundError):
            found = file.stat()
            sizes += [found.st_ino, found.st_size]
    return tuple(sizes)


def read_log(path: Path) -> Iterator[LogEntry]:
    """Yield what was logged, oldest first; a line that was cut off is left out."""
    decoder = msgspec.json.Decoder(LogEntry)
    for file in (previous(path), path):
        with suppress(FileNotFoundError), file.open("rb") as lines:
            for line in lines:
                with suppress(msgspec.MsgspecError, ValueError):
                    yield decoder.decode(line)
