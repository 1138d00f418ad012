"""Stays until an enclave ends, and ends it when told to: `enclave up --wait`, for systemd."""

import os
import select

from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.interrupts import DeferredInterrupts

__all__ = ["wait_for_end"]

_POLL_MS = 200


def wait_for_end(state: EnclaveState, interrupts: DeferredInterrupts) -> None:
    """Return when the enclave's process has ended.

    Args:
        state: Of the enclave.
        interrupts: Entered; checked all the time.

    Raises:
        EnclaveStartError: It has no process on this machine.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came.
    """
    process = state.enclave_process
    if process is None:
        raise EnclaveStartError("it is not known which process is the enclave's; leave out --wait")
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        # Compared after opening: from here on the descriptor names this process and no other.
        while process.is_running() and not poller.poll(_POLL_MS):
            interrupts.check()
    finally:
        os.close(descriptor)
