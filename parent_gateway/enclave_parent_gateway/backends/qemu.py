"""The qemu backend: an enclave image in a virtual machine of this machine, with real vsock.

For development and tests: NOT CONFIDENTIAL, root on this machine reads the machine's memory. There
is no NSM here that anybody believes: a development image brings the software NSM, which is handed
this machine's root and the PCR0 that was measured; a production image ends, and no key is released.
Source: docs/qemu.md; FACTS, "vsock" and "EIF version 4".
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from enclave_parent_gateway.backends.allocator import needed_memory_mib
from enclave_parent_gateway.backends.base import Machine, Progress
from enclave_parent_gateway.backends.daemon import Daemon, small_environ, stop_daemons
from enclave_parent_gateway.backends.development_ramdisk import development_ramdisk
from enclave_parent_gateway.backends.eif_boot import BootFiles, measure_image, unpack_eif
from enclave_parent_gateway.backends.gateway_daemon import (
    refuse_silent_gateway,
    spawn_gateway,
    stop_gateway,
    wait_answer,
)
from enclave_parent_gateway.backends.qemu_machine import (
    ACCELERATORS,
    VSOCK_SOCKET,
    qemu_program,
)
from enclave_parent_gateway.backends.stand_ins import (
    cloud_arguments,
    cloud_credentials,
    free_port,
    local_root,
    root_directory,
)
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.enclave_state import (
    EnclaveState,
    MachineState,
    read_state,
    write_state,
)
from enclave_parent_gateway.errors import EnclaveNotTrustedError, EnclaveStartError
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.eif import Eif
from enclave_protocol.messages import Credentials
from enclave_protocol.plain_text import plain_text
from enclave_protocol.vsock_ports import SUPERVISOR_PORT

__all__ = ["ACCELERATOR_VARIABLE", "QemuBackend"]

ACCELERATOR_VARIABLE: Final = "ENCLAVE_QEMU_ACCELERATOR"
"""`tcg` (default: works everywhere) or `kvm`. KVM inside of another virtual machine may be there
and not work, so it is not tried by itself."""
_VSOCK_DEVICE: Final = "vhost-device-vsock"
_PROGRAMS: Final = {
    qemu_program("x86_64"): "qemu-system-x86",
    qemu_program("aarch64"): "qemu-system-arm",
    _VSOCK_DEVICE: _VSOCK_DEVICE,
}
_START_TIMEOUT_S: Final = 300.0
"""From the start to an answer; with TCG it takes 20 s on an idle machine."""
_RESUME_TIMEOUT_S: Final = 60.0
_GRACE_S: Final = 8.0
"""More than the machine's process gives its own two programs."""
_NOBODY: Final = ProcessIdentity(0, -1)
_ENCLAVE: Final = "enclave"
"""Name of the process whose end is the enclave's end."""
_PARTS: Final = (_ENCLAVE, "cloud")
_DEFAULT_CPUS: Final = 2
_ROOT_FACTOR: Final = 2
"""An unpacked root takes half of the memory at most, and about three times the image's size."""
_MAX_CONSOLE_BYTES: Final = 64 * 1024
_OWN_LINES: Final = ("enclave: ", "Kernel panic")
_NO_ROOM: Final = "Initramfs unpacking failed: write error"


