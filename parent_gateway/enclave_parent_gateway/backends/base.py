"""What the rest of the parent side knows of a backend: how an enclave comes up and goes down."""

from collections.abc import Callable
from typing import Protocol

from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Credentials

__all__ = ["BACKENDS", "Backend", "Progress", "load_backend"]

Progress = Callable[[str], None]
"""Told what is being done now, a few words."""

BACKENDS = ("local",)
"""The backends there are, the default one first."""


class Backend(Protocol):
    """A way to run an enclave."""

    confidential: bool
    """Whether what runs there is hidden from root on this machine."""

    def up(
        self,
        paths: EnclavePaths,
        *,
        memory_mib: int | None,
        idle_timeout_s: float,
        progress: Progress,
        interrupts: DeferredInterrupts,
        wait_for_all: bool,
    ) -> EnclaveState:
        """Start an enclave and its gateway; the caller holds `paths.lock()` and found none.

        Args:
            paths: Of this enclave.
            memory_mib: Limit of one kernel's memory in MiB, None for none.
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


def load_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        EnclaveStartError: There is none of that name.
    """
    if name == "local":
        from enclave_parent_gateway.backends.local import LocalBackend

        return LocalBackend()
    raise EnclaveStartError(
        f"there is no backend {name!r} in this version, expected {' or '.join(BACKENDS)}"
    )
