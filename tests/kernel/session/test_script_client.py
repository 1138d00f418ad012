"""What a vault that was taken over can send to the cell that runs a script or a notebook in it."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.session.executed_notebook import ExecutedNotebook, NotebookOutputError
from enclave_kernel.session.package_failures import VaultDiedError
from enclave_kernel.session.script_client import ScriptClient
from enclave_kernel.session.script_outputs import OutputFiles
from enclave_kernel.session.supervisor_link import LoadedVault
from enclave_protocol.errors import EnclaveError
from enclave_protocol.script_messages import (
    MAX_CELL_OUTPUTS,
    CellEnded,
    CellOutput,
    ScriptEnded,
)
from tests.support.notebook_source import read_executed, shown_text

Sent = tuple[Any, tuple[memoryview, ...]]


class ForgingVault:
    """A vault that answers a script's start with messages of its own choice."""

    def __init__(self, messages: Sequence[Sent]) -> None:
        ours, theirs = socket.socketpair()
        self.client = ScriptClient(LoadedVault("forged", theirs), "<encrypted bad 1>", self)
        self._thread = threading.Thread(target=self._serve, args=(ours, messages))
        self._thread.start()

    def _serve(self, sock: socket.socket, messages: Sequence[Sent]) -> None:
        # The other end closes whenever it has seen enough.
        with sock, contextlib.suppress(ConnectionError, ChannelClosedError):
            channel = CallChannel(sock)
            channel.receive()
            for message, buffers in messages:
                if isinstance(message, list):
                    # No message at all, as a frame without buffers.
                    payload = msgspec.msgpack.encode(message)
                    sock.sendall(len(payload).to_bytes(4, "big") + bytes(4) + payload)
                else:
                    channel.send(message, buffers)
            while sock.recv(65536):
                continue

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        raise AssertionError((file_name, header_raw))

    def interrupt(self, vault_id: str) -> None:
        raise AssertionError(vault_id)

    def unload(self, vault_id: str) -> None:
        self.unloaded = vault_id

    def death_reason(self, vault_id: str) -> str | None:
        return None if vault_id else "never"

    def finish(self) -> None:
        self.client.close()
        self._thread.join(5)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[OutputFiles]:
    made = OutputFiles(tmp_path, ("output",))
    yield made
    made.close()


def _run(
    messages: Sequence[Sent], files: OutputFiles, notebook: ExecutedNotebook | None
) -> ScriptEnded:
    vault = ForgingVault(messages)
    try:
        ended = vault.client.run("report", (), ("output",), files, notebook)
    finally:
        vault.finish()
    assert isinstance(ended, ScriptEnded)
    return ended


_END: Sent = (ScriptEnded(0), ())
_PIXEL = memoryview(b"\0")


def test_a_notebook_of_hostile_text(files: OutputFiles) -> None:
    notebook = ExecutedNotebook("output/report.ipynb")
    text = "<script>\x1b]52;c;x\x07\x1b[2J\u202e\r"
    messages: list[Sent] = [
        (CellOutput("stream", text), ()),
        (CellOutput("execute_result", text, (1, 1, 1)), (_PIXEL,)),
        (CellEnded(1), ()),
        _END,
    ]
    assert _run(messages, files, notebook).exit_code == 0
    executed = read_executed(notebook.encode())
    assert shown_text(executed) == ["<script>\n<script>\n"]


@pytest.mark.parametrize(
    "message",
    [
        [37, "display_data", "", None, {"text/html": "<script>"}],
        [37, "display_data", {"text/html": "<script>"}, None],
        [37, "error", "Traceback", None],
        [37, "display_data", "", [1, 1, 3, "image/svg+xml"]],
        [38, 1, {"source": "import os"}],
        [38, 2**40],
        [99, "unknown"],
        {"cell_type": "code"},
    ],
)
def test_what_is_no_message_ends_the_run(files: OutputFiles, message: Any) -> None:
    sent: Sent = (message if isinstance(message, list) else [message], ())
    with pytest.raises(VaultDiedError, match="the script of <encrypted bad 1> has ended"):
        _run([sent, _END], files, ExecutedNotebook("output/report.ipynb"))


@pytest.mark.parametrize(
    "sent",
    [
        (CellOutput("display_data", "x"), ()),
        (CellOutput("display_data", "x", (1, 1, 1)), (_PIXEL,)),
        (CellEnded(1), ()),
        (ScriptEnded(0), (_PIXEL,)),
    ],
)
def test_a_script_has_no_cells(files: OutputFiles, sent: Sent) -> None:
    with pytest.raises(VaultDiedError):
        _run([sent, _END], files, None)


@pytest.mark.parametrize(
    "messages",
    [
        [(CellOutput("display_data", ""), ())] * (MAX_CELL_OUTPUTS + 1),
        [(CellOutput("display_data", "", (2, 2, 4)), (_PIXEL,))],
        [(CellOutput("stream", "x", (1, 1, 1)), (_PIXEL,))],
        [(CellOutput("display_data", "", (1, 1, 1)), (_PIXEL, _PIXEL))],
    ],
)
def test_what_a_notebook_cannot_have_is_refused(
    files: OutputFiles, messages: Sequence[Sent]
) -> None:
    with pytest.raises(EnclaveError) as caught:
        _run([*messages, _END], files, ExecutedNotebook("output/report.ipynb"))
    assert isinstance(caught.value, NotebookOutputError)
