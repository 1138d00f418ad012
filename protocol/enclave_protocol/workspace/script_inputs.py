"""The files of the workspace that a script's arguments name, as the archive a vault takes.

In a notebook the workspace is a folder in the enclave, for `enclave run` one on the parent: both
read it with the rights of the user whose files they are.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_archive import Entry, check_path, encode_archive
from enclave_protocol.package_errors import PackageFormatError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.script_messages import names_output, workspace_path

__all__ = ["ScriptInputs", "WorkspaceFileError", "plan_inputs", "read_inputs"]

_PIECE_BYTES: Final = 1024 * 1024


class WorkspaceFileError(EnclaveError):
    """A file of the workspace cannot be given to a script."""


@dataclass(frozen=True)
class ScriptInputs:
    """What of the workspace a script gets.

    Attributes:
        entries: Files, in the archive's order.
        folders: Folders it finds, output folders among them.
        outputs: Folders whose files come back.
    """

    entries: tuple[Entry, ...]
    folders: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def plan_inputs(
    workspace: Path, arguments: Sequence[str], more_outputs: Sequence[str]
) -> ScriptInputs:
    """Return what the arguments name.

    An absolute path is one of the workspace. It is an output folder if it follows `-o` or
    `--output`, is `/output` itself, or was named as one; such a folder begins empty.

    Args:
        workspace: The folder that `/` means.
        arguments: The script's.
        more_outputs: Output folders that the user named, absolute.

    Raises:
        WorkspaceFileError: A path leads to nothing, or to what cannot be sent.
    """
    outputs: dict[str, None] = {}
    inputs: dict[str, None] = {}
    for name in more_outputs:
        found = workspace_path(name)
        if found is None:
            raise WorkspaceFileError(f"the output folder {name!r} is no path like /results/")
        outputs[found[1]] = None
    previous = ""
    for argument in arguments:
        found = workspace_path(argument)
        if found is not None:
            option = found[0].removesuffix("=") or previous
            (outputs if names_output(option, found[1]) else inputs)[found[1]] = None
        previous = argument
    entries: dict[str, Entry] = {}
    folders = dict(outputs)
    for path in inputs:
        if path not in outputs:
            _add(workspace, path, entries, folders)
    ordered = tuple(sorted(entries.values(), key=lambda entry: entry.path.encode()))
    return ScriptInputs(ordered, tuple(folders), tuple(outputs))


def _add(workspace: Path, path: str, entries: dict[str, Entry], folders: dict[str, None]) -> None:
    place = workspace / path
    try:
        mode = place.stat().st_mode
    except OSError:
        raise WorkspaceFileError(
            f"/{plain_text(path)} is not in the workspace, which is {workspace}; a relative path "
            "would mean a file of the package"
        ) from None
    if stat.S_ISREG(mode):
        _add_file(place, path, entries)
    elif stat.S_ISDIR(mode):
        folders[path] = None
        for base, names, files in os.walk(place):
            names.sort()
            within = Path(base).relative_to(workspace)
            for name in files:
                # Links and the like stay: what they lead to has a path of its own.
                if stat.S_ISREG(Path(base, name).lstat().st_mode):
                    _add_file(Path(base, name), str(within / name), entries)
    else:
        raise WorkspaceFileError(f"/{plain_text(path)} is neither a file nor a folder")


def _add_file(place: Path, path: str, entries: dict[str, Entry]) -> None:
    try:
        check_path(path)
    except PackageFormatError as error:
        raise WorkspaceFileError(
            f"a file of the workspace cannot be sent: {error.reason}"
        ) from None
    entries[path] = Entry(path, place.stat().st_size)


def read_inputs(
    workspace: Path, inputs: ScriptInputs, progress: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield the archive of the files.

    Args:
        workspace: The folder they are in.
        inputs: What `plan_inputs` returned.
        progress: Told how many bytes of files were read so far.

    Raises:
        WorkspaceFileError: A file cannot be read, or changes meanwhile.
    """
    done = 0

    def read(entry: Entry) -> Iterator[bytes]:
        nonlocal done
        try:
            with (workspace / entry.path).open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    done += len(piece)
                    progress(done)
                    yield piece
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise WorkspaceFileError(
                f"/{plain_text(entry.path)} cannot be read: {reason}"
            ) from None

    try:
        for piece in encode_archive(inputs.entries, read):
            yield bytes(piece)
    except PackageFormatError as error:
        raise WorkspaceFileError(f"the workspace cannot be sent: {error.reason}") from None
