"""`enclave logs`: what supervisor and gateway wrote, for people or for programs."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import click
import msgspec

from enclave_parent_gateway.cli_text import examples
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.log_lines import LogLine, decode_log_line, show_log_line
from enclave_protocol.plain_text import plain_text

__all__ = ["logs"]

_NAMES: Final = ("supervisor", "gateway", "console")
_FOLLOW_POLL_S: Final = 0.2
_MAX_LINE_BYTES: Final = 64 * 1024


class _LogFile:
    """One log file as it grows, and as a new one takes its place at the next start."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines that were written since the last call."""
        if self._file is not None:
            yield from self._read(self._file)
        if self._is_replaced():
            self.close()
            with suppress(FileNotFoundError):
                self._file = self._path.open("rb")
                yield from self._read(self._file)

    def _is_replaced(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        mine = os.fstat(self._file.fileno())
        return (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        *whole, self._rest = (self._rest + file.read()).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        yield from (line for line in whole if line.strip())

    def rest(self) -> Iterator[bytes]:
        """Yield a last line without an end, of a process that was killed while it wrote."""
        if self._rest.strip():
            yield self._rest

    @property
    def found(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._rest = b""


@click.command(
    epilog=examples(
        "enclave logs",
        "enclave logs -f",
        "enclave logs --json | jq -r 'select(.fields.event == \"refused\")'",
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object a line.")
def logs(follow: bool, as_json: bool) -> None:
    """Show what supervisor and gateway wrote; no secrets are in there."""
    paths = EnclavePaths.from_environment()
    paths.require_own("sudo journalctl -u enclave-gateway -u enclave")
    files = [_LogFile(name, paths.log(name)) for name in _NAMES]
    try:
        # What is there already in the order in which it happened, then as it comes.
        _show([(file.name, line) for file in files for line in file.lines()], as_json)
        while follow:
            time.sleep(_FOLLOW_POLL_S)
            _show([(file.name, line) for file in files for line in file.lines()], as_json)
        _show([(file.name, line) for file in files for line in file.rest()], as_json)
    except KeyboardInterrupt:
        return
    finally:
        found = any(file.found for file in files)
        for file in files:
            file.close()
    if not found and not as_json:
        click.echo(f"No logs in {paths.logs}: no enclave ran since boot.")


def _show(lines: list[tuple[str, bytes]], as_json: bool) -> None:
    """Print lines of several files, oldest first."""
    found: list[tuple[float, str, bytes, LogLine | None]] = []
    latest = 0.0
    for name, raw in lines:
        line = decode_log_line(raw)
        # What has no time of its own belongs behind what came before it.
        latest = latest if line is None else line.time
        found.append((latest, name, raw, line))
    for _, name, raw, line in sorted(found, key=lambda each: each[0]):
        text = plain_text(raw.decode(errors="replace"), limit=None)
        if not as_json:
            shown = text if line is None else show_log_line(line)
            click.echo(f"{name:<10} {shown}")
            continue
        entry = LogLine(0.0, "ERROR", "", text) if line is None else line
        click.echo(msgspec.json.encode({"process": name, **msgspec.to_builtins(entry)}))
    sys.stdout.flush()
