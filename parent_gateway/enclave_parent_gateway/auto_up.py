"""Brings the local enclave up when a notebook needs one and none is there.

`ensure_up` runs in the Jupyter server and starts this module as a process of its own, once for
any number of kernels: daemons must not be Jupyter's children, nor inherit what it has open.
"""

import argparse
import asyncio
import os
import signal
import sys

from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.errors import EnclaveNotRunningError, EnclaveStartError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError

__all__ = ["IDLE_TIMEOUT_S", "ensure_up", "main"]

IDLE_TIMEOUT_S = 300.0
"""An enclave that nobody asked for by name goes down after so long without a kernel."""
_POLL_S = 0.02
_AUTOMATIC = "local"


async def ensure_up(paths: EnclavePaths, *, idle_timeout_s: float, revive: bool = False) -> None:
    """Return when an enclave answers; bring the local one up if nothing runs.

    An enclave that lives gets a gateway again, on any backend, and keeps its kernels.

    Args:
        paths: Of the enclave.
        idle_timeout_s: Seconds without a kernel after which a new enclave goes down; 0: never.
        revive: Only give an enclave that lives a gateway again.

    Raises:
        EnclaveNotRunningError: Another backend is chosen, which no notebook starts.
        EnclaveStartError: It did not come up.
    """
    if paths.is_shared:
        raise EnclaveNotRunningError(
            "no enclave is up, and no notebook starts the one that is shared here; its "
            "administrator types: sudo systemctl start enclave"
        )
    state = read_state(paths.state_file)
    lives = state is not None and state.enclave_lives
    backend = (not lives and os.environ.get("ENCLAVE_BACKEND")) or (
        state.backend if state is not None else _AUTOMATIC
    )
    if backend != _AUTOMATIC and lives:
        # All that can be missing is its gateway; whoever started the enclave says when it ends.
        idle_timeout_s = 0.0
    elif backend != _AUTOMATIC:
        raise EnclaveNotRunningError(
            f"no enclave is up, and a notebook starts none on backend {backend!r}; "
            f"type: enclave up --backend {backend}"
        )
    lock = paths.starter_lock()
    while not lock.try_acquire():
        await asyncio.sleep(_POLL_S)
    try:
        # Whoever waited for the lock finds the enclave up: `bring_up` sees to that.
        only = ["--revive"] if revive else []
        await _run(["--idle-timeout", str(idle_timeout_s), "--backend", backend, *only])
    finally:
        lock.release()


async def _run(arguments: list[str]) -> None:
    """Run this module as a process; a cancelled caller ends it, and it cleans up after itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", __name__, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await process.communicate()
    except asyncio.CancelledError:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        raise
    if process.returncode:
        lines = stderr.decode(errors="replace").strip().splitlines()
        raise EnclaveStartError(
            lines[-1] if lines else f"the enclave did not come up (code {process.returncode})"
        )


def main() -> int:
    """Bring the enclave up; 0, or 1 with one line on standard error."""
    # Late: `ensure_up` is imported by every notebook server, the backends are needed only here.
    from enclave_parent_gateway.interrupts import DeferredInterrupts
    from enclave_parent_gateway.lifecycle import bring_up

    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("--idle-timeout", type=float, default=IDLE_TIMEOUT_S)
    parser.add_argument("--backend", default=_AUTOMATIC)
    parser.add_argument("--revive", action="store_true")
    options = parser.parse_args()
    try:
        with DeferredInterrupts() as interrupts:
            bring_up(
                EnclavePaths.from_environment(),
                backend=options.backend,
                idle_timeout_s=options.idle_timeout,
                progress=lambda _: None,
                interrupts=interrupts,
                wait_for_all=False,
                revive=options.revive,
            )
    except EnclaveError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the enclave was not started\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
