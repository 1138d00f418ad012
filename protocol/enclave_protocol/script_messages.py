"""Messages of a vault that runs one script of a package instead of serving calls.

They follow the body's chunks on the same socket, in the same frames (`vault_messages.py`). Files
travel both ways as the archive that packages use: it holds regular files with plain relative
paths, and its strict reader refuses everything else.

Source: docs/spec/scripts.md.
"""

from typing import Annotated, Final, Literal

import msgspec

from enclave_protocol.output_text import CALL_TEXT_CHARS
from enclave_protocol.package_archive import check_path
from enclave_protocol.package_errors import PackageFormatError
from enclave_protocol.script_environment import MAX_VALUE_CHARS, MAX_VARIABLES
from enclave_protocol.vault_messages import (
    BodyChunk,
    BodyEnd,
    LoadFailed,
    Progress,
    Text,
    VaultMessageError,
)

__all__ = [
    "IMAGE_CHANNELS",
    "MAX_ARGUMENTS",
    "MAX_ARGUMENT_CHARS",
    "MAX_CELLS",
    "MAX_CELL_OUTPUTS",
    "MAX_FOLDERS",
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_SIDE",
    "MAX_NOTEBOOK_CHARS",
    "MAX_NOTEBOOK_IMAGE_BYTES",
    "MAX_NOTEBOOK_OUTPUTS",
    "MAX_OUTPUT_CHARS",
    "CellEnded",
    "CellOutput",
    "InputChunk",
    "OpeningMessage",
    "OutputChunk",
    "RunScript",
    "ScriptEnded",
    "ScriptReply",
    "check_workspace_path",
    "decode_opening_message",
    "decode_script_reply",
    "names_output",
    "workspace_path",
]

MAX_CELLS: Final = 10_000
"""Of one notebook; nobody opens one with more."""
MAX_CELL_OUTPUTS: Final = 1000
"""Of one cell: a front-end draws each by itself."""
MAX_NOTEBOOK_OUTPUTS: Final = 30_000
"""Of all cells: as many take a front-end a minute to draw."""
MAX_OUTPUT_CHARS: Final = 256 * 1024
"""Of one output; a longer stream comes as several."""
MAX_NOTEBOOK_CHARS: Final = CALL_TEXT_CHARS
"""Of all its outputs: a notebook with more cannot be opened any more."""
MAX_IMAGE_SIDE: Final = 32_768
IMAGE_CHANNELS: Final = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""Pixels of one image: 4096 by 4096 with transparency."""
MAX_NOTEBOOK_IMAGE_BYTES: Final = 512 * 1024 * 1024
"""Pixels of all images of a notebook."""
MAX_ARGUMENTS: Final = 1024
MAX_ARGUMENT_CHARS: Final = 8192
MAX_FOLDERS: Final = 1024
_OUTPUT_OPTIONS: Final = frozenset({"-o", "--out", "--output", "--output-dir", "--output_dir"})
_DEFAULT_OUTPUT: Final = "output"

_RequestId = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Argument = Annotated[str, msgspec.Meta(max_length=MAX_ARGUMENT_CHARS)]
_Value = Annotated[str, msgspec.Meta(max_length=MAX_VALUE_CHARS)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_IMAGE_SIDE)]
_Folders = Annotated[tuple[_Path, ...], msgspec.Meta(max_length=MAX_FOLDERS)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What all of them share; as arrays, like the messages of calls."""


class InputChunk(_Message, frozen=True, tag=15):
    """The next bytes of the archive with the workspace's files; they are the one buffer."""


class RunScript(_Message, frozen=True, tag=16):
    """The body is complete, and so are the inputs: run this script.

    Attributes:
        request_id: Of its progress and text.
        script: A name in the label's `scripts`.
        arguments: `sys.argv` behind the script's name; absolute paths are of the workspace.
        folders: Folders of the workspace that exist, however empty.
        outputs: Those among them whose files come back.
        environ: Variables for the script, as `script_environment.check_environ` allows them.
        patient: Nothing of its text is left out: the script waits where it is not taken.
    """

    request_id: _RequestId
    script: _Name
    arguments: Annotated[tuple[_Argument, ...], msgspec.Meta(max_length=MAX_ARGUMENTS)]
    folders: _Folders
    outputs: _Folders
    environ: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=MAX_VARIABLES)] = {}
    patient: bool = False


