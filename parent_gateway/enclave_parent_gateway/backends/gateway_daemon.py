"""Starts an enclave's gateway and waits until the enclave answers through it: for every backend."""

import os
import sys
import time
from collections.abc import Sequence

from enclave_parent_gateway.api import GatewayStatus
from enclave_parent_gateway.backends.daemon import Daemon
from enclave_parent_gateway.enclave_state import EnclaveState, read_state
from enclave_parent_gateway.errors import EnclaveNotTrustedError, EnclaveStartError
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.process_identity import stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import StatusRequest

__all__ = ["refuse_silent_gateway", "spawn_gateway", "stop_gateway", "wait_answer"]

_POLL_S = 0.005


def spawn_gateway(paths: EnclavePaths, state: EnclaveState, idle_timeout_s: float) -> Daemon:
    """Start the gateway; it looks for the supervisor by itself."""
    command = [sys.executable, "-I", "-m", "enclave_parent_gateway.gateway"]
    command += ["--runtime-dir", str(paths.runtime), "--state-dir", str(paths.durable)]
    command += ["--endpoint", state.endpoint, "--backend", state.backend]
    command += ["--idle-timeout", str(idle_timeout_s)]
    # The whole environment: the default credential chain reads its variables.
    return Daemon("gateway", command, os.environ, paths)


def stop_gateway(paths: EnclavePaths, *, grace_s: float) -> None:
    """End the gateway that the state file tells of, if there is one."""
    state = read_state(paths.state_file)
    if state is not None and "gateway" in state.processes:
        stop_process(state.processes["gateway"], grace_s=grace_s)


def refuse_silent_gateway(state: EnclaveState, up: str) -> None:
    """See that an enclave that does not answer has no gateway, so that it can get one.

    Args:
        state: Of an enclave that runs.
        up: What starts one anew, for the message.

    Raises:
        EnclaveStartError: It has one.
    """
    gateway = state.processes.get("gateway")
    if gateway is not None and gateway.is_running():
        raise EnclaveStartError(f"the enclave runs and does not answer; type: enclave down && {up}")


def wait_answer(
    paths: EnclavePaths,
    daemons: Sequence[Daemon],
    interrupts: DeferredInterrupts,
    deadline: float,
) -> None:
    """Return when the supervisor answers through the gateway.

    Args:
        paths: Of the enclave.
        daemons: What must not end meanwhile.
        interrupts: Checked between two looks.
        deadline: On the monotonic clock, in seconds.

    Raises:
        EnclaveStartError: One of the daemons ended, or it takes too long.
        EnclaveNotTrustedError: It answers, and is not the enclave expected.
    """
    while not _answers(paths):
        interrupts.check()
        for daemon in daemons:
            daemon.check()
        if time.monotonic() > deadline:
            raise EnclaveStartError("the enclave does not answer in time; see: enclave logs")
        time.sleep(_POLL_S)


def _answers(paths: EnclavePaths) -> bool:
    try:
        # Short: Ctrl-C is looked at between two of these.
        status = ask_blocking(paths.gateway_socket, StatusRequest(), GatewayStatus, timeout_s=1.0)
    except (EnclaveError, OSError):
        return False
    if status.refusal is not None:
        raise EnclaveNotTrustedError(status.refusal.kind, status.refusal.message)
    return status.enclave is not None
