"""Messages between `enclave run` and the kernel session that runs its script.

They travel as the buffers of a Jupyter comm on encrypted channels: the first buffer is the message,
a second one the bytes that it announces. Files travel both ways as the archive of packages. Both
ends take turns with credit: who sends bytes has been told how many messages the other can hold.

Source: docs/spec/run.md.
"""

from typing import Annotated, Final, Literal

import msgspec

from enclave_protocol.messages import MessageError
from enclave_protocol.output_text import MAX_TEXT_CHARS
from enclave_protocol.script_environment import MAX_VALUE_CHARS, MAX_VARIABLES
from enclave_protocol.script_messages import MAX_ARGUMENT_CHARS, MAX_ARGUMENTS, MAX_FOLDERS

__all__ = [
    "COMM_TARGET",
    "CREDIT",
    "PIECE_BYTES",
    "BeginRun",
    "BodyPiece",
    "FromRun",
    "HowEnded",
    "InputPiece",
    "Interrupt",
    "OutputPiece",
    "PackageOpened",
    "RunBar",
    "RunEnded",
    "RunFailed",
    "RunText",
    "StartScript",
    "Taken",
    "ToRun",
    "decode_from_run",
    "decode_to_run",
    "encode",
]

COMM_TARGET: Final = "enclave.run"
PIECE_BYTES: Final = 2 * 1024 * 1024
"""Of one message's bytes: large enough that the message costs nothing."""
CREDIT: Final = 8
"""Messages with bytes that may be under way: bounds what either end keeps in memory."""

HowEnded = Literal["exit", "died", "timeout", "interrupt"]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Argument = Annotated[str, msgspec.Meta(max_length=MAX_ARGUMENT_CHARS)]
_Value = Annotated[str, msgspec.Meta(max_length=MAX_VALUE_CHARS)]
_Folders = Annotated[tuple[_Path, ...], msgspec.Meta(max_length=MAX_FOLDERS)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What all of them share."""


# To the session


class BeginRun(_Message, frozen=True, tag="begin"):
    """A vault for this script, please; with the package's header, everything before its body.

    Attributes:
        file_name: As the user typed it, for messages.
        script: A name in the label's `scripts`.
        arguments: `sys.argv` behind the script's name; absolute paths are of the workspace.
        folders: Folders of the workspace that the script finds.
        outputs: Those among them whose files come back.
        environ: Variables for the script.
        unsigned: A package without a publisher's signature will do.
        timeout_s: Seconds that the script may run; None: no limit.
    """

    file_name: _Text
    script: _Name
    arguments: Annotated[tuple[_Argument, ...], msgspec.Meta(max_length=MAX_ARGUMENTS)]
    folders: _Folders
    outputs: _Folders
    environ: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=MAX_VARIABLES)]
    unsigned: bool
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=10**9)] | None


class BodyPiece(_Message, frozen=True, tag="body"):
    """The next bytes of the package's body."""


class InputPiece(_Message, frozen=True, tag="input"):
    """The next bytes of the archive with the workspace's files."""


class StartScript(_Message, frozen=True, tag="start"):
    """Body and inputs are complete."""


class Interrupt(_Message, frozen=True, tag="interrupt"):
    """Ctrl-C."""


class Taken(_Message, frozen=True, tag="taken"):
    """Either end: one message with bytes was taken, another may come."""


# From the session


class PackageOpened(_Message, frozen=True, tag="opened"):
    """The vault has its key: the body may come.

    `new_publisher`: the key that the package is signed with was pinned just now.
    """

    new_publisher: bool


class RunText(_Message, frozen=True, tag="text"):
    """What the script wrote, without escapes and control characters but line feeds and tabs."""

    stream: Literal["stdout", "stderr"]
    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]


class RunBar(_Message, frozen=True, tag="bar"):
    """Progress of the script: one of its bars, as `vault_messages.Progress`."""

    bar: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    done: float
    total: float | None
    state: Literal[0, 1, 2]


class OutputPiece(_Message, frozen=True, tag="output"):
    """The next bytes of the archive with what the script wrote."""


class RunEnded(_Message, frozen=True, tag="ended"):
    """The script is at its end, and what it wrote has been sent.

    Attributes:
        exit_code: As of a process; None: it did not get that far.
        how: `exit`; `died`: its vault was ended or crashed, `reason` says why; `timeout`;
            `interrupt`: Ctrl-C, and it did not end by itself.
        reason: One line for people, where there is something to say.
        seconds: From its start to its end.
        peak_memory_bytes: Most memory that its vault had at a time, files in there included,
            rounded up to a power of two; None where that is not measured (no control groups).
    """

    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    how: HowEnded
    reason: _Text
    seconds: float
    peak_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] | None


class RunFailed(_Message, frozen=True, tag="failed"):
    """Nothing ran, or what ran cannot be taken. `kind` is the error's class name."""

    kind: _Text
    message: _Text


ToRun = BeginRun | BodyPiece | InputPiece | StartScript | Interrupt | Taken
FromRun = PackageOpened | RunText | RunBar | OutputPiece | RunEnded | RunFailed | Taken

_encoder: Final = msgspec.msgpack.Encoder()
_to_run: Final[msgspec.msgpack.Decoder[ToRun]] = msgspec.msgpack.Decoder(ToRun)
_from_run: Final[msgspec.msgpack.Decoder[FromRun]] = msgspec.msgpack.Decoder(FromRun)


def encode(message: ToRun | FromRun) -> bytes:
    """Return the message as msgpack."""
    return _encoder.encode(message)


def decode_to_run(payload: bytes | memoryview) -> ToRun:
    """Return what the command sends.

    Raises:
        MessageError: It is no message.
    """
    try:
        return _to_run.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MessageError("the command sent something that is no message of a run") from None


def decode_from_run(payload: bytes | memoryview) -> FromRun:
    """Return what the session sends.

    Raises:
        MessageError: It is no message.
    """
    try:
        return _from_run.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MessageError("the enclave sent something that is no message of a run") from None