class OutputChunk(_Message, frozen=True, tag=35):
    """The next bytes of the archive with what the script wrote; they are the one buffer."""


class ScriptEnded(_Message, frozen=True, tag=36):
    """The script is at its end, and so is the archive of its outputs.

    Attributes:
        exit_code: As of a process, 0 to 255.
        type_name: The built-in exception that ended it, or that its own is derived from.
        message: The exception's, where the owner's policy shows it.
        incident: Stands for what is not said.
    """

    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    type_name: _Name | None = None
    message: Annotated[str, msgspec.Meta(max_length=500)] | None = None
    incident: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")] | None = None


class CellOutput(_Message, frozen=True, tag=37):
    """The next output of the notebook's cell that ends with the next `CellEnded`.

    Attributes:
        kind: As notebooks have it.
        text: `text/plain`, or what was printed; without escapes and control characters.
        image: Width, height and channels of an image (`IMAGE_CHANNELS`), whose pixels, rows from
            the top, are the one buffer. Never of a stream.
    """

    kind: Literal["stream", "display_data", "execute_result"]
    text: Annotated[str, msgspec.Meta(max_length=MAX_OUTPUT_CHARS)]
    image: tuple[_Side, _Side, Literal[1, 3, 4]] | None = None


class CellEnded(_Message, frozen=True, tag=38):
    """A code cell of a notebook is at its end, with the outputs since the last one.

    Attributes:
        execution_count: None for a cell without code.
    """

    execution_count: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None


OpeningMessage = BodyChunk | BodyEnd | InputChunk | RunScript
ScriptReply = Progress | Text | CellOutput | CellEnded | OutputChunk | ScriptEnded | LoadFailed

_opening: Final[msgspec.msgpack.Decoder[OpeningMessage]] = msgspec.msgpack.Decoder(OpeningMessage)
_reply: Final[msgspec.msgpack.Decoder[ScriptReply]] = msgspec.msgpack.Decoder(ScriptReply)


def decode_opening_message(payload: bytes | memoryview) -> OpeningMessage:
    """Return what a notebook sends before a package is served, or a script runs.

    Raises:
        VaultMessageError: It is none of these.
    """
    try:
        return _opening.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise VaultMessageError("a frame from the notebook opens no package") from None


def decode_script_reply(payload: bytes | memoryview) -> ScriptReply:
    """Return what a vault sends while a script runs.

    Raises:
        VaultMessageError: It is none of these.
    """
    try:
        return _reply.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise VaultMessageError("a frame from the vault is no message of a script") from None


def check_workspace_path(path: str) -> None:
    """Check a path below the workspace.

    Raises:
        VaultMessageError: Not plain and relative, as `package_archive.check_path` has it.
    """
    try:
        check_path(path)
    except PackageFormatError as error:
        raise VaultMessageError(error.reason) from None


def workspace_path(argument: str) -> tuple[str, str, str] | None:
    """Return an argument's parts if it names a place in the workspace: before, path, and after.

    `/data/x.csv` and `--input=/data/x.csv` do; a relative path means the package.

    Args:
        argument: One of a script's arguments.

    Returns:
        `("", "data/x.csv", "")` of the first example, `("--input=", "data/x.csv", "")` of the
        second; `after` is "/" for a path that ends in one. None: it names no such place.
    """
    before, path = "", argument
    if argument.startswith("-") and "=" in argument:
        before, _, path = argument.partition("=")
        before += "="
    if not path.startswith("/"):
        return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        return None
    return before, "/".join(parts), "/" if path.endswith("/") else ""


def names_output(option: str, path: str) -> bool:
    """Return whether a script's argument names a folder for its output.

    Args:
        option: The argument in front of it, or what is in front of it in the same one, without `=`.
        path: Below the workspace.
    """
    return option in _OUTPUT_OPTIONS or path == _DEFAULT_OUTPUT
