"""The state file: what belongs to the enclave that runs, for whoever comes later to stop it."""

import os
from pathlib import Path

import msgspec

from enclave_parent_gateway.errors import RuntimeDirError
from enclave_parent_gateway.process_identity import ProcessIdentity

__all__ = ["EnclaveState", "read_state", "write_state"]

_MAX_STATE_BYTES = 64 * 1024


class EnclaveState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One enclave.

    Args:
        backend: Its backend's name.
        created: When, in seconds since 1970.
        endpoint: Where the supervisor listens, `unix:PATH` or `vsock:CID:PORT`.
        processes: What was started for it, by name.
        kms_endpoint_url: The local cloud's, if it has one.
        directory: The supervisor's own, removed with the enclave.
        measured_pcr0: What its backend measured as it started, in hex; expected unless something
            else is (`expected_pcrs`).
    """

    backend: str
    created: float
    endpoint: str
    processes: dict[str, ProcessIdentity] = {}
    kms_endpoint_url: str | None = None
    directory: str | None = None
    measured_pcr0: str | None = None

    def with_process(self, name: str, process: ProcessIdentity) -> "EnclaveState":
        """Return the state with one more process."""
        return msgspec.structs.replace(self, processes={**self.processes, name: process})


def read_state(path: Path) -> EnclaveState | None:
    """Return what the file says, None without one.

    Raises:
        RuntimeDirError: The file is not a state file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_STATE_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=EnclaveState)
    except msgspec.MsgspecError as error:
        raise RuntimeDirError(
            f"{path} is not a state file of this version ({error}); stop the processes named in "
            "it, then remove it"
        ) from error


def write_state(path: Path, state: EnclaveState) -> None:
    """Replace the file, so that a reader sees the old or the new state and nothing between."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state)))
    temporary.replace(path)
