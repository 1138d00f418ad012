"""The local backend: supervisor, software NSM and local cloud as processes of this machine.

For development, demo and tests: NOT CONFIDENTIAL, root on this machine reads everything.
"""

import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from enclave_parent_gateway.backends.base import Machine, Progress
from enclave_parent_gateway.backends.daemon import Daemon, small_environ, stop_daemons
from enclave_parent_gateway.backends.gateway_daemon import (
    refuse_silent_gateway,
    spawn_gateway,
    stop_gateway,
    wait_answer,
)
from enclave_parent_gateway.backends.stand_ins import (
    cloud_arguments,
    cloud_credentials,
    free_port,
    local_root,
    root_directory,
)
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.enclave_state import EnclaveState, read_state, write_state
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Credentials

__all__ = ["LocalBackend"]

_START_TIMEOUT_S = 60.0
"""A start takes 1 to 2 s on an idle machine."""
_GRACE_S = 5.0
_MEASURED = ("enclave_kernel", "enclave_protocol")
_NOBODY = ProcessIdentity(0, -1)
_PARTS = ("supervisor", "nsm", "cloud")
_PASSABLE = 0o711
_MADE_FOR_ROOT = re.compile(r"(/[^/]+)*/enclave-[a-z0-9_]{8}")
"""What `tempfile.mkdtemp` makes of our prefix."""


class LocalBackend:
    """See the module; what the methods promise is in `base.Backend`."""

    confidential = False

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
        """Start NSM, local cloud, supervisor and gateway; or the gateway alone if only it died."""
        if machine.needs_virtual_machine:
            raise EnclaveStartError(
                "the local backend runs no image; --image, --cpus, --cid, --debug-mode and "
                "--no-gateway go with --backend nitro"
            )
        state = read_state(paths.state_file)
        if state is not None and state.processes.get("supervisor", _NOBODY).is_running():
            return self._resume(paths, state, idle_timeout_s, progress, interrupts)
        self._stop_all(paths)
        start = _Start(paths, progress, interrupts)
        try:
            start.run(machine.memory_mib, idle_timeout_s, wait_for_all=wait_for_all)
            interrupts.check()
        except BaseException:
            # Ctrl-C included: nothing stays behind.
            self._stop_all(paths)
            raise
        return start.state

    def _resume(
        self,
        paths: EnclavePaths,
        state: EnclaveState,
        idle_timeout_s: float,
        progress: Progress,
        interrupts: DeferredInterrupts,
    ) -> EnclaveState:
        """Give a supervisor that runs a gateway again; its kernels live on."""
        refuse_silent_gateway(state, "enclave up")
        start = _Start(paths, progress, interrupts, state)
        start.wait_answer([start.spawn_gateway(idle_timeout_s)])
        return start.state

    def _stop_all(self, paths: EnclavePaths) -> None:
        stop_gateway(paths, grace_s=_GRACE_S)
        self.stop_processes(paths)

    def stop_processes(self, paths: EnclavePaths) -> None:
        """End supervisor, local cloud and NSM."""
        state = read_state(paths.state_file)
        stop_daemons(paths, state, _PARTS, grace_s=_GRACE_S)
        files = (paths.enclave_socket, paths.nsm_socket, paths.state_file, paths.sync_file)
        for file in files:
            file.unlink(missing_ok=True)
        if state is not None and state.directory is not None:
            directory = Path(state.directory)
            if _is_enclave_directory(directory, paths):
                shutil.rmtree(directory, ignore_errors=True)

    def attestation_root(self, paths: EnclavePaths) -> bytes:
        """Return the certificate of this machine's own root.

        Raises:
            EnclaveStartError: It was not made yet, or cannot be read.
        """
        return local_root(paths)

    def credentials(self, paths: EnclavePaths) -> Credentials:
        """Return the local cloud's identity for the parent; the default chain's without an enclave.

        Raises:
            CredentialsError: The local cloud has ended or does not come up, or there are none.
        """
        return cloud_credentials(paths)

    def own_destination(self, paths: EnclavePaths) -> Destination | None:  # noqa: ARG002
        """Return None: what stands in for KMS is a process of the same machine."""
        return None


