"""Vaults, plain processes and victims: where attacks on the system are tried.

Everything is started from one thread, so that an "old kernel" is in force for all of it.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclave_kernel.isolation.control_groups import ControlGroups
from enclave_kernel.session.package_loading import LoadedPackage
from enclave_protocol.messages import SignalKernel
from tests.redteam.canaries import MANIFEST, MarkedPackage, marked_package
from tests.redteam.places import NotebookPlace, PlainPlace, Spawner, VaultPlace, spawner
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.supervisor_process import SupervisorProcess, supervisor_process
from tests.support.vault_link import VaultLink, payload_pid, spawn_vault
from tests.support.vault_packages import load_sealed

__all__ = ["Arena", "Victim", "open_arena"]

_uids = itertools.count(1_990_000)
_VICTIM = """
import ctypes, os, signal, sys
uid, secret = int(sys.argv[1]), bytes.fromhex(sys.stdin.readline().strip())
kept = ctypes.create_string_buffer(secret)
for number in (signal.SIGUSR1, signal.SIGIO, signal.SIGCONT, signal.SIGALRM):
    signal.signal(number, lambda number, frame: os.write(1, b"!"))
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # As after an exec: it has no walls.
    ctypes.CDLL(None).prctl(4, ctypes.c_ulong(1), 0, 0, 0)
os.write(1, f"{ctypes.addressof(kept)}\\n".encode())
while True:
    signal.pause()
"""


@dataclass(frozen=True)
class Victim:
    """A plain process with a secret in its memory.

    Attributes:
        address: Where its secret is.
        secret: The secret, in hexadecimal digits.
    """

    process: "subprocess.Popen[bytes]"
    uid: int
    address: int
    secret: str

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def signals(self) -> int:
        """Return how many signals reached it, end it, and return what was counted."""
        self.process.kill()
        out, _ = self.process.communicate(timeout=30)
        return out.count(b"!")


class Arena:
    """One kernel, old or new.

    Attributes:
        spawner: Starts everything.
        link: Holds the vaults.
        vault: The vault that survives the tests.
        marked: What is in its package.
        supervisor: A whole supervisor, for notebooks.
    """

    def __init__(
        self, made: Spawner, link: VaultLink, folder: Path, supervisor: SupervisorProcess
    ) -> None:
        self.spawner = made
        self.link = link
        self.old_kernel = made.old_kernel
        self.folder = folder
        self.sealed, self.marked = sealed_marked()
        self.loaded = self._load(link)
        self.vault = VaultPlace(self.loaded.proxy, old_kernel=self.old_kernel)
        (self.vault_pid,) = (vault.pid for vault in link.vaults.values())
        self.supervisor = supervisor

    def _load(self, link: VaultLink) -> LoadedPackage:
        return load_sealed(link, self.sealed, self.folder)

    @property
    def payload_pid(self) -> int:
        """The process that runs the package, by our number."""
        return payload_pid(self.vault_pid)

    def plain(self, uid: int | None = None, **options: Any) -> PlainPlace:
        """Return a process without walls on the same kernel, as root or as `uid`."""
        return PlainPlace(uid, spawner=self.spawner, **options)

    @contextmanager
    def another_vault(self, groups: ControlGroups | None = None) -> Iterator[VaultPlace]:
        """Return a vault of its own, of the same package; it may die."""
        with new_link(self.spawner, groups) as link:
            yield VaultPlace(self._load(link).proxy, old_kernel=self.old_kernel)

    @contextmanager
    def two_vaults(self, groups: ControlGroups) -> Iterator[tuple[VaultPlace, VaultPlace]]:
        """Return two vaults of their own, each in a group of these."""
        with new_link(self.spawner, groups) as link:
            yield VaultPlace(self._load(link).proxy), VaultPlace(self._load(link).proxy)

    @contextmanager
    def another_notebook(self) -> Iterator[NotebookPlace]:
        """Return a notebook of its own; it may die."""
        with self.supervisor.control() as control:
            request = self.supervisor.launch_request()
            control.request(request)
            with self.supervisor.client(request) as client:
                yield NotebookPlace(client, old_kernel=self.old_kernel)
            control.request(SignalKernel(request.kernel_id, signal.SIGKILL))

    @contextmanager
    def victim(self, uid: int | None = None, *, own_session: bool = True) -> Iterator[Victim]:
        """Return a plain process with a secret; of a user of its own unless given."""
        uid = next(_uids) if uid is None else uid
        secret = os.urandom(24).hex()
        process: subprocess.Popen[bytes] = self.spawner.do(
            subprocess.Popen,
            [sys.executable, "-I", "-S", "-c", _VICTIM, str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=own_session,
        )
        with process:
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{secret}\n".encode())
                process.stdin.flush()
                yield Victim(process, uid, int(process.stdout.readline()), secret)
            finally:
                process.kill()


def sealed_marked() -> tuple[SealedPackage, MarkedPackage]:
    """Return the marked package, encrypted, and its markers; the key is among them."""
    marked = marked_package()
    sealed = seal_package(marked.files, MANIFEST)
    return sealed, MarkedPackage(marked.files, marked.markers, marked.prefix, sealed.key)


def new_link(made: Spawner, groups: ControlGroups | None = None) -> VaultLink:
    """Return a link whose vaults this spawner starts.

    Only that: a thread started from the spawner's would not find the calls that the C library
    has been using since this process began, and abort.
    """
    return VaultLink(
        control_groups=groups, spawn=lambda *args, **kwargs: made.do(spawn_vault, *args, **kwargs)
    )


@contextmanager
def open_arena(*, old_kernel: bool) -> Iterator[Arena]:
    """Return an arena; everything in it is ended afterwards."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(spawner(old_kernel=old_kernel))
        link = stack.enter_context(new_link(made))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="red-", dir="/tmp")))
        starting = supervisor_process(folder)
        supervisor = made.do(starting.__enter__)
        stack.push(starting.__exit__)
        yield Arena(made, link, folder, supervisor)