class QemuBackend:
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
        """Start local cloud, machine and gateway; or the gateway alone if only it died."""
        state = read_state(paths.state_file)
        if state is not None and state.processes.get(_ENCLAVE, _NOBODY).is_running():
            return self._resume(paths, state, idle_timeout_s, progress, interrupts)
        start = _Start(paths, machine, progress, interrupts)
        start.check()
        self._stop_all(paths)
        try:
            start.run(idle_timeout_s, wait_for_all=wait_for_all)
            interrupts.check()
        except (EnclaveStartError, EnclaveNotTrustedError) as error:
            console = _console(paths)
            self._stop_all(paths)
            if _NO_ROOM in console:
                raise EnclaveStartError(
                    "the machine has too little memory for the image: unpacked, it takes half of "
                    "it at most; type: enclave up --backend qemu --memory MIB, with more"
                ) from error
            if isinstance(error, EnclaveNotTrustedError):
                raise
            raise EnclaveStartError(f"{error}{_last_words(console)}") from error
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
        """Give a machine that runs a gateway again; its kernels live on."""
        refuse_silent_gateway(state, "enclave up --backend qemu")
        gateway = spawn_gateway(paths, state, idle_timeout_s)
        state = state.with_process("gateway", gateway.identity)
        write_state(paths.state_file, state)
        progress("waiting for the enclave")
        wait_answer(paths, [gateway], interrupts, time.monotonic() + _RESUME_TIMEOUT_S)
        return state

    def _stop_all(self, paths: EnclavePaths) -> None:
        stop_gateway(paths, grace_s=_GRACE_S)
        self.stop_processes(paths)

    def stop_processes(self, paths: EnclavePaths) -> None:
        """End machine and local cloud."""
        state = read_state(paths.state_file)
        stop_daemons(paths, state, _PARTS, grace_s=_GRACE_S)
        for file in (paths.state_file, paths.sync_file):
            file.unlink(missing_ok=True)
        shutil.rmtree(_folder(paths), ignore_errors=True)

    def attestation_root(self, paths: EnclavePaths) -> bytes:
        """Return the certificate of this machine's own root.

        Raises:
            EnclaveStartError: It was not made yet, or cannot be read.
        """
        return local_root(paths)

    def credentials(self, paths: EnclavePaths) -> Credentials:
        """Return the local cloud's identity for the parent.

        Raises:
            CredentialsError: The local cloud has ended or does not come up.
        """
        return cloud_credentials(paths)

    def own_destination(self, paths: EnclavePaths) -> Destination | None:
        """Return where the local cloud is: the enclave itself reaches it, no notebook does."""
        state = read_state(paths.state_file)
        if state is None or state.kms_endpoint_url is None:
            return None
        host, _, port = state.kms_endpoint_url.removeprefix("http://").partition(":")
        return Destination(host, int(port))


