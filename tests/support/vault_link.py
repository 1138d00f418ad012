"""A link to a supervisor that is this process: real vault processes, data keys at hand."""

import itertools
import os
import shutil
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from enclave_kernel.isolation.control_groups import ControlGroup, ControlGroups
from enclave_kernel.session.supervisor_link import LoadedVault, LoadRefusedError
from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_header import decode_header
from tests.support.sealed_package import SealedPackage

ROOT = Path(__file__).resolve().parents[2]
SYS_PATH = [str(ROOT / "kernel"), str(ROOT / "protocol"), sysconfig.get_path("purelib")]
_uids = itertools.count(1_900_000)


def runtime_dir() -> Path:
    """A folder that a vault of its own user can pass through, which pytest's is not."""
    path = Path(tempfile.mkdtemp(prefix="enclave-vaults-"))
    path.chmod(0o711)
    return path


def processes_of(vault_pid: int) -> set[int]:
    """Return the pids, as seen here, of all that is in the vault's own pid namespace.

    Without root there is none, and the vault is the one process that counts.
    """
    if os.geteuid() != 0:
        return {vault_pid}
    own = Path("/proc/self/ns/pid").stat().st_ino
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns" / "pid").stat().st_ino == own:
                continue
            if _ancestor_in(int(entry.name), vault_pid):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def payload_pid(vault_pid: int) -> int:
    """Return the pid, as seen here, of the process that runs the package."""
    for pid in processes_of(vault_pid):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        (inside,) = [line.split()[-1] for line in lines if line.startswith("NSpid:")]
        if inside == "2" or os.geteuid() != 0:
            return pid
    raise AssertionError(f"vault {vault_pid} has no payload")


def _ancestor_in(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return False


def spawn_vault(
    directory: Path,
    *,
    memory_limit: int | None = None,
    control_group: ControlGroup | None = None,
    native: bool = False,
) -> VaultProcess:
    uid = next(_uids) if os.geteuid() == 0 else None
    return VaultProcess.spawn(
        uid=uid,
        gid=uid,
        runtime_dir=directory,
        sys_path=SYS_PATH,
        memory_limit=memory_limit,
        control_group=control_group,
        native=native,
    )


class VaultLink:
    """Does for a session what the supervisor does, for packages whose keys it was given.

    Use it as a context manager, in a thread that outlives the vaults; `spawn` may do its part in
    another one.
    """

    def __init__(
        self,
        *packages: SealedPackage,
        control_groups: ControlGroups | None = None,
        spawn: Callable[..., VaultProcess] = spawn_vault,
    ) -> None:
        self._control_groups = control_groups
        self._spawn = spawn
        self._keys = {package.header_raw: package.key for package in packages}
        self.directory = runtime_dir()
        self.new_publishers = False
        self.now_ms: int | None = None
        self.vaults: dict[str, VaultProcess] = {}
        self._deaths: dict[str, VaultDeath] = {}
        self._waiters: dict[str, threading.Thread] = {}
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for vault_id in list(self.vaults):
            self.unload(vault_id)
        for waiter in self._waiters.values():
            waiter.join(10)
        leftovers = list(self.directory.iterdir())
        shutil.rmtree(self.directory)
        assert not leftovers

    def add(self, package: SealedPackage) -> None:
        self._keys[package.header_raw] = package.key

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        key = self._keys.get(header_raw)
        if key is None:
            # As KMS: a header it does not know has no data key.
            raise LoadRefusedError("PackageTamperedError", f"{file_name}: no data key")
        vault_id = f"vault-{next(self._numbers)}"
        groups = self._control_groups
        group = None if groups is None else groups.create(vault_id)
        limit = None if group is None else group.limit_bytes
        native = decode_header(header_raw).label.policy.native
        vault = self._spawn(self.directory, memory_limit=limit, control_group=group, native=native)
        waiter = threading.Thread(target=self._wait, args=(vault_id, vault), daemon=True)
        waiter.start()
        self.vaults[vault_id] = vault
        self._waiters[vault_id] = waiter
        try:
            vault.start(
                header_raw, bytearray(key), now_ms=self.now_ms or time.time_ns() // 1_000_000
            )
        except EnclaveError as error:
            self.unload(vault_id)
            raise LoadRefusedError(type(error).__name__, str(error)) from None
        return LoadedVault(vault_id, vault.session_socket, self.new_publishers)

    def interrupt(self, vault_id: str) -> None:
        self.vaults[vault_id].interrupt()

    def unload(self, vault_id: str) -> None:
        vault = self.vaults.pop(vault_id, None)
        if vault is not None:
            vault.kill()

    def death_reason(self, vault_id: str) -> str | None:
        self._waiters[vault_id].join(2)
        death = self._deaths.get(vault_id)
        return None if death is None else death.reason

    def returncodes(self) -> set[int]:
        """Return how the vaults ended that are to end now: those of loads that failed."""
        for waiter in self._waiters.values():
            waiter.join(5)
        return {death.returncode for death in self._deaths.values()}

    def _wait(self, vault_id: str, vault: VaultProcess) -> None:
        self._deaths[vault_id] = vault.wait()
