"""What `enclave-owner try` and the two processes it starts say to each other, in frames.

One process has the user's side: the real vault and the proxies. The other has the owner's: the
same code imported plainly. Each answers every request with one message. All of them run on the
owner's machine with the owner's rights; the strict decoding finds mistakes, it is no boundary.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from enclave_protocol.errors import ProtocolError
from enclave_protocol.frame import MAX_FRAME_BYTES

__all__ = [
    "MAX_COMPARED_BYTES",
    "CannotTry",
    "CompareValue",
    "Compared",
    "Ended",
    "NotedCall",
    "OpenForUser",
    "OpenPlain",
    "RunCell",
    "RunPlainNotebook",
    "RunTrialScript",
    "ShownCell",
    "TrialMessageError",
    "TrialReply",
    "TrialRequest",
    "clipped",
    "decode_trial_reply",
    "decode_trial_request",
    "encode_trial",
    "fitting_cells",
]

MAX_COMPARED_BYTES: Final = 8 * 1024 * 1024
"""Of a value that is looked at for differences: it travels in one frame of 16 MiB."""
_MAX_TEXT_CHARS: Final = 64 * 1024
"""Of each text that is shown: more than anybody reads beside another column."""
_MAX_CELLS_CHARS: Final = 2 * 1024 * 1024
"""Of all texts of a notebook's cells: at most 8 MiB of a frame."""


class TrialMessageError(ProtocolError):
    """A frame between `try` and a process of its holds no message."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What all of them share."""


class OpenForUser(_Message, frozen=True, tag=1):
    """Load this package as a notebook would, or, for scripts, only remember it.

    Attributes:
        path: Of the encrypted file.
        file_name: What a user would type to load it.
        data_key: Of this one trial.
        workspace: What `/` means in a script's arguments.
        results: Where a script's files are put.
        load: Whether cells will run.
    """

    path: str
    file_name: str
    data_key: bytes
    workspace: str
    results: str
    load: bool


class OpenPlain(_Message, frozen=True, tag=2):
    """Import this directory as its owner would.

    Attributes:
        directory: Absolute.
        module: That has the exports; empty for none.
        functions: Names to bind.
        classes: The same, each with the methods whose calls are noted.
    """

    directory: str
    module: str
    functions: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]


class RunCell(_Message, frozen=True, tag=3):
    """Run code as a cell of a notebook.

    Attributes:
        name: What tracebacks call it.
    """

    name: str
    source: str


class RunTrialScript(_Message, frozen=True, tag=4):
    """Run a script of the package.

    Attributes:
        file: Its path in the package.
        arguments: Behind its name; for the user absolute paths are of the workspace.
    """

    file: str
    arguments: tuple[str, ...]


class CompareValue(_Message, frozen=True, tag=5):
    """Say how the last cell's value differs from this one, which the user has."""

    header: bytes
    buffers: tuple[bytes, ...]


class RunPlainNotebook(_Message, frozen=True, tag=6):
    """Run a notebook of the directory, for its owner.

    Attributes:
        file: Its path in the package.
        arguments: Behind its name, parameters included.
        scratch: A folder that IPython may leave files in.
    """

    file: str
    arguments: tuple[str, ...]
    scratch: str


class ShownCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What one code cell of a notebook shows.

    Attributes:
        number: Which of the code cells, from 1.
        source: In the owner's process: the cell's; in the user's: what the notebook that came
            back has in its place.
        output: Printed and displayed text in its order; `[image]` stands for an image.
        errors: In the owner's process: stderr.
        left_out: In the owner's process: MIME types that it displays and no user gets.
    """

    number: int
    source: str = ""
    output: str = ""
    errors: str = ""
    left_out: tuple[str, ...] = ()


class NotedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How one call into the package ended.

    Attributes:
        name: What was called, as `score` or `Scorer.predict`.
        error: Its error's type and message; empty if there is a result.
        incident: The number in the error, which stands for what the user does not see.
        traceback: In the owner's process: of the error.
    """

    name: str
    error: str = ""
    incident: str = ""
    traceback: str = ""


