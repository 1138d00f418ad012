"""The files of a script's trial: copies of the workspace's, and what was written on both sides."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from enclave_encryption.errors import OwnerError
from enclave_protocol.script_messages import names_output, workspace_path
from enclave_protocol.trial_messages import Ended

__all__ = ["copy_inputs", "file_notes", "files_in", "without_path"]


def copy_inputs(
    workspace: Path, copies: Path, arguments: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy what the arguments name, as a vault would get it, and make the output folders.

    Args:
        workspace: The folder that `/` means.
        copies: Where the copies are put; made here.
        arguments: The script's.

    Returns:
        The arguments with paths of the copies, and the output folders below `copies`.

    Raises:
        OwnerError: Something cannot be copied.
    """
    copies.mkdir(mode=0o700)
    mapped: list[str] = []
    inputs: list[str] = []
    outputs: list[str] = []
    previous = ""
    for argument in arguments:
        found = workspace_path(argument)
        if found is None:
            mapped.append(argument)
        else:
            before, path, after = found
            option = before.removesuffix("=") or previous
            (outputs if names_output(option, path) else inputs).append(path)
            mapped.append(f"{before}{copies}/{path}{after}")
        previous = argument
    try:
        for path in inputs:
            if path not in outputs:
                _copy(workspace / path, copies / path)
        for path in outputs:
            (copies / path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OwnerError(
            f"{error.filename}: cannot be copied for the trial: {error.strerror}"
        ) from None
    return tuple(mapped), tuple(outputs)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        # What is not there is told on the user's side, as a user hears of it.
        if source.is_file():
            shutil.copyfile(source, target)
        return
    target.mkdir(exist_ok=True)
    for path in sorted(source.rglob("*")):
        # Links and the like stay, as in a workspace.
        if path.is_file() and not path.is_symlink():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def files_in(folder: Path, below: Sequence[str] = ("",)) -> dict[str, str]:
    """Return the digests of all regular files, by path.

    Args:
        folder: What `/` means in the paths.
        below: Folders in it that are looked into; default: all of it.
    """
    found = {}
    for part in below:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                found[f"/{path.relative_to(folder)}"] = digest
    return found


def file_notes(owner: Mapping[str, str], user: Mapping[str, str]) -> tuple[str, ...]:
    """Return how the files that both sides wrote differ."""
    notes = [f"{path} is not among the user's files" for path in owner if path not in user]
    notes += [f"{path} is the user's only" for path in user if path not in owner]
    notes += [
        f"{path} has other contents for the user: the two runs differ"
        for path, digest in owner.items()
        if user.get(path, digest) != digest
    ]
    return tuple(notes)


def without_path(ended: Ended, path: str) -> Ended:
    """Return `ended` with the copies' folder left out of what was printed."""
    cells = tuple(
        msgspec.structs.replace(
            cell, output=cell.output.replace(path, ""), errors=cell.errors.replace(path, "")
        )
        for cell in ended.cells
    )
    return msgspec.structs.replace(
        ended,
        output=ended.output.replace(path, ""),
        errors=ended.errors.replace(path, ""),
        cells=cells,
    )
