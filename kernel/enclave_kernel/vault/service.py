"""The life of a vault: lock down, wait empty, open one package, serve it until the notebook goes.

Everything but the standard library is imported after the lockdown: numpy starts threads.
"""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from enclave_kernel.vault.lockdown import LockdownError, LockdownSpec, lock_down
from enclave_kernel.vault.own_root import PACKAGE_FOLDER
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import MAX_FRAME_BYTES, encode_frame
from enclave_protocol.vault_messages import (
    KEY_BYTES,
    ControlMessage,
    StartVault,
    VaultFailed,
    VaultReady,
    VaultStarted,
    decode_control,
    encode_control,
)

__all__ = ["run"]

_TEMPORARY_FOLDER = "tmp"


def run(control: socket.socket, calls: socket.socket, spec: dict[str, Any]) -> int:
    """Run this process as a vault; returns its exit code.

    Args:
        control: Socket to the supervisor, the specification already read from it.
        calls: Socket to the notebook's process.
        spec: Fields of `LockdownSpec`.
    """
    try:
        lockdown = LockdownSpec(**spec)
        # As root it comes back in a process further in, the one that will run the package.
        walls = lock_down(lockdown, keep=frozenset((control.fileno(), calls.fileno())))
        _check_readable(lockdown)
        private = _prepare(walls.private_dir)
        # Now, while the vault waits: the notebook shall not wait for it. Behind the walls, as
        # whatever a package imports later: what works here works there.
        from enclave_kernel.trusted_clock import TrustedClock
        from enclave_kernel.vault.serving import open_package, serve_package
    except (EnclaveError, OSError, ImportError) as error:
        kind = LockdownError.__name__
        _say(control, VaultFailed(kind, f"the vault could not start: {error}"[:4000]))
        return 1
    _silence_hooks()
    _say(control, VaultReady(walls.checked))
    try:
        start, key = _receive_start(control)
    except EOFError:
        return 0
    try:
        package = open_package(start.header, key, private, TrustedClock(start.now_ms))
    except EnclaveError as error:
        _say(control, VaultFailed(type(error).__name__, str(error)[:4000]))
        return 1
    finally:
        key[:] = bytes(len(key))
    _say(control, VaultStarted())
    # The supervisor has nothing more to say but signals, and the package nothing to say to it.
    control.close()
    serve_package(package, calls)
    # No clean-up of the package's: it would run without anybody to answer.
    os._exit(0)


def _check_readable(lockdown: LockdownSpec) -> None:
    """Say plainly what would otherwise be a missing module.

    Raises:
        LockdownError: The vault's user cannot read a folder it imports from.
    """
    for folder in sys.path:
        if Path(folder).suffix != ".zip" and not os.access(folder, os.R_OK | os.X_OK):
            raise LockdownError(
                f"the vault's user {lockdown.uid} cannot read {folder}: install the project "
                "where every user can read it, or start the enclave as another user than root"
            )


def _prepare(private_dir: Path) -> Path:
    """Make the folders for the package's files and for temporary ones; return the former."""
    package = private_dir / PACKAGE_FOLDER
    package.mkdir(mode=0o700, exist_ok=True)
    temporary = private_dir / _TEMPORARY_FOLDER
    temporary.mkdir(mode=0o700, exist_ok=True)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(temporary)
    os.chdir(temporary)
    return package


def _silence_hooks() -> None:
    """Switch off what would write tracebacks; descriptors 1 and 2 lead nowhere anyway."""
    sys.excepthook = lambda *_: None
    threading.excepthook = lambda *_: None
    sys.unraisablehook = lambda *_: None
    # breakpoint() then raises.
    del sys.breakpointhook
    sys.argv[:] = [""]


def _say(control: socket.socket, message: ControlMessage) -> None:
    # A supervisor that is gone takes us with it: nothing to do about it here.
    with contextlib.suppress(OSError):
        control.sendall(encode_frame(encode_control(message)))


def _receive_start(control: socket.socket) -> tuple[StartVault, bytearray]:
    """Return what to open and the data key, once the supervisor sends them.

    Raises:
        EOFError: It closed the socket instead: this vault is not needed.
    """
    # Never past the frame: the key behind it goes into memory that can be wiped.
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big")
    payload = control.recv(min(size, MAX_FRAME_BYTES), socket.MSG_WAITALL)
    if not size or len(payload) != size:
        raise EOFError
    message = decode_control(payload)
    key = bytearray(KEY_BYTES)
    if not isinstance(message, StartVault) or control.recv_into(
        key, KEY_BYTES, socket.MSG_WAITALL
    ) != len(key):
        raise EOFError
    return message, key
