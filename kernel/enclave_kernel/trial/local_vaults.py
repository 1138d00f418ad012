"""Does for one session what the supervisor does, with one data key that this trial made."""

import itertools
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_kernel.session.supervisor_link import LoadedVault, LoadRefusedError
from enclave_kernel.supervisor.code_folders import import_path
from enclave_kernel.supervisor.user_ids import UserIds
from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_header import decode_header

__all__ = ["LocalVaults"]

_DEATH_WAIT_S: Final = 2.0
_CLOSE_WAIT_S: Final = 10.0


@dataclass
class _Vault:
    process: VaultProcess
    waiter: threading.Thread | None = None
    deaths: list[VaultDeath] = field(default_factory=list)

    def wait(self) -> None:
        self.deaths.append(self.process.wait())


class LocalVaults:
    """A `session.vault_link.VaultLink`.

    `load` is for the main thread: the kernel kills a vault when the thread that made it ends.

    Args:
        directory: Where vaults have their private folders; every user can pass through it.
        data_key: Of the package; whatever the header says, it gets this one.

    Attributes:
        walls: What the vault that came up last found standing around it.
    """

    def __init__(self, directory: Path, data_key: bytes) -> None:
        self._directory = directory
        self._data_key = data_key
        self._user_ids = UserIds()
        self._numbers = itertools.count(1)
        self._vaults: dict[str, _Vault] = {}
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # As in an enclave: one that needs more dies alone.
        self._memory_limit = memory // 4 * 3
        self.walls: tuple[str, ...] = ()

    def load(
        self,
        file_name: str,
        header_raw: bytes,
        *,
        unsigned: bool = False,  # noqa: ARG002 (as in SupervisorLink)
    ) -> LoadedVault:
        """Return a vault with the data key; a package on trial is its owner's own, and unsigned.

        Raises:
            LoadRefusedError: It did not come up, or does not take the header.
        """
        vault_id = f"vault-{next(self._numbers)}"
        uid = self._user_ids.next() if os.geteuid() == 0 else None
        try:
            process = VaultProcess.spawn(
                uid=uid,
                gid=uid,
                runtime_dir=self._directory,
                sys_path=import_path(),
                memory_limit=self._memory_limit,
                native=decode_header(header_raw).label.policy.native,
            )
        except EnclaveError as error:
            raise LoadRefusedError(type(error).__name__, f"{file_name}: {error}") from None
        vault = self._vaults[vault_id] = _Vault(process)
        vault.waiter = threading.Thread(target=vault.wait, name=vault_id, daemon=True)
        vault.waiter.start()
        self.walls = process.walls
        try:
            # The owner's own machine: its clock will do.
            now_ms = time.time_ns() // 1_000_000
            process.start(header_raw, bytearray(self._data_key), now_ms=now_ms)
        except EnclaveError as error:
            self.unload(vault_id)
            process.session_socket.close()
            raise LoadRefusedError(type(error).__name__, f"{file_name}: {error}") from None
        return LoadedVault(vault_id, process.session_socket)

    def interrupt(self, vault_id: str) -> None:
        """Send SIGINT to a vault."""
        self._vaults[vault_id].process.interrupt()

    def unload(self, vault_id: str) -> None:
        """End a vault; one that has ended is fine."""
        vault = self._vaults.get(vault_id)
        if vault is not None:
            vault.process.kill()

    def death_reason(self, vault_id: str) -> str | None:
        """Return why a vault died; None when nothing is known within 2 s."""
        vault = self._vaults[vault_id]
        if vault.waiter is not None:
            vault.waiter.join(_DEATH_WAIT_S)
        return vault.deaths[0].reason if vault.deaths else None

    def close(self) -> None:
        """End all vaults and wait until nothing of them is left. For any thread."""
        for vault in list(self._vaults.values()):
            vault.process.kill()
        for vault in list(self._vaults.values()):
            if vault.waiter is not None:
                vault.waiter.join(_CLOSE_WAIT_S)
