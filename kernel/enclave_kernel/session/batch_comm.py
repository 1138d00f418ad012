"""The comm over which `enclave run` has a kernel session run a script.

It gives nobody more than the cells of the same kernel could do; in a session of the command's own
there are no cells.

Source: docs/spec/run.md.
"""

import os
import signal
import threading
from collections.abc import Mapping
from typing import Any, Final

from enclave_kernel.session.not_in_enclave import supervisor_link
from enclave_protocol.errors import EnclaveError
from enclave_protocol.run_messages import COMM_TARGET, FromRun, RunFailed, decode_to_run, encode

__all__ = ["accept_runs"]

_LEFT_ALONE_S: Final = 60.0


def accept_runs(shell: Any) -> None:
    """Have the kernel of this shell accept runs; a shell without one has no comms either."""
    manager = getattr(getattr(shell, "kernel", None), "comm_manager", None)
    if manager is not None:
        manager.register_target(COMM_TARGET, lambda comm, opened: _open(shell, comm, opened))


def _open(shell: Any, comm: Any, opened: Mapping[str, Any]) -> None:
    # Late: it needs NumPy, which must not be imported before the kernel was forked.
    from enclave_kernel.session.batch_run import BatchRun

    kernel = shell.kernel

    def send(message: FromRun, data: bytes | None = None) -> None:
        # Not `comm.send`: it belongs to the message that the main thread is handling.
        kernel.session.send(
            kernel.iopub_socket,
            "comm_msg",
            {"comm_id": comm.comm_id, "data": {}},
            ident=comm.topic,
            buffers=[encode(message), *(() if data is None else (data,))],
        )

    try:
        run = BatchRun(supervisor_link(shell), send)
    except EnclaveError as error:
        send(RunFailed(type(error).__name__, str(error)))
        return

    def take(received: Mapping[str, Any]) -> None:
        # Frames of ZeroMQ have their memory under this name.
        buffers = [memoryview(getattr(item, "buffer", item)) for item in received["buffers"]]
        try:
            run.take(decode_to_run(buffers[0] if buffers else b""), buffers[1:])
        except EnclaveError as error:
            send(RunFailed(type(error).__name__, str(error)))

    def ended() -> None:
        # A session for this run only; its command ends it sooner, if it and the gateway live.
        if shell.execution_count == 1:
            timer = threading.Timer(_LEFT_ALONE_S, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()

    comm.on_msg(take)
    run.start(ended)
    take(opened)
