"""The nitro backend: an enclave image in a Nitro enclave of this instance, through nitro-cli.

What nitro-cli prints is believed as far as it concerns this machine (which CID, which process).
What runs in the enclave is proven by its attestation document, to the gateway.
Source: FACTS, "vsock" and "EIF version 4"; docs/runbook.md.
"""

import os
import platform
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from enclave_parent_gateway.backends.allocator import check_fits, read_allocation
from enclave_parent_gateway.backends.base import Machine, Progress
from enclave_parent_gateway.backends.daemon import Daemon
from enclave_parent_gateway.backends.gateway_daemon import (
    refuse_silent_gateway,
    spawn_gateway,
    stop_gateway,
    wait_answer,
)
from enclave_parent_gateway.backends.nitro_cli import (
    DescribedEnclave,
    describe_enclaves,
    nitro_cli_path,
    run_enclave,
    terminate_enclave,
)
from enclave_parent_gateway.backends.stand_ins import read_certificate
from enclave_parent_gateway.credentials import default_credentials
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.enclave_state import (
    EnclaveState,
    MachineState,
    read_state,
    write_state,
)
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.expected_pcrs import remembered_pcrs
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.process_identity import ProcessIdentity, stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.eif import Eif, EifError, read_eif
from enclave_protocol.messages import Credentials
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER
from enclave_protocol.vsock_ports import SUPERVISOR_PORT

__all__ = ["STAND_IN_VARIABLE", "NitroBackend"]

STAND_IN_VARIABLE: Final = "ENCLAVE_NITRO_STAND_IN"
"""Development: a directory with `root.pem` and, as Unix sockets, `CID_PORT` in place of vsock. An
enclave that was started with it is labelled NOT CONFIDENTIAL, and its root is not AWS's."""
_ANSWER_TIMEOUT_S: Final = 60.0
"""nitro-cli returned: the image's init runs. What is left is the supervisor's start."""
_GRACE_S: Final = 5.0
_END_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05
_NOBODY: Final = ProcessIdentity(0, -1)
_ARM64: Final = ("aarch64", "arm64")


class NitroBackend:
    """See the module; what the methods promise is in `base.Backend`."""

    confidential = True

    def up(
        self,
        paths: EnclavePaths,
        *,
        machine: Machine,
        idle_timeout_s: float,
        progress: Progress,
        interrupts: DeferredInterrupts,
        wait_for_all: bool,  # noqa: ARG002 (there is nothing else to wait for)
    ) -> EnclaveState:
        """Start the enclave and a gateway; or the gateway alone if only it died."""
        state = read_state(paths.state_file)
        if state is not None and _enclave_runs(state):
            return self._resume(paths, state, machine, idle_timeout_s, progress, interrupts)
        start = _Start(paths, machine, progress, interrupts)
        start.check()
        self._stop_all(paths, with_gateway=machine.with_gateway)
        try:
            start.run(idle_timeout_s)
            interrupts.check()
        except BaseException:
            # Ctrl-C included: nothing stays behind.
            self._stop_all(paths, with_gateway=machine.with_gateway)
            raise
        return start.state

    def _resume(
        self,
        paths: EnclavePaths,
        state: EnclaveState,
        machine: Machine,
        idle_timeout_s: float,
        progress: Progress,
        interrupts: DeferredInterrupts,
    ) -> EnclaveState:
        """Give an enclave that runs a gateway again; its kernels live on."""
        refuse_silent_gateway(state, "enclave up --backend nitro")
        if machine.debug and not state.debug:
            raise EnclaveStartError(
                "the enclave runs without debug mode; type: enclave down, and then enclave up again"
            )
        daemons = []
        if machine.with_gateway:
            daemons.append(spawn_gateway(paths, state, idle_timeout_s))
            state = state.with_process("gateway", daemons[0].identity)
            write_state(paths.state_file, state, paths.file_mode)
        progress("waiting for the enclave")
        wait_answer(paths, daemons, interrupts, time.monotonic() + _ANSWER_TIMEOUT_S)
        return state

    def _stop_all(self, paths: EnclavePaths, *, with_gateway: bool) -> None:
        if with_gateway:
            stop_gateway(paths, grace_s=_GRACE_S)
        self.stop_processes(paths)

    def stop_processes(self, paths: EnclavePaths) -> None:
        """End the enclave, if it is still the one that the state file means.

        Raises:
            EnclaveStartError: nitro-cli cannot end it; the state file stays.
        """
        state = read_state(paths.state_file)
        if state is not None:
            if "console" in state.processes:
                stop_process(state.processes["console"], grace_s=_GRACE_S)
            if state.machine is not None:
                _terminate(state, state.machine)
        for name in ("gateway", "console"):
            (paths.runtime / f"{name}.ready").unlink(missing_ok=True)
        paths.state_file.unlink(missing_ok=True)

    def attestation_root(self, paths: EnclavePaths) -> bytes:
        """Return AWS Nitro's root certificate; a stand-in's for what runs on a stand-in.

        Raises:
            EnclaveStartError: A stand-in's cannot be read.
        """
        state = read_state(paths.state_file)
        if state is None or state.stand_in is None:
            return AWS_NITRO_ROOT_DER
        path = Path(state.stand_in) / "root.pem"
        try:
            return read_certificate(path)
        except (OSError, ValueError) as error:
            raise EnclaveStartError(
                f"the stand-in's root {path} cannot be read: {error}"
            ) from error

    def credentials(self, paths: EnclavePaths) -> Credentials:  # noqa: ARG002
        """Return the credentials of the default chain: on an instance those of its role.

        Raises:
            CredentialsError: There are none.
        """
        return default_credentials()

    def own_destination(self, paths: EnclavePaths) -> Destination | None:  # noqa: ARG002
        """Return None: KMS is allowed by name."""
        return None


