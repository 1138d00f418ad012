"""Brings the enclave up and down, for the CLI and for notebooks; exactly one at a time."""

import time
from contextlib import suppress
from pathlib import Path

from enclave_parent_gateway.api import GatewayStatus
from enclave_parent_gateway.backends.base import Machine, Progress, load_backend
from enclave_parent_gateway.enclave_state import EnclaveState, read_state
from enclave_parent_gateway.errors import EnclaveNotTrustedError, EnclaveStartError
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.process_identity import stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import Done, Shutdown, StatusRequest

__all__ = ["bring_down", "bring_up", "running_status"]

_SHUTDOWN_TIMEOUT_S = 15.0
_GATEWAY_GRACE_S = 3.0
_REFUSAL_GRACE_S = 3.0
"""The gateway looks again every second at what it refused."""
_POLL_S = 0.1
_ANY_MACHINE = Machine()


def running_status(gateway_socket: Path) -> GatewayStatus | None:
    """Return the gateway's word, None if it does not answer; its `enclave` may still be None."""
    with suppress(EnclaveError, OSError):
        return ask_blocking(gateway_socket, StatusRequest(), GatewayStatus)
    return None


def bring_up(
    paths: EnclavePaths,
    *,
    backend: str,
    machine: Machine = _ANY_MACHINE,
    idle_timeout_s: float = 0.0,
    progress: Progress,
    interrupts: DeferredInterrupts,
    wait_for_all: bool,
    revive: bool = False,
) -> tuple[EnclaveState, bool]:
    """Start the enclave unless one is up.

    Args:
        paths: Of this enclave.
        backend: Name of the backend for a new one.
        machine: See `Backend.up`.
        idle_timeout_s: See `Backend.up`.
        progress: Told each step.
        interrupts: Entered; checked between steps.
        wait_for_all: See `Backend.up`.
        revive: Only give an enclave that lives a gateway again; start no other.

    Returns:
        What runs now, and whether this call started it.

    Raises:
        EnclaveStartError: It does not come up.
        EnclaveNotTrustedError: What answers is not the enclave expected.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; nothing is left of the attempt.
    """
    paths.require_own("sudo systemctl start enclave")
    lock = paths.lock()
    lock.acquire(interrupts.check)
    try:
        status = _settled_status(paths.gateway_socket, interrupts)
        state = read_state(paths.state_file)
        if status is not None and status.refusal is not None:
            raise EnclaveNotTrustedError(status.refusal.kind, status.refusal.message)
        if status is not None and status.enclave is not None and state is not None:
            return state, False
        if revive and (state is None or not state.enclave_lives):
            raise EnclaveStartError("the enclave has ended; type: enclave up")
        started = load_backend(backend).up(
            paths,
            machine=machine,
            idle_timeout_s=idle_timeout_s,
            progress=progress,
            interrupts=interrupts,
            wait_for_all=wait_for_all,
        )
        return started, True
    finally:
        lock.release()


def _settled_status(gateway_socket: Path, interrupts: DeferredInterrupts) -> GatewayStatus | None:
    """Return the gateway's word; one that refused the enclave gets the time to look again."""
    deadline = time.monotonic() + _REFUSAL_GRACE_S
    while True:
        status = running_status(gateway_socket)
        if status is None or status.refusal is None or time.monotonic() > deadline:
            return status
        interrupts.check()
        time.sleep(_POLL_S)


def bring_down(paths: EnclavePaths, *, progress: Progress) -> bool:
    """End the enclave, its kernels and everything that was started for it.

    Returns:
        Whether there was anything to end.

    Raises:
        EnclaveStartError: The state file names a backend that this version does not have.
    """
    paths.require_own("sudo systemctl stop enclave")
    lock = paths.lock()
    lock.acquire(lambda: progress("waiting for another command"))
    try:
        state = read_state(paths.state_file)
        if state is None:
            return False
        backend = load_backend(state.backend)
        progress("ending kernels and enclave")
        # One that was not started with the enclave stays; it is somebody else's to stop.
        if state.own_gateway:
            with suppress(EnclaveError, OSError):
                ask_blocking(paths.gateway_socket, Shutdown(), Done, timeout_s=_SHUTDOWN_TIMEOUT_S)
            if "gateway" in state.processes:
                stop_process(state.processes["gateway"], grace_s=_GATEWAY_GRACE_S)
        progress("ending the other processes")
        backend.stop_processes(paths)
        if state.own_gateway:
            for left in (paths.gateway_socket, paths.metrics_socket):
                left.unlink(missing_ok=True)
            for leftover in paths.channels.iterdir():
                leftover.unlink(missing_ok=True)
        return True
    finally:
        lock.release()
