"""Cells as a front-end sees them: what was printed, and the error as it is shown."""

import queue
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from tests.support.enclave_home import EnclaveHome

__all__ = [
    "Cell",
    "CellError",
    "finish_cell",
    "gather",
    "one_line",
    "run_cell",
    "start_cell",
    "unasked",
    "vault_pid",
    "vault_pids",
]


@dataclass(frozen=True)
class CellError:
    """What a front-end shows of an exception."""

    name: str
    value: str
    traceback: tuple[str, ...]


@dataclass
class Cell:
    """A cell that was executed.

    Attributes:
        printed: Its stdout and stderr.
        displayed: The `text/plain` of its result and of what it displayed, as updated last.
        images: How many PNG images were among that.
        mime_types: All types that it displayed.
        error: Its exception, if it has one.
    """

    printed: str = ""
    shown: dict[object, str] = field(default_factory=dict)
    images: int = 0
    mime_types: set[str] = field(default_factory=set)
    error: CellError | None = None
    execution_count: int = 0

    @property
    def displayed(self) -> list[str]:
        return [text for text in self.shown.values() if text]


def run_cell(client: BlockingKernelClient, code: str, timeout_s: float = 30.0) -> Cell:
    """Execute `code` and return what came of it."""
    return finish_cell(client, client.execute(code, stop_on_error=False), timeout_s)


def start_cell(client: BlockingKernelClient, code: str, sign: str = "now") -> str:
    """Execute `code` after it printed `sign`; return the request's id once it did."""
    request: str = client.execute(f"print({sign!r}, flush=True)\n{code}")
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == request:
            return request


def finish_cell(client: BlockingKernelClient, request: str, timeout_s: float = 30.0) -> Cell:
    """Return what came of the cell that was sent as `request`, from here to its end."""
    cell = Cell()
    deadline = time.monotonic() + timeout_s
    while True:
        message = client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
        if message["parent_header"].get("msg_id") != request:
            continue
        _collect(cell, message["msg_type"], message["content"])
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            break
    while True:
        reply = client.get_shell_msg(timeout=max(0.0, deadline - time.monotonic()))
        if reply["parent_header"].get("msg_id") == request:
            cell.execution_count = reply["content"].get("execution_count", 0)
            return cell


def gather(messages: Iterable[dict[str, Any]], request: str) -> Cell:
    """Return what came of the cell `request`, of messages that are not only its own."""
    cell = Cell()
    for message in messages:
        if message["parent_header"].get("msg_id") == request:
            _collect(cell, message["msg_type"], message["content"])
    return cell


def _collect(cell: Cell, kind: str, content: dict[str, Any]) -> None:
    if kind == "stream":
        cell.printed += content["text"]
    elif kind in ("display_data", "execute_result", "update_display_data"):
        # A progress bar that is taken away leaves nothing to see.
        display_id = content.get("transient", {}).get("display_id", object())
        cell.images += "image/png" in content["data"]
        cell.mime_types |= set(content["data"])
        cell.shown[display_id] = content["data"].get("text/plain", "")
    elif kind == "error":
        cell.error = CellError(content["ename"], content["evalue"], tuple(content["traceback"]))


def one_line(cell: Cell) -> str:
    """Return the one line that is all this cell shows: its error, without a traceback."""
    error = cell.error
    assert error is not None, cell
    assert error.traceback == (f"{error.name}: {error.value}",), error
    assert len(error.traceback[0].splitlines()) == 1
    assert cell.printed == "" and cell.displayed == []
    return error.traceback[0]


def vault_pids(home: EnclaveHome) -> set[int]:
    """Return the enclave's vault processes, one that waits for a package included."""
    supervisor = home.status()["pids"]["supervisor"]
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == supervisor and b"/vault/bootstrap.py" in command:
            found.add(int(entry.name))
    return found


def vault_pid(home: EnclaveHome, number: int) -> int:
    """Return the pid of the vault in which `vault_number()` returned `number`.

    A vault that is a user of its own does not know its pid out here: it tells its user.
    """
    for pid in vault_pids(home):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        if pid == number or f"Uid:\t{number}\t{number}\t{number}\t{number}" in lines:
            return pid
    raise AssertionError(f"no vault {number} runs")


def unasked(client: BlockingKernelClient, deadline: float) -> str:
    """Return what reaches a client unasked, on iopub's stderr; "" if nothing does by then."""
    while (left := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            message = client.get_iopub_msg(timeout=left)
            if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
                return str(message["content"]["text"])
    return ""