class _Start:
    """One start, step by step; what is started is in the state file before the next step."""

    def __init__(
        self,
        paths: EnclavePaths,
        machine: Machine,
        progress: Progress,
        interrupts: DeferredInterrupts,
    ) -> None:
        self._paths = paths
        self._asked = machine
        self._progress = progress
        self._interrupts = interrupts
        self.state = EnclaveState("nitro", time.time(), "")

    def check(self) -> None:
        """See that it can start, and as what; starts nothing.

        Raises:
            EnclaveStartError: It cannot; the text says what to change.
        """
        asked = self._asked
        if asked.image is None:
            raise EnclaveStartError(
                "which image? Type: enclave up --backend nitro --image FILE.eif"
            )
        nitro_cli_path()
        if asked.debug and remembered_pcrs(self._paths):
            raise EnclaveStartError(
                "PCRs are expected of the enclave, and in debug mode it proves none; type: enclave "
                "up --debug-mode --expect-pcr0 default, or leave out --debug-mode"
            )
        self._progress("measuring the image")
        image, size = _read_image(asked.image)
        allocation = read_allocation()
        memory = asked.memory_mib or allocation.memory_mib
        cpus = asked.cpus or allocation.cpus
        check_fits(allocation, image_bytes=size, memory_mib=memory, cpus=cpus)
        self.state = msgspec.structs.replace(
            self.state,
            measured_pcr0=None if asked.debug else image.pcrs[0].hex(),
            debug=asked.debug,
            own_gateway=asked.with_gateway,
            stand_in=os.environ.get(STAND_IN_VARIABLE) or None,
            machine=MachineState(
                f"enclave-kernel-{secrets.token_hex(8)}", str(asked.image.absolute()), memory, cpus
            ),
        )

    def run(self, idle_timeout_s: float) -> None:
        """Start it; return when kernels can be launched."""
        self._interrupts.check()
        self._start_enclave()
        self._interrupts.check()
        self._check_description()
        daemons: list[Daemon] = []
        if self._asked.debug:
            self._follow_console()
        if self._asked.with_gateway:
            daemons.append(spawn_gateway(self._paths, self.state, idle_timeout_s))
            self._note(self.state.with_process("gateway", daemons[0].identity))
        self._progress("waiting for the enclave")
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        wait_answer(self._paths, daemons, self._interrupts, deadline)

    @property
    def _machine(self) -> MachineState:
        if self.state.machine is None:
            raise EnclaveStartError("the enclave was not checked before its start")
        return self.state.machine

    def _start_enclave(self) -> None:
        machine = self._machine
        # Before it runs: whoever finds it after we were killed knows its name.
        self._note(self.state)
        self._progress(
            f"starting the enclave ({machine.memory_mib} MiB, {machine.cpus} CPUs); its boot takes "
            "up to a minute"
        )
        started = run_enclave(
            Path(machine.image),
            name=machine.name,
            memory_mib=machine.memory_mib,
            cpus=machine.cpus,
            cid=self._asked.cid,
            debug=self._asked.debug,
        )
        endpoint = f"vsock:{started.cid}:{SUPERVISOR_PORT}"
        if self.state.stand_in is not None:
            endpoint = f"unix:{self.state.stand_in}/{started.cid}_{SUPERVISOR_PORT}"
        self._note(
            msgspec.structs.replace(
                self.state.with_process("enclave", ProcessIdentity.of(started.process_id)),
                endpoint=endpoint,
                machine=msgspec.structs.replace(
                    machine,
                    enclave_id=started.enclave_id,
                    cid=started.cid,
                    memory_mib=started.memory_mib,
                    cpus=started.cpus,
                ),
            )
        )

    def _check_description(self) -> None:
        """See that what nitro-cli says it runs is what was asked for."""
        found = _described(self._machine)
        if found is None or found.state != "RUNNING":
            raise EnclaveStartError(
                "the enclave ended right after its start; nitro-cli writes to "
                "/var/log/nitro_enclaves/nitro_enclaves.log"
            )
        if found.debug is not self._asked.debug:
            raise EnclaveStartError(
                f"nitro-cli started the enclave with flags {found.flags}; is it nitro-cli that is "
                "first on PATH?"
            )
        said, measured = found.measurements.get("PCR0"), self.state.measured_pcr0
        if said is not None and measured is not None and said.lower() != measured:
            raise EnclaveStartError(
                f"nitro-cli measured PCR0 {said} and we {measured}: the image was replaced while "
                "it was started; try again"
            )

    def _follow_console(self) -> None:
        console = [nitro_cli_path(), "console", "--enclave-id", str(self._machine.enclave_id)]
        daemon = Daemon("console", console, os.environ, self._paths, log_output=True)
        self._note(self.state.with_process("console", daemon.identity))

    def _note(self, state: EnclaveState) -> None:
        self.state = state
        write_state(self._paths.state_file, state, self._paths.file_mode)