class _Start:
    """One start, step by step; every process is in the state file before the next step."""

    def __init__(
        self,
        paths: EnclavePaths,
        machine: Machine,
        progress: Progress,
        interrupts: DeferredInterrupts,
    ) -> None:
        self._paths = paths
        self._asked = machine
        self._progress = progress
        self._interrupts = interrupts
        self._deadline = time.monotonic() + _START_TIMEOUT_S
        self._port = free_port()
        self._folder = _folder(paths)
        self.state = EnclaveState(
            "qemu",
            time.time(),
            f"hybrid:{SUPERVISOR_PORT}:{self._folder / VSOCK_SOCKET}",
            kms_endpoint_url=f"http://127.0.0.1:{self._port}",
        )

    def check(self) -> None:
        """See that it can start, and as what; starts nothing.

        Raises:
            EnclaveStartError: It cannot; the text says what to do.
        """
        asked = self._asked
        if asked.image is None:
            raise EnclaveStartError("which image? Type: enclave up --backend qemu --image FILE.eif")
        if asked.debug or asked.cid is not None or not asked.with_gateway:
            raise EnclaveStartError(
                "--debug-mode, --cid and --no-gateway go with --backend nitro; in a machine of "
                "QEMU the console can always be read"
            )
        if _accelerator() not in ACCELERATORS:
            raise EnclaveStartError(
                f"{ACCELERATOR_VARIABLE} is {_accelerator()!r}, expected "
                f"{' or '.join(ACCELERATORS)}"
            )
        self._progress("measuring the image")
        eif, size = measure_image(asked.image)
        needed = needed_memory_mib(size)
        memory = asked.memory_mib or max(_ROOT_FACTOR * needed, eif.memory_bytes >> 20)
        if memory < needed:
            raise EnclaveStartError(
                f"the image has {size >> 20} MiB, so its enclave needs {needed} MiB (four times as "
                f"much), not {memory}; type: enclave up --backend qemu --memory {needed}"
            )
        _check_programs(_architecture(eif))
        self.state = msgspec.structs.replace(
            self.state,
            machine=MachineState(
                "qemu", str(asked.image.absolute()), memory, asked.cpus or _DEFAULT_CPUS
            ),
        )

    @property
    def _machine(self) -> MachineState:
        if self.state.machine is None:
            raise EnclaveStartError("the machine was not checked before its start")
        return self.state.machine

    def run(self, idle_timeout_s: float, *, wait_for_all: bool) -> None:
        """Start everything; return when kernels can be launched, or when all of it is ready."""
        paths = self._paths
        paths.make_durable()
        self._make_root()
        self._folder.mkdir(mode=0o700)
        write_state(paths.state_file, self.state)
        self._progress("starting the local cloud")
        cloud = self._spawn(
            "cloud", "enclave_infra.local_cloud", *cloud_arguments(paths, self._port)
        )
        machine = self._boot()
        gateway = spawn_gateway(paths, self.state, idle_timeout_s)
        self._note(gateway)
        self._progress("waiting for the enclave")
        wait_answer(paths, [machine, gateway], self._interrupts, self._deadline)
        if wait_for_all:
            cloud.wait_ready(self._deadline, self._interrupts.check)

    def _make_root(self) -> None:
        """Make this machine's root, which local cloud and software NSM need at once."""
        command = [sys.executable, "-I", "-m", "enclave_infra.software_nsm.make_root"]
        command += ["--root-dir", str(root_directory(self._paths))]
        made = subprocess.run(
            command, env=small_environ(), capture_output=True, text=True, check=False
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines() or ["no message"]
            raise EnclaveStartError(f"this machine's root cannot be made: {lines[-1]}")

    def _boot(self) -> Daemon:
        """Boot the image; return when it gave its sign of life."""
        machine = self._machine
        boot = self._boot_files(Path(machine.image))
        self._progress(
            f"booting {boot.name} ({_architecture(boot.eif)}, {machine.memory_mib} MiB, "
            f"{machine.cpus} CPUs, {_accelerator()})"
        )
        console = self._paths.log("console")
        if console.exists():
            # The last run's tells why that machine died; it is not about this one.
            console.replace(console.with_suffix(".log.1"))
        daemon = self._spawn(
            _ENCLAVE,
            "enclave_parent_gateway.backends.qemu_machine",
            *("--folder", str(self._folder), "--architecture", _architecture(boot.eif)),
            *("--console", str(console)),
            *("--memory-mib", str(machine.memory_mib), "--cpus", str(machine.cpus)),
            *("--cmdline", boot.cmdline, "--accelerator", _accelerator()),
        )
        daemon.wait_ready(self._deadline, self._interrupts.check)
        # QEMU has read them.
        for file in (boot.kernel, boot.initrd):
            file.unlink()
        return daemon

    def _boot_files(self, image: Path) -> BootFiles:
        root = root_directory(self._paths)

        def ramdisk(pcr0: bytes) -> bytes:
            return development_ramdisk(
                pcr0=pcr0,
                kms_endpoint_url=str(self.state.kms_endpoint_url),
                nsm_root={path.name: path.read_bytes() for path in root.iterdir()},
            )

        boot = unpack_eif(image, self._folder, extra_ramdisk=ramdisk)
        self.state = msgspec.structs.replace(self.state, measured_pcr0=boot.eif.pcrs[0].hex())
        write_state(self._paths.state_file, self.state)
        return boot

    def _spawn(self, name: str, module: str, *arguments: str) -> Daemon:
        command = [sys.executable, "-I", "-m", module, *arguments]
        return self._note(Daemon(name, command, small_environ(), self._paths))

    def _note(self, daemon: Daemon) -> Daemon:
        self.state = self.state.with_process(daemon.name, daemon.identity)
        write_state(self._paths.state_file, self.state)
        return daemon


def _folder(paths: EnclavePaths) -> Path:
    """Return the machine's folder: boot files and the vsock device's sockets."""
    return paths.runtime / "vm"


def _check_programs(architecture: str) -> None:
    if _accelerator() == "kvm" and architecture != platform.machine():
        raise EnclaveStartError(
            f"the image is for {architecture}, and KVM runs none but {platform.machine()} here; "
            f"type: {ACCELERATOR_VARIABLE}=tcg enclave up --backend qemu --image FILE.eif"
        )
    needed = (qemu_program(architecture), _VSOCK_DEVICE)
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise EnclaveStartError(
            f"{' and '.join(missing)} cannot be found; install Debian's packages "
            f"{' and '.join(_PROGRAMS[name] for name in missing)} (docs/qemu.md says how)"
        )


def _architecture(eif: Eif) -> str:
    return "aarch64" if eif.arm64 else "x86_64"


def _accelerator() -> str:
    return os.environ.get(ACCELERATOR_VARIABLE) or ACCELERATORS[0]


def _console(paths: EnclavePaths) -> str:
    """Return the end of what the machine wrote to its console."""
    try:
        text = paths.log("console").read_bytes()[-_MAX_CONSOLE_BYTES:]
    except OSError:
        return ""
    return text.decode(errors="replace")


def _last_words(console: str) -> str:
    """Return what the image said last about why it ended, for a message; empty if nothing."""
    for line in reversed(console.splitlines()):
        for mark in _OWN_LINES:
            _, found, said = line.partition(mark)
            if found:
                return f"; its console says: {plain_text(mark + said).strip()}"
    return ""