class _Start:
    """One start, step by step; every process is in the state file before the next step."""

    def __init__(
        self,
        paths: EnclavePaths,
        progress: Progress,
        interrupts: DeferredInterrupts,
        state: EnclaveState | None = None,
    ) -> None:
        self._paths = paths
        self._progress = progress
        self._interrupts = interrupts
        self._deadline = time.monotonic() + _START_TIMEOUT_S
        self._port = free_port()
        self.state = state or EnclaveState(
            "local",
            time.time(),
            f"unix:{paths.enclave_socket}",
            kms_endpoint_url=f"http://127.0.0.1:{self._port}",
            directory=str(_enclave_directory(paths)),
        )
        write_state(paths.state_file, self.state, paths.file_mode)

    def run(self, memory_mib: int | None, idle_timeout_s: float, *, wait_for_all: bool) -> None:
        """Start everything; return when kernels can be launched, or when all of it is ready."""
        paths = self._paths
        paths.make_durable()
        root_dir = root_directory(paths)
        self._progress("starting the software NSM")
        nsm = self._spawn(
            "nsm",
            "enclave_infra.software_nsm",
            *("--socket", str(paths.nsm_socket), "--root-dir", str(root_dir)),
            *("--measure", *(str(_folder(name)) for name in _MEASURED)),
        )
        gateway = self.spawn_gateway(idle_timeout_s)
        ready = nsm.wait_ready(self._deadline, self._interrupts.check)
        self.state = msgspec.structs.replace(self.state, measured_pcr0=ready.get("pcr0"))
        write_state(paths.state_file, self.state, paths.file_mode)
        self._progress("starting supervisor and local cloud")
        memory = ("--kernel-memory-mib", str(memory_mib)) if memory_mib else ()
        supervisor = self._spawn(
            "supervisor",
            "enclave_kernel",
            *("--listen", self.state.endpoint, "--nsm", f"unix:{paths.nsm_socket}"),
            *("--runtime-dir", str(self.state.directory), "--development"),
            *("--kms-endpoint-url", str(self.state.kms_endpoint_url), *memory),
            *("--hide", str(paths.runtime), "--hide", str(paths.durable)),
        )
        cloud = self._spawn(
            "cloud",
            "enclave_infra.local_cloud",
            *cloud_arguments(paths, self._port),
        )
        self.wait_answer([nsm, supervisor, gateway])
        if wait_for_all:
            self._progress("waiting for the local cloud")
            cloud.wait_ready(self._deadline, self._interrupts.check)

    def wait_answer(self, daemons: Sequence[Daemon]) -> None:
        """Return when the supervisor answers; raises as `gateway_daemon.wait_answer`."""
        self._progress("waiting for the enclave")
        wait_answer(self._paths, daemons, self._interrupts, self._deadline)

    def _spawn(self, name: str, module: str, *arguments: str) -> Daemon:
        command = [sys.executable, "-I", "-m", module, *arguments]
        return self._note(Daemon(name, command, small_environ(), self._paths))

    def spawn_gateway(self, idle_timeout_s: float) -> Daemon:
        """Start the gateway."""
        return self._note(spawn_gateway(self._paths, self.state, idle_timeout_s))

    def _note(self, daemon: Daemon) -> Daemon:
        self.state = self.state.with_process(daemon.name, daemon.identity)
        write_state(self._paths.state_file, self.state, self._paths.file_mode)
        return daemon


def _folder(package: str) -> Path:
    """Return the directory of a package without importing it."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise EnclaveStartError(
            f"the package {package} is not installed; type: pip install 'enclave-kernel[enclave]'"
        )
    return Path(next(iter(locations)))


def _enclave_directory(paths: EnclavePaths) -> Path:
    """Make the supervisor's directory.

    For root it is outside of ours: the vaults' users must be able to pass through it, and nobody
    but us through ours.
    """
    if os.geteuid() != 0:
        return _own(paths.enclave_runtime)
    parent = "/run" if os.access("/run", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="enclave-", dir=parent))
    directory.chmod(_PASSABLE)
    return directory


def _is_enclave_directory(directory: Path, paths: EnclavePaths) -> bool:
    """Return whether `_enclave_directory` made this; what a state file says is no proof of it."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return False
    if directory == paths.enclave_runtime:
        return True
    made_for_root = _MADE_FOR_ROOT.fullmatch(str(directory)) is not None
    return made_for_root and os.geteuid() == 0 and stat.S_IMODE(found.st_mode) == _PASSABLE


def _own(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path
