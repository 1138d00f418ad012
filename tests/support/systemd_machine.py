"""A machine that systemd runs, in namespaces of this one: its PID 1, its services, its shutdown.

Its root is this machine's with an empty layer above it, so Debian's systemd is what boots. Of its
own are processes, mounts, network (none), host name, cgroups; what it writes ends with it. What it
is not: a virtual machine. The kernel is this one's.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.project_wheel import ROOT

__all__ = ["SystemdMachine", "can_boot", "new_systemd_machine"]

_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_HIERARCHIES = ("devices", "memory", "pids", "systemd")
_BOOT = ROOT / "tests" / "support" / "systemd_boot.sh"
_BOOT_TIMEOUT_S = 30.0
_POLL_S = 0.05


def can_boot() -> bool:
    """Return whether root's rights, systemd, cgroups and namespaces are here."""
    return (
        os.geteuid() == 0
        and Path("/usr/lib/systemd/systemd").exists()
        and shutil.which("systemctl") is not None
        and (_is_cgroup2() or all((_CGROUPS / name).is_dir() for name in _HIERARCHIES))
        and subprocess.run(["unshare", *_NAMESPACES, "true"], check=False).returncode == 0
    )


def _is_cgroup2() -> bool:
    return (_CGROUPS / "cgroup.procs").exists()


class SystemdMachine:
    """See the module. `boot` it; `close` ends everything of it.

    Args:
        disk: An empty directory for its layer.
    """

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._name = f"enclave-test-{secrets.token_hex(4)}"
        # It keeps the disk, a tmpfs, over boots. Its own mount namespace ends with it.
        self._chassis = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs tmpfs "$0"; echo; read', disk],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._chassis.stdout is not None and self._chassis.stdout.readline()
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        """Start systemd and wait until it has started what is to run at boot."""
        for folder in self._cgroups():
            folder.mkdir()
        with (self._disk.parent / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--mount=/proc/{self._chassis.pid}/ns/mnt"),
                    *("unshare", *_NAMESPACES, "--fork", "--kill-child"),
                    *("bash", _BOOT, self._disk, ROOT),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                preexec_fn=self._enter_cgroups,
            )
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"systemd did not boot:\n{self.console()}")
            time.sleep(_POLL_S)

    def console(self) -> str:
        """Return what systemd printed."""
        return (self._disk.parent / "console").read_text(errors="replace")

    def popen(
        self, command: Sequence[str | Path], user: str = "root", **options: Any
    ) -> "subprocess.Popen[str]":
        """Start a command in the machine, as `sudo -u USER` does."""
        home = {"root": "/root"}.get(user) or self._home(user)
        prefix = [] if user == "root" else ["runuser", "--user", user, "--"]
        return subprocess.Popen(
            ["nsenter", f"--target={self._init}", "--all", *prefix, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **{"stderr": subprocess.PIPE} | options,
        )

    def _home(self, user: str) -> str:
        entries = [line.split(":") for line in self.path("/etc/passwd").read_text().splitlines()]
        return next(entry[5] for entry in entries if entry[0] == user)

    def run(
        self, *command: str | Path, user: str = "root", timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the machine, whatever its exit code."""
        process = self.popen(command, user)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def check(self, *command: str | Path, user: str = "root", timeout_s: float = 60.0) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.run(*command, user=user, timeout_s=timeout_s)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        """Return what systemd says of a unit, such as its ActiveState."""
        return self.check("systemctl", "show", "--value", "--property", name, unit).strip()

    def path(self, inside: str | Path) -> Path:
        """Return where a path of the machine is from outside."""
        return Path(f"/proc/{self._init}/root{inside}")

    def processes(self) -> dict[int, Path]:
        """Return its processes: where in this machine's /proc they are, by pid in there."""
        found = {}
        namespace = Path(f"/proc/{self._init}/ns/pid").readlink()
        for entry in Path("/proc").iterdir():
            # One that ends meanwhile is none.
            with suppress(OSError, StopIteration):
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == namespace:
                    lines = (entry / "status").read_text().splitlines()
                    pids = next(line for line in lines if line.startswith("NSpid:")).split()
                    found[int(pids[-1])] = entry
        return found

    def pid_outside(self, inside: int) -> int:
        """Return the pid that a process of the machine has out here."""
        return int(self.processes()[inside].name)

    def power_off(self) -> None:
        """Shut it down in order."""
        assert self._process is not None
        self.run("systemctl", "poweroff")
        self._process.wait(timeout=60)
        self._remove_cgroups()

    def close(self) -> None:
        """End it at once; nothing of it is left."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._init or self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
        self._remove_cgroups()
        self._chassis.communicate(timeout=30)

    def _is_up(self) -> bool:
        assert self._process is not None
        if not self._init:
            with suppress(OSError, IndexError):
                pid = self._process.pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                self._init = int(children.split()[0])
        with suppress(OSError):
            if Path(f"/proc/{self._init}/comm").read_text() == "systemd\n":
                done = self.run("systemctl", "is-system-running")
                return done.stdout.strip() in ("running", "degraded")
        return False

    def _cgroups(self) -> list[Path]:
        if _is_cgroup2():
            return [_CGROUPS / self._name]
        return [_CGROUPS / hierarchy / self._name for hierarchy in _HIERARCHIES]

    def _enter_cgroups(self) -> None:
        for folder in self._cgroups():
            (folder / "cgroup.procs").write_text("0")

    def _remove_cgroups(self) -> None:
        self._init = 0
        for folder in self._cgroups():
            for path, _, _ in os.walk(folder, topdown=False):
                Path(path).rmdir()


@contextmanager
def new_systemd_machine() -> Iterator[SystemdMachine]:
    """Return a machine, booted; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="systemd-", dir="/tmp") as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        machine = SystemdMachine(disk)
        try:
            machine.boot()
            yield machine
        finally:
            machine.close()