class Ended(_Message, frozen=True, tag=21):
    """How loading, a cell or a script ended.

    Attributes:
        output: stdout, and in the user's process the bars that it shows.
        errors: stderr; in the user's process only what the user's own code writes.
        result: The last expression's value: its repr, or how a notebook shows it.
        result_type: Its type; empty if there is no value.
        error: One line; empty if it ended well.
        traceback: As it is shown in this process.
        incident: In the user's process: the number in the error.
        exit_code: Of a script.
        refusal: In the owner's process: why the value cannot leave a package.
        value: In the user's process: the value's header and buffers, if it is data and not too
            large.
        calls: Calls into the package, in their order.
        walls: In the user's process, after loading: what stands around the vault.
        missing_walls: The same: what stands around one in an enclave, and not here.
        cells: Of a notebook: those that ran; for the user as they are in the notebook that came
            back.
        notebook: In the user's process: the path of that notebook, below the workspace; empty if
            there is none.
    """

    output: str = ""
    errors: str = ""
    result: str = ""
    result_type: str = ""
    error: str = ""
    traceback: str = ""
    incident: str = ""
    exit_code: int | None = None
    refusal: str = ""
    value: tuple[bytes, tuple[bytes, ...]] | None = None
    calls: tuple[NotedCall, ...] = ()
    walls: tuple[str, ...] = ()
    missing_walls: tuple[str, ...] = ()
    cells: tuple[ShownCell, ...] = ()
    notebook: str = ""


class Compared(_Message, frozen=True, tag=22):
    """How two values differ.

    Attributes:
        dropped: What does not cross, each with its place in the value.
        differing: What differs although it crosses: the two runs did not compute the same.
    """

    dropped: tuple[str, ...]
    differing: tuple[str, ...]


class CannotTry(_Message, frozen=True, tag=23):
    """The process cannot do its part at all; one line says why."""

    message: str


TrialRequest = OpenForUser | OpenPlain | RunCell | RunTrialScript | CompareValue | RunPlainNotebook
TrialReply = Ended | Compared | CannotTry

_encoder: Final = msgspec.msgpack.Encoder()
_requests: Final[msgspec.msgpack.Decoder[TrialRequest]] = msgspec.msgpack.Decoder(TrialRequest)
_replies: Final[msgspec.msgpack.Decoder[TrialReply]] = msgspec.msgpack.Decoder(TrialReply)


def clipped(text: str) -> str:
    """Return `text` as one message may carry it: whole, or its first and last part."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    left = len(text) - _MAX_TEXT_CHARS
    half = _MAX_TEXT_CHARS // 2
    return f"{text[:half]}\n[... {left} characters left out ...]\n{text[-half:]}"


def fitting_cells(cells: Sequence[ShownCell]) -> tuple[ShownCell, ...]:
    """Return `cells` as one message may carry them: of those for which no room is left, no text."""
    room = _MAX_CELLS_CHARS
    fitting = []
    for cell in cells:
        source, output, errors = map(clipped, (cell.source, cell.output, cell.errors))
        length = len(source) + len(output) + len(errors)
        if length > room:
            source, output, errors = "", f"[... {length} characters left out ...]", ""
        else:
            room -= length
        fitting.append(ShownCell(cell.number, source, output, errors, cell.left_out))
    return tuple(fitting)


def encode_trial(message: TrialRequest | TrialReply) -> bytes:
    """Return a message, without the frame's length.

    Raises:
        TrialMessageError: It does not fit into a frame.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_FRAME_BYTES:
        raise TrialMessageError(f"a message of {len(data)} bytes does not fit into a frame")
    return data


def decode_trial_request(payload: bytes) -> TrialRequest:
    """Return a message of `try`.

    Raises:
        TrialMessageError: It is none.
    """
    try:
        return _requests.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise TrialMessageError("a frame from `enclave-owner try` holds no message") from None


def decode_trial_reply(payload: bytes) -> TrialReply:
    """Return a message of one of the two processes.

    Raises:
        TrialMessageError: It is none.
    """
    try:
        return _replies.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise TrialMessageError("a frame from a process of `try` holds no message") from None
