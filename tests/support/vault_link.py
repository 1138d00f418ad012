"""A link to a supervisor that is this process: real vault processes, data keys at hand."""

import itertools
import os
import shutil
import sysconfig
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from enclave_kernel.session.supervisor_link import LoadedVault, LoadRefusedError
from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.errors import EnclaveError
from tests.support.sealed_package import SealedPackage

ROOT = Path(__file__).resolve().parents[2]
SYS_PATH = [str(ROOT / "kernel"), str(ROOT / "protocol"), sysconfig.get_path("purelib")]
_uids = itertools.count(1_900_000)


def runtime_dir() -> Path:
    """A folder that a vault of its own user can pass through, which pytest's is not."""
    path = Path(tempfile.mkdtemp(prefix="enclave-vaults-"))
    path.chmod(0o711)
    return path


def spawn_vault(directory: Path, *, memory_limit: int | None = None) -> VaultProcess:
    uid = next(_uids) if os.geteuid() == 0 else None
    return VaultProcess.spawn(
        uid=uid, gid=uid, runtime_dir=directory, sys_path=SYS_PATH, memory_limit=memory_limit
    )


class VaultLink:
    """Does for a session what the supervisor does, for packages whose keys it was given.

    Use it as a context manager, in a thread that outlives the vaults.
    """

    def __init__(self, *packages: SealedPackage) -> None:
        self._keys = {package.header_raw: package.key for package in packages}
        self.directory = runtime_dir()
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

    def load(self, file_name: str, header_raw: bytes) -> LoadedVault:
        key = self._keys.get(header_raw)
        if key is None:
            # As KMS: a header it does not know has no data key.
            raise LoadRefusedError("PackageTamperedError", f"{file_name}: no data key")
        vault = spawn_vault(self.directory)
        vault_id = f"vault-{next(self._numbers)}"
        waiter = threading.Thread(target=self._wait, args=(vault_id, vault), daemon=True)
        waiter.start()
        self.vaults[vault_id] = vault
        self._waiters[vault_id] = waiter
        try:
            vault.start(header_raw, bytearray(key))
        except EnclaveError as error:
            self.unload(vault_id)
            raise LoadRefusedError(type(error).__name__, str(error)) from None
        return LoadedVault(vault_id, vault.session_socket)

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

    def _wait(self, vault_id: str, vault: VaultProcess) -> None:
        self._deaths[vault_id] = vault.wait()
