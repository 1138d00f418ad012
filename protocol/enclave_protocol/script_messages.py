"""Messages of a vault that runs one script of a package instead of serving calls.

They follow the body's chunks on the same socket, in the same frames (`vault_messages.py`). Files
travel both ways as the archive that packages use: it holds regular files with plain relative
paths, and its strict reader refuses everything else.

Source: docs/spec/scripts.md.
"""

from typing import Annotated, Final

import msgspec

from enclave_protocol.package_archive import check_path
from enclave_protocol.package_errors import PackageFormatError
from enclave_protocol.vault_messages import (
    BodyChunk,
    BodyEnd,
    LoadFailed,
    Progress,
    Text,
    VaultMessageError,
)

__all__ = [
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

_MAX_ARGUMENTS: Final = 1024
_MAX_ARGUMENT_CHARS: Final = 8192
_MAX_FOLDERS: Final = 1024
_OUTPUT_OPTIONS: Final = frozenset({"-o", "--out", "--output", "--output-dir", "--output_dir"})
_DEFAULT_OUTPUT: Final = "output"

_RequestId = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Argument = Annotated[str, msgspec.Meta(max_length=_MAX_ARGUMENT_CHARS)]
_Folders = Annotated[tuple[_Path, ...], msgspec.Meta(max_length=_MAX_FOLDERS)]


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
    """

    request_id: _RequestId
    script: _Name
    arguments: Annotated[tuple[_Argument, ...], msgspec.Meta(max_length=_MAX_ARGUMENTS)]
    folders: _Folders
    outputs: _Folders


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


OpeningMessage = BodyChunk | BodyEnd | InputChunk | RunScript
ScriptReply = Progress | Text | OutputChunk | ScriptEnded | LoadFailed

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