def _read_image(path: Path) -> tuple[Eif, int]:
    """Return the image's content and size in bytes.

    Raises:
        EnclaveStartError: It is not an image, or not one for this machine.
    """
    try:
        with path.open("rb") as stream:
            image, size = read_eif(stream), os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise EnclaveStartError(f"the image {path} cannot be read: {error.strerror}") from error
    except EifError as error:
        raise EnclaveStartError(f"{path} is not an enclave image: {error}") from error
    if image.arm64 is not (platform.machine() in _ARM64):
        raise EnclaveStartError(
            f"{path} is for {'arm64' if image.arm64 else 'x86_64'}, and this machine is "
            f"{platform.machine()}; build the image for it"
        )
    return image, size


def _described(machine: MachineState) -> DescribedEnclave | None:
    """Return what nitro-cli says of our enclave, told from others by its random name."""
    return next((one for one in describe_enclaves() if one.name == machine.name), None)


def _enclave_runs(state: EnclaveState) -> bool:
    """Return whether the enclave of a state file runs: its process lives, and has its name."""
    process = state.processes.get("enclave", _NOBODY)
    if state.machine is None or not process.is_running():
        return False
    found = _described(state.machine)
    return found is not None and found.state == "RUNNING"


def _terminate(state: EnclaveState, machine: MachineState) -> None:
    """End the enclave and wait for its process's end; one that is gone is fine."""
    process = state.processes.get("enclave")
    if process is not None and not process.is_running():
        # nitro-cli's process holds the enclave: with it the enclave has ended.
        return
    found = _described(machine)
    if found is None:
        # Ids and CIDs are used again, also after a reboot: what has another name is not ours.
        return
    if found.state != "TERMINATING":
        with suppress(EnclaveStartError):
            terminate_enclave(found.enclave_id)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (process or _NOBODY).is_running() or _described(machine) is not None:
        if time.monotonic() > deadline:
            raise EnclaveStartError(
                f"the enclave {found.enclave_id} does not end; type: sudo nitro-cli "
                f"terminate-enclave --enclave-id {found.enclave_id}"
            )
        time.sleep(_POLL_S)
