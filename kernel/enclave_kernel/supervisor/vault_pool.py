"""Vault processes: spawned one ahead of need, given to one package of one kernel, and ended."""

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from enclave_kernel.isolation.control_groups import (
    ControlGroup,
    ControlGroupError,
    ControlGroups,
    GroupLimits,
)
from enclave_kernel.supervisor.memory_share import memory_share
from enclave_kernel.supervisor.user_ids import UserIds
from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.errors import EnclaveError

__all__ = ["VaultPool"]

_log = logging.getLogger(__name__)
_STARTER_THREADS = 4
_MAX_TASKS = 1024
"""Processes and threads of one vault: enough for thread pools on large instances."""


class VaultPool:
    """Spawns vaults, and keeps one empty one waiting once `prepare_spare` was called.

    A vault may use its `memory_share`: one that needs more dies alone, and leaves the supervisor
    enough to say so.

    Args:
        directory: Where vaults have their private directories.
        sys_path: What a vault imports from: the image's own site-packages.
        user_ids: Where a vault's user comes from.

    Attributes:
        walls: What the vault that came up last found standing around it; None before the first.
    """

    def __init__(self, directory: Path, sys_path: list[str], user_ids: UserIds) -> None:
        self._directory = directory
        self._sys_path = sys_path
        self._user_ids = user_ids
        self._numbers = itertools.count(1)
        self._spare: asyncio.Future[VaultProcess] | None = None
        self._living: dict[VaultProcess, Callable[[VaultDeath], None] | None] = {}
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.walls: tuple[str, ...] | None = None
        self._memory_limit = memory_share()
        self._groups = self._make_groups()
        # One thread that lives as long as the pool: a vault dies with the thread that made it.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="vault-spawner")
        self._starter = ThreadPoolExecutor(_STARTER_THREADS, thread_name_prefix="vault-starter")

    async def take(
        self, on_death: Callable[[VaultDeath], None], *, native: bool = False
    ) -> VaultProcess:
        """Return an empty vault that passed its self-check; `on_death` hears of its end.

        Cancelling it takes effect when the vault that is on its way has come: whoever cancels and
        asks again in a loop has never more than one on its way.

        Args:
            on_death: Hears of its end.
            native: For a package with compiled code: such a vault never waits as a spare.

        Raises:
            EnclaveError: The vault process did not come up.
        """
        if native:
            coming = self._spawn_soon(native=True)
        else:
            spare, self._spare = self._spare, None
            coming = spare if spare is not None else self._spawn_soon()
        try:
            vault = await asyncio.shield(coming)
        except asyncio.CancelledError:
            coming.add_done_callback(self._end_coming if native else self._keep_or_end)
            await asyncio.wait([coming])
            raise
        if vault not in self._living:
            # The spare died while it waited.
            return await self.take(on_death, native=native)
        self._living[vault] = on_death
        self.prepare_spare()
        return vault

    def prepare_spare(self) -> None:
        """Spawn the next vault in the background, unless one waits already."""
        if self._spare is None and not self._closed:
            self._spare = self._spawn_soon()
            self._spare.add_done_callback(self._forget_failed)

    def _forget_failed(self, spare: asyncio.Future[VaultProcess]) -> None:
        error = None if spare.cancelled() else spare.exception()
        if error is not None:
            # The next load spawns its own, and then says what is wrong.
            _log.warning("a spare vault did not come up: %s", error)
            if self._spare is spare:
                self._spare = None

    def _keep_or_end(self, coming: "asyncio.Future[VaultProcess]") -> None:
        """A vault nobody waits for any more becomes the spare, or ends."""
        if coming.cancelled() or coming.exception() is not None:
            return
        if self._spare is None and not self._closed:
            self._spare = coming
        else:
            self.end(coming.result())

    def _end_coming(self, coming: "asyncio.Future[VaultProcess]") -> None:
        if not coming.cancelled() and coming.exception() is None:
            self.end(coming.result())

    def _spawn_soon(self, *, native: bool = False) -> "asyncio.Future[VaultProcess]":
        return self._loop.run_in_executor(self._spawner, self._spawn, native)

    def _spawn(self, native: bool) -> VaultProcess:
        if self._closed:
            raise EnclaveError("the enclave is going down")
        uid = self._user_ids.next() if os.geteuid() == 0 else None
        vault = VaultProcess.spawn(
            uid=uid,
            gid=uid,
            runtime_dir=self._directory,
            sys_path=self._sys_path,
            memory_limit=self._memory_limit,
            control_group=self._new_group(),
            native=native,
        )
        if vault.walls != self.walls:
            _log.info("walls of a vault: %s", "; ".join(vault.walls))
        self.walls = vault.walls
        self._living[vault] = None
        threading.Thread(
            target=self._wait_for, args=(vault,), name=f"vault-{vault.pid}", daemon=True
        ).start()
        return vault

    def _wait_for(self, vault: VaultProcess) -> None:
        """Run in a thread of its own: reap the vault and tell of its death."""
        death = vault.wait()
        if not self._closed:
            self._loop.call_soon_threadsafe(self._died, vault, death)

    def _died(self, vault: VaultProcess, death: VaultDeath) -> None:
        on_death = self._living.pop(vault, None)
        if on_death is not None:
            on_death(death)

    def _end_all(self) -> None:
        for vault in list(self._living):
            vault.kill()
            # Whichever thread reaps it: its files are gone when this returns.
            vault.wait()

    def _make_groups(self) -> ControlGroups | None:
        if os.geteuid() != 0:
            return None
        limits = GroupLimits(self._memory_limit, tasks=_MAX_TASKS, devices=True)
        try:
            return ControlGroups(f"enclave-{os.getpid()}-vaults", limits)
        except ControlGroupError as error:
            _log.warning("vaults are limited without control groups: %s", error)
            return None

    def _new_group(self) -> ControlGroup | None:
        if self._groups is None:
            return None
        try:
            return self._groups.create(f"vault-{next(self._numbers)}")
        except OSError as error:
            raise EnclaveError(f"no control group can be made for a vault: {error}") from error

    async def start(
        self, vault: VaultProcess, header_raw: bytes, data_key: bytearray, *, now_ms: int
    ) -> None:
        """Give a vault its package's header and key, and the time; the key is wiped here.

        Raises:
            EnclaveError: The vault ended or refused the header.
        """
        start = partial(vault.start, header_raw, data_key, now_ms=now_ms)
        await self._loop.run_in_executor(self._starter, start)

    def end(self, vault: VaultProcess) -> None:
        """Kill a vault; an ended one is fine. Its death is told of as any other."""
        vault.kill()

    def close(self) -> None:
        """Kill every vault, the spare included; return when they are gone."""
        self._closed = True
        # In the spawner's thread: behind a spawn that runs, and before the end of the thread kills
        # the outer processes, whose inits would then be somebody else's to reap.
        self._spawner.submit(self._end_all).result()
        self._spawner.shutdown(wait=True)
        self._starter.shutdown(wait=True)
        if self._groups is not None:
            self._groups.close()
