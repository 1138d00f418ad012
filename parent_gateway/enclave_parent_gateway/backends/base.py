"""What the rest of the parent side knows of a backend: how an enclave comes up and goes down."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Credentials

__all__ = ["BACKENDS", "Backend", "Machine", "Progress", "is_confidential", "load_backend"]

Progress = Callable[[str], None]
"""Told what is being done now, a few words."""

BACKENDS = ("local", "qemu", "nitro")
"""The backends there are, the default one first."""


@dataclass(frozen=True)
class Machine:
    """What an enclave is to run on.

    Attributes:
        memory_mib: local: limit of one kernel's memory; otherwise the enclave's memory; in MiB.
        image: The EIF file.
        cpus: How many CPUs the enclave gets.
        cid: Its vsock CID; None: chosen for it.
        debug: Its console can be read, and nothing about it is proven.
        with_gateway: Start a gateway, too; False: one of the same runtime directory runs already.
    """

    memory_mib: int | None = None
    image: Path | None = None
    cpus: int | None = None
    cid: int | None = None
    debug: bool = False
    with_gateway: bool = True

    @property
    def needs_virtual_machine(self) -> bool:
        """Whether something is asked for that processes of this machine do not have."""
        asked = (self.image, self.cpus, self.cid)
        return any(one is not None for one in asked) or self.debug or not self.with_gateway


class Backend(Protocol):
    """A way to run an enclave."""

    confidential: bool
    """Whether what runs there is hidden from root on this machine."""

    def up(
        self,
        paths: EnclavePaths,
        *,
        machine: Machine,
        idle_timeout_s: float,
        progress: Progress,
        interrupts: DeferredInterrupts,
        wait_for_all: bool,
    ) -> EnclaveState:
        """Start an enclave and its gateway; the caller holds `paths.lock()` and found none.

        Args:
            paths: Of this enclave.
            machine: What it is to run on.
            idle_timeout_s: See `gateway.Gateway`.
            progress: Told each step.
            interrupts: Entered by the caller; checked whenever something can be undone.
            wait_for_all: False: return as soon as kernels can be started.

        Raises:
            EnclaveStartError: It did not come up; nothing of it is left running.
            KeyboardInterrupt: Interrupted; the same.
        """

    def stop_processes(self, paths: EnclavePaths) -> None:
        """End everything but the gateway, and remove its files."""

    def attestation_root(self, paths: EnclavePaths) -> bytes:
        """Return the certificate (DER) that attestation documents must lead to.

        Raises:
            GatewayError: There is none (yet).
        """

    def credentials(self, paths: EnclavePaths) -> Credentials:
        """Return AWS credentials for one KMS call. Blocks.

        Raises:
            CredentialsError: There are none.
        """

    def own_destination(self, paths: EnclavePaths) -> Destination | None:
        """Return where the enclave itself may connect besides what is allowed; None: nowhere."""


def load_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        EnclaveStartError: There is none of that name.
    """
    if name == "local":
        from enclave_parent_gateway.backends.local import LocalBackend

        return LocalBackend()
    if name == "qemu":
        from enclave_parent_gateway.backends.qemu import QemuBackend

        return QemuBackend()
    if name == "nitro":
        from enclave_parent_gateway.backends.nitro import NitroBackend

        return NitroBackend()
    raise EnclaveStartError(
        f"there is no backend {name!r} in this version, expected {' or '.join(BACKENDS)}"
    )


def is_confidential(state: EnclaveState) -> bool:
    """Return whether what runs there is hidden from root on this machine."""
    return load_backend(state.backend).confidential and not state.debug and not state.stand_in
