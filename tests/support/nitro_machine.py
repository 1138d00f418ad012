"""A stand-in for the virtual machine of a Nitro enclave: one process that holds it.

As with nitro-cli, that process is left behind by `run-enclave`: its end is the enclave's end, and
the enclave's end is its end. In place of the machine it runs a software NSM with the image's PCRs
and our supervisor. Where `nitro_hardware` serves, these are its children and no longer that
process's: as a machine's inside, they are then under no rule that the process is under.
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_protocol.vsock_ports import SUPERVISOR_PORT

__all__ = ["HARDWARE", "HEARTBEAT", "StandInMachine"]

HARDWARE = "hardware.sock"
"""Of `nitro_hardware`, in the stand-in's directory."""
HEARTBEAT = b"\xb7"
_BOOT_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PASSABLE = 0o711


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _dies_with_its_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class StandInMachine:
    """One machine.

    Args:
        directory: Of the stand-in: registry, consoles, sockets in place of vsock.
        name: The enclave's.
        cid: Its vsock CID.
        memory_mib: As asked for.
        cpus: As asked for.
        debug: The console can be read, and the PCRs are zero.
        measurements: Of the image.
        console: Where its console goes; a file of the registry if not given.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        cid: int,
        memory_mib: int,
        cpus: int,
        debug: bool,
        measurements: dict[str, str],
        console: str | None = None,
    ) -> None:
        self._directory = directory
        self._cid = cid
        self._debug = debug
        self._measurements = measurements
        self._id = f"i-0123456789abcdef0-enc{secrets.token_hex(8)}"
        self._files = directory / "enclaves"
        self._socket = directory / f"{cid}_{SUPERVISOR_PORT}"
        self._nsm = self._files / f"{cid}.nsm"
        self._terminated = False
        self._entry: dict[str, Any] = {
            "EnclaveName": name,
            "EnclaveID": self._id,
            "EnclaveCID": cid,
            "NumberOfCPUs": cpus,
            "CPUIDs": list(range(1, cpus + 1)),
            "MemoryMiB": memory_mib,
            "State": "RUNNING",
            "Flags": "DEBUG_MODE" if debug else "NONE",
            "Measurements": {"HashAlgorithm": "Sha384 { ... }"} | measurements,
            "console": console or str(self._files / f"{self._id}.console"),
        }

    def start(self) -> dict[str, Any] | None:
        """Leave a process behind that holds the machine; return its entry, None if no boot."""
        self._files.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.setsid()
            if os.fork():
                os._exit(0)
            self._hold(writing)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as report:
            answer = report.read()
        return json.loads(answer) if answer else None

    def _hold(self, report: int) -> None:
        """Be the process; never returns."""
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            signal.signal(signal.SIGTERM, self._terminate)
            try:
                if (hardware := self._directory / HARDWARE).exists():
                    self._hold_elsewhere(hardware, report)
                else:
                    self.run(lambda: self._register(report), lambda: not self._terminated)
            finally:
                self._file().unlink(missing_ok=True)
        finally:
            os._exit(0)

    def _hold_elsewhere(self, hardware: Path, report: int) -> None:
        """Have `nitro_hardware` run it, as long as this process lives and is not told to end."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(hardware))
            wanted = {
                "name": self._entry["EnclaveName"],
                "cid": self._cid,
                "memory_mib": self._entry["MemoryMiB"],
                "cpus": self._entry["NumberOfCPUs"],
                "debug": self._debug,
                "measurements": self._measurements,
                "console": self._entry["console"],
            }
            sock.sendall(json.dumps(wanted).encode() + b"\n")
            if sock.recv(1) != HEARTBEAT:
                return
            self._register(report)
            sock.settimeout(0.02)
            with contextlib.suppress(OSError):
                while not self._terminated:
                    with contextlib.suppress(TimeoutError):
                        if not sock.recv(1):
                            return
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(_BOOT_TIMEOUT_S)
                sock.recv(1)

    def _register(self, report: int) -> None:
        identity = ProcessIdentity.of(os.getpid())
        self._entry |= {"ProcessID": identity.pid, "ticks": identity.start_ticks}
        temporary = self._files / f".{self._id}"
        temporary.write_text(json.dumps(self._entry))
        temporary.replace(self._file())
        os.write(report, json.dumps(self._entry).encode())
        os.close(report)

    def _file(self) -> Path:
        return self._files / f"{self._id}.json"

    def _terminate(self, *_: object) -> None:
        self._terminated = True

    def run(self, booted: Callable[[], object], wanted: Callable[[], bool]) -> None:
        """Run what is inside, as children of this process; return when all of it has ended.

        Args:
            booted: Called once, when the supervisor accepts; not if it does not come up.
            wanted: Asked again and again; when it says no, the machine is switched off.
        """
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        place = Path(tempfile.mkdtemp(prefix="enclave-", dir=_outside()))
        place.chmod(_PASSABLE)
        # A machine with this CID whose holder was killed has left its own: neither answers.
        self._unlink_sockets()
        try:
            self._boot(place, booted, wanted)
        finally:
            self._power_off()
            self._unlink_sockets()
            shutil.rmtree(place, ignore_errors=True)

    def _unlink_sockets(self) -> None:
        for path in (self._socket, self._nsm):
            path.unlink(missing_ok=True)

    def _boot(self, place: Path, booted: Callable[[], object], wanted: Callable[[], bool]) -> None:
        nsm = self._spawn(
            "enclave_infra.software_nsm",
            *("--socket", str(self._nsm), "--root-dir", str(self._directory / "root")),
            *("--pcr0", self._measurements["PCR0"], *(["--debug"] if self._debug else [])),
        )
        if not self._wait(self._nsm.exists, nsm, wanted):
            return
        supervisor = self._spawn(
            "enclave_kernel",
            *("--listen", f"unix:{self._socket}", "--nsm", f"unix:{self._nsm}"),
            *("--runtime-dir", str(place), "--development", "--hide", str(self._directory)),
        )
        # What the enclave's init says with its heartbeat.
        if not self._wait(self._accepts, supervisor, wanted):
            return
        booted()
        while wanted() and supervisor.poll() is None and nsm.poll() is None:
            time.sleep(0.02)

    def _wait(
        self, ready: Any, process: "subprocess.Popen[bytes]", wanted: Callable[[], bool]
    ) -> bool:
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not ready():
            if process.poll() is not None or not wanted() or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket))
            return True
        return False

    def _spawn(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with Path(self._entry["console"]).open("ab") as console:
            return subprocess.Popen(
                [sys.executable, "-I", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd="/",
                preexec_fn=_dies_with_its_parent,
            )

    def _power_off(self) -> None:
        """Kill everything in the machine: orphans come to us, we are their reaper."""
        while children := _children():
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, 0)[0]:
                    pass


def _outside() -> str | None:
    """Return where vaults of other users can pass through, for root."""
    return "/run" if os.geteuid() == 0 and os.access("/run", os.W_OK) else None


def _children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found
