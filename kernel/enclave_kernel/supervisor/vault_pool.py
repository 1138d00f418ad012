"""Vault processes: spawned one ahead of need, given to one package of one kernel, and ended."""

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.errors import EnclaveError

__all__ = ["VaultPool"]

_log = logging.getLogger(__name__)
_FIRST_VAULT_UID = 2_000_000
"""Above what distributions hand out to people, services and containers; counted up, so that no
two vaults of one boot share a uid (THREATS X-11)."""


class VaultPool:
    """Spawns vaults, and keeps one empty one waiting once the first was asked for.

    Args:
        directory: Where vaults have their private directories.
        sys_path: What a vault imports from: the image's own site-packages.
    """

    def __init__(self, directory: Path, sys_path: list[str]) -> None:
        self._directory = directory
        self._sys_path = sys_path
        self._uids = itertools.count(_FIRST_VAULT_UID)
        self._spare: asyncio.Future[VaultProcess] | None = None
        self._living: set[VaultProcess] = set()
        self._closed = False
        # One thread that lives as long as the pool: a vault dies with the thread that made it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vault-spawner")

    async def take(self, on_death: Callable[[VaultDeath], None]) -> VaultProcess:
        """Return an empty vault that passed its self-check; `on_death` hears of its end.

        Raises:
            EnclaveError: The vault process did not come up.
        """
        spare, self._spare = self._spare, None
        coming = spare if spare is not None else asyncio.ensure_future(self._spawn_soon())
        try:
            vault = await asyncio.shield(coming)
        except asyncio.CancelledError:
            # The load was cancelled, the vault comes all the same: it waits for the next load.
            if self._spare is None:
                self._spare = coming
                coming.add_done_callback(self._spare_is_ready)
            raise
        self.prepare_spare()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            death = vault.wait()
            loop.call_soon_threadsafe(on_death, death)

        threading.Thread(target=wait, name=f"vault-{vault.pid}", daemon=True).start()
        return vault

    def prepare_spare(self) -> None:
        """Spawn the next vault in the background, unless one waits already."""
        if self._spare is None and not self._closed:
            self._spare = asyncio.ensure_future(self._spawn_soon())
            self._spare.add_done_callback(self._spare_is_ready)

    def _spare_is_ready(self, spare: asyncio.Future[VaultProcess]) -> None:
        error = None if spare.cancelled() else spare.exception()
        if error is not None:
            # The next load spawns its own, and then says what is wrong.
            _log.warning("a spare vault did not come up: %s", error)
            self._spare = None

    async def _spawn_soon(self) -> VaultProcess:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._spawn)

    def _spawn(self) -> VaultProcess:
        if self._closed:
            raise EnclaveError("the enclave is going down")
        uid = next(self._uids) if os.geteuid() == 0 else None
        vault = VaultProcess.spawn(
            uid=uid,
            gid=uid,
            runtime_dir=self._directory,
            sys_path=self._sys_path,
            memory_limit=None,
        )
        self._living.add(vault)
        return vault

    async def start(self, vault: VaultProcess, header_raw: bytes, data_key: bytearray) -> None:
        """Give a vault its package's header and key; the key is wiped here.

        Raises:
            EnclaveError: The vault ended or refused the header.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, vault.start, header_raw, data_key)

    def end(self, vault: VaultProcess) -> None:
        """Kill a vault; an ended one is fine."""
        self._living.discard(vault)
        vault.kill()

    def close(self) -> None:
        """Kill every vault, the spare included; return when they are gone."""
        self._closed = True
        self._thread.shutdown(wait=True)
        for vault in list(self._living):
            self.end(vault)
            # Also what a thread of `take` waits for: its files are gone when this returns.
            vault.wait()
