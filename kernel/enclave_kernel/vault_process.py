"""A vault as the supervisor holds it: spawn, start, interrupt, kill, wait.

Blocking. Imports nothing of `vault/`: that code runs in the vault only.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from enclave_kernel.held_process import HeldProcess
from enclave_kernel.isolation.control_groups import ControlGroup
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, FrameError, encode_frame
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from enclave_protocol.package_signature import PackageSignatureError
from enclave_protocol.vault_messages import (
    KEY_BYTES,
    ControlMessage,
    StartVault,
    VaultFailed,
    VaultMessageError,
    VaultReady,
    VaultStarted,
    decode_control,
    encode_control,
)

__all__ = ["VaultDeath", "VaultProcess", "VaultStartError"]

_Expected = TypeVar("_Expected", VaultReady, VaultStarted)
_BOOTSTRAP: Final = Path(__file__).parent / "vault" / "bootstrap.py"
_READY_TIMEOUT_S: Final = 30.0
_ENVIRON: Final = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # ONNX Runtime reports its use to its maker otherwise: nothing leaves a vault.
    "ORT_DISABLE_TELEMETRY": "1",
}
_MAX_CONTROL_BYTES: Final = 64 * 1024
"""Of what a vault says: before it started it is as trusted as a package may become."""
_CREDENTIALS: Final = struct.Struct("3i")
"""Of `struct ucred` (unix(7)): pid, uid, gid."""
_PACKAGE_ERRORS: Final = {
    kind.__name__: kind
    for kind in (
        PackageError,
        PackageFormatError,
        PackageSignatureError,
        PackageTamperedError,
        PackageTruncatedError,
    )
}


class VaultStartError(EnclaveError):
    """A vault could not be made, or did not take its package."""


@dataclass(frozen=True)
class VaultDeath:
    """How a vault ended.

    Attributes:
        reason: One line for the notebook's user; holds nothing of the package.
        returncode: As in `subprocess`; negative for a signal.
        peak_memory_bytes: Most memory it had at a time; None without a control group that knows.
    """

    reason: str
    returncode: int
    peak_memory_bytes: int | None = None


class VaultProcess:
    """One vault process. Make it with `spawn`.

    Attributes:
        pid: Its process id; valid until `wait` returned.
        session_socket: The notebook's end of the socket for calls: give it away once, then close.
        walls: What its self-check found standing, in words for `enclave status`.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        control: socket.socket,
        session_socket: socket.socket,
        private_dir: Path,
        *,
        has_init: bool,
        control_group: ControlGroup | None,
    ) -> None:
        self.pid = process.pid
        self.session_socket = session_socket
        self._process = process
        self._control = control
        self._private_dir = private_dir
        self._has_init = has_init
        self._control_group = control_group
        self.walls: tuple[str, ...] = ()
        self._payload: HeldProcess | None = None
        self._lock = threading.Lock()
        self._killed = False
        self._reaped = False

    @classmethod
    def spawn(
        cls,
        *,
        uid: int | None,
        gid: int | None,
        runtime_dir: Path,
        sys_path: list[str],
        memory_limit: int | None,
        control_group: ControlGroup | None = None,
        native: bool = False,
        timeout_s: float = _READY_TIMEOUT_S,
    ) -> "VaultProcess":
        """Start an empty vault and wait until its walls stand.

        Call it from a thread that lives as long as the supervisor: the kernel kills the vault
        when the thread that spawned it ends.

        Args:
            uid: User that nothing else has, or will have in this boot; needs root. None: the
                supervisor's own, which is no boundary.
            gid: Its group; None for the same number.
            runtime_dir: Where the vault's private directory is made.
            sys_path: Folders with the enclave's own packages, readable for others (the folders
                above need not be); nothing a notebook's user can write to.
            memory_limit: Bytes of private memory; None for no limit.
            control_group: Limits it instead where it can; removed when the vault is gone.
            native: For a package that brings compiled code: its folder may hold programs.
            timeout_s: Seconds until it must be ready.

        Raises:
            VaultStartError: It did not become ready; it is gone again.
        """
        private_dir = runtime_dir.resolve() / f"vault-{secrets.token_hex(16)}"
        _make_private_dir(private_dir)
        control, vault_control = socket.socketpair()
        # Who says that it is ready is the one to interrupt: the kernel tells its pid, as seen here.
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        session_socket, vault_calls = socket.socketpair()
        try:
            process = _execute((vault_control.fileno(), vault_calls.fileno()))
        except OSError as error:
            control.close()
            session_socket.close()
            private_dir.rmdir()
            if control_group is not None:
                control_group.remove()
            raise VaultStartError(f"a vault cannot be started: {error}") from error
        finally:
            vault_control.close()
            vault_calls.close()
        vault = cls(
            process,
            control,
            session_socket,
            private_dir,
            has_init=uid is not None,
            control_group=control_group,
        )
        spec = {
            "sys_path": sys_path,
            "supervisor_pid": os.getpid(),
            "private_dir": str(private_dir),
            "uid": uid,
            "gid": gid,
            "memory_limit": memory_limit,
            "native": native,
            "control_groups": {} if control_group is None else control_group.controllers,
        }
        vault._wall_off(spec, timeout_s)
        return vault

    def _wall_off(self, spec: dict[str, object], timeout_s: float) -> None:
        """Tell a new process what to be, and wait until its walls stand; else it is gone again."""
        try:
            if self._control_group is not None:
                # Before it is told what to be: it allocates little until then.
                self._control_group.add(self.pid)
            self._control.settimeout(timeout_s)
            self._control.sendall(encode_frame(json.dumps(spec).encode()))
            self.walls = self._expect(VaultReady).walls
        except BaseException as error:  # Ctrl-C in `enclave-owner try`, too
            self.kill()
            self.wait()
            self.session_socket.close()
            if isinstance(error, OSError | EnclaveError) and not isinstance(error, VaultStartError):
                raise VaultStartError(f"a vault did not start: {error}") from error
            raise

    def start(self, header_raw: bytes, data_key: bytearray, *, now_ms: int) -> None:
        """Give the vault its package's header and key; it then takes the body from the notebook.

        Args:
            header_raw: Everything before the body, as it is in the file.
            data_key: 32 bytes, wiped here in any case.
            now_ms: Milliseconds since 1970, as `TrustedClock` has it.

        Raises:
            PackageError: The vault refused the header.
            VaultStartError: The vault is gone or silent; kill it.
        """
        try:
            if len(data_key) != KEY_BYTES:
                raise VaultStartError(f"the data key has {len(data_key)} bytes, not {KEY_BYTES}")
            self._control.sendall(encode_frame(encode_control(StartVault(header_raw, now_ms))))
            # By itself: inside a message it would leave a copy that nobody can wipe.
            self._control.sendall(data_key)
            self._expect(VaultStarted)
        except OSError as error:
            raise VaultStartError(f"the vault does not answer: {error}") from error
        finally:
            data_key[:] = bytes(len(data_key))
        self._control.close()

    @property
    def walled(self) -> bool:
        """Whether it is a user of its own and its self-check found every wall of one standing."""
        return self._has_init and bool(self.walls)

    @property
    def control_group(self) -> ControlGroup | None:
        """What limits it; None where the system offers nothing."""
        return self._control_group

    def interrupt(self) -> None:
        """Interrupt the call that runs in the vault, as Ctrl-C would; a dead vault is fine.

        When this returns, the vault has the signal: it cannot hit a call that is sent afterwards.
        """
        with self._lock:
            if self._payload is not None:
                self._payload.signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill the vault and whatever it forked; harmless when it is dead. Call `wait` after."""
        with self._lock:
            self._killed = True
            if self._has_init:
                # It kills the pid namespace's init and waits: then nothing is left in there.
                self._signal(signal.SIGTERM)
            else:
                self._kill_group()

    def wait(self) -> VaultDeath:
        """Wait until the vault is dead, clean up after it, and return how it died.

        Nothing of it is left afterwards: no process, no file, no open socket but the notebook's.
        """
        # Not reaped yet: until its children are killed the group must not get another owner.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            killed = self._killed
            self._kill_group()
            self._reaped = True
            returncode = self._process.wait()
            if self._payload is not None:
                self._payload.close()
                self._payload = None
        self._control.close()
        # As another user the files were on the vault's own tmpfs, and only the folder is left.
        shutil.rmtree(self._private_dir, ignore_errors=True)
        peak = None if self._control_group is None else self._control_group.peak_bytes()
        return VaultDeath(self._reason(returncode, killed=killed), returncode, peak)

    def _reason(self, returncode: int, *, killed: bool) -> str:
        group = self._control_group
        if group is None:
            return _reason(returncode, killed=killed)
        over = group.killed_for_memory()
        group.remove()
        if over and not killed:
            return f"it needed more than the {group.limit_bytes // 2**20} MiB of memory it may have"
        return _reason(returncode, killed=killed)

    def _signal(self, number: signal.Signals) -> None:
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _kill_group(self) -> None:
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _expect(self, kind: type[_Expected]) -> _Expected:
        message = self._receive()
        if isinstance(message, VaultFailed):
            package_error = _PACKAGE_ERRORS.get(message.kind)
            if package_error is not None:
                raise package_error(message.message)
            raise VaultStartError(message.message)
        if not isinstance(message, kind):
            raise VaultStartError("the vault sent another message than expected")
        return message

    def _receive(self) -> ControlMessage:
        decoder = FrameDecoder(_MAX_CONTROL_BYTES)
        while True:
            try:
                data, ancillary, _, _ = self._control.recvmsg(
                    _MAX_CONTROL_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
                frames = decoder.feed(data)
                if frames:
                    message = decode_control(frames[0])
                    if isinstance(message, VaultReady):
                        self._hold_payload(ancillary)
                    return message
            except TimeoutError:
                raise VaultStartError("the vault did not answer in time") from None
            except (FrameError, VaultMessageError) as error:
                raise VaultStartError(f"the vault broke the protocol: {error}") from None
            if not data:
                raise VaultStartError("the vault ended before it was ready")

    def _hold_payload(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Keep the process that runs the package; no line of a package has run in there yet."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self._payload = HeldProcess(_CREDENTIALS.unpack(data)[0])


def _execute(descriptors: tuple[int, int]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_BOOTSTRAP), *map(str, descriptors)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        # From nothing: no variable of ours or of a user's changes what runs in there.
        env=_ENVIRON,
        pass_fds=descriptors,
        start_new_session=True,
    )


def _make_private_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise VaultStartError(
            f"no private directory can be made in {path.parent}: {error}"
        ) from error


def _reason(returncode: int, *, killed: bool) -> str:
    if killed:
        return "it was unloaded or stopped"
    if returncode == -signal.SIGKILL:
        return "it was killed, most likely because the enclave ran out of memory"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"its code crashed ({name})"
    return f"it ended by itself (exit code {returncode})"
