"""The state file: what belongs to the enclave that runs, for whoever comes later to stop it."""

from pathlib import Path

import msgspec

from enclave_parent_gateway.errors import RuntimeDirError
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.whole_file import replace_file

__all__ = ["EnclaveState", "MachineState", "read_enclave_process", "read_state", "write_state"]

_MAX_STATE_BYTES = 64 * 1024


class MachineState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An enclave's virtual machine, as its tool knows it.

    Args:
        name: Chosen by us, at random, before it starts: whatever has it is ours to end.
        image: Path of the EIF.
        memory_mib: Its memory.
        cpus: How many it has.
        enclave_id: The tool's name of it, once it runs.
        cid: Its vsock CID, once it runs.
    """

    name: str
    image: str
    memory_mib: int
    cpus: int
    enclave_id: str | None = None
    cid: int | None = None


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
        machine: The virtual machine, for a backend with one.
        debug: It runs in debug mode: its console can be read, and its PCRs are zero.
        stand_in: Directory of what stands in for the hardware, in development; None: nothing does.
        own_gateway: Its gateway was started with it, and ends with it.
    """

    backend: str
    created: float
    endpoint: str
    processes: dict[str, ProcessIdentity] = {}
    kms_endpoint_url: str | None = None
    directory: str | None = None
    measured_pcr0: str | None = None
    machine: MachineState | None = None
    debug: bool = False
    stand_in: str | None = None
    own_gateway: bool = True

    @property
    def enclave_process(self) -> ProcessIdentity | None:
        """The process whose end is the enclave's end."""
        return self.processes.get("enclave") or self.processes.get("supervisor")

    @property
    def enclave_lives(self) -> bool:
        """Whether that process runs."""
        process = self.enclave_process
        return process is not None and process.is_running()

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
    except (msgspec.MsgspecError, ValueError) as error:
        raise RuntimeDirError(
            f"{path} is not a state file of this version ({error}); stop the processes named in "
            "it, then remove it"
        ) from error


def read_enclave_process(path: Path) -> ProcessIdentity | None:
    """Return the process whose end is the enclave's end, None if the file says none."""
    try:
        state = read_state(path)
    except (RuntimeDirError, OSError):
        return None
    return None if state is None else state.enclave_process


def write_state(path: Path, state: EnclaveState, mode: int = 0o600) -> None:
    """Replace the file, so that a reader sees the old or the new state and nothing between.

    Args:
        path: The file's.
        state: What to write.
        mode: Who may read it: `EnclavePaths.file_mode`.
    """
    replace_file(path, msgspec.json.format(msgspec.json.encode(state)), mode, durable=False)
