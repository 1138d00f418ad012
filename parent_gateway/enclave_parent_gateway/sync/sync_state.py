"""What `enclave sync` says of itself to `enclave status` and to the gateway, in a file.

It stays until the enclave goes down: as long as the enclave has the files of a folder, it has no
room for those of another, and a notebook in that folder starts beside them.
"""

import os
from pathlib import Path

import msgspec

from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.whole_file import replace_file
from enclave_protocol.errors import EnclaveError
from enclave_protocol.workspace.names import check_rel

__all__ = ["SyncState", "folder_in_workspace", "read_sync_state", "write_sync_state"]

_MAX_BYTES = 64 * 1024


class SyncState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mirror of one folder.

    Args:
        directory: The folder, by its real path.
        process: Who mirrors it.
        phase: "starting", "first pass", "live", "waiting for the enclave" or "ended".
        entries: Files and folders that both sides have.
        brought: Changes brought since the start, in either direction.
        problems: How many paths cannot be brought.
        bytes_to_enclave: On the stream, since the start.
        bytes_from_enclave: The same.
        updated: When this was written, in seconds since 1970.
    """

    directory: str
    process: ProcessIdentity
    phase: str
    entries: int = 0
    brought: int = 0
    problems: int = 0
    bytes_to_enclave: int = 0
    bytes_from_enclave: int = 0
    updated: float = 0.0

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.phase != "ended" and self.process.is_running()


def read_sync_state(path: Path) -> SyncState | None:
    """Return what the file says; None without one.

    Raises:
        GatewayError: It is not one of this version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=SyncState)
    except (msgspec.MsgspecError, ValueError) as error:
        raise GatewayError(
            f"{path} is not of this version; type: enclave down && enclave up"
        ) from (error)


def write_sync_state(path: Path, state: SyncState) -> None:
    """Replace the file as a whole."""
    replace_file(path, msgspec.json.encode(state), durable=False)


def folder_in_workspace(path: Path, directory: str) -> str | None:
    """Return which folder of the workspace a directory of the parent is; None: it is in none.

    Args:
        path: Of the state file.
        directory: Of a notebook.
    """
    try:
        state = read_sync_state(path)
        if state is None:
            return None
        found = os.path.realpath(directory)
        if found == state.directory:
            return ""
        return check_rel(str(Path(found).relative_to(state.directory)))
    except (EnclaveError, ValueError):
        # Outside of it, or by a name that is not mirrored.
        return None
