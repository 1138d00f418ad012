"""Loads packages for one kernel: header in, data key from KMS, vault out."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from enclave_kernel.session_messages import (
    About,
    AboutRequest,
    AttestRequest,
    CancelLoad,
    InterruptVault,
    LoadPackage,
    LoadRefused,
    NotebookAttested,
    PackageLoaded,
    UnloadVault,
    UsageRequest,
    VaultDeathRequest,
    VaultsUsage,
)
from enclave_kernel.session_messages import VaultDeath as VaultDeathMessage
from enclave_kernel.supervisor.counters import Counters
from enclave_kernel.supervisor.failure_log import log_failure
from enclave_kernel.supervisor.publisher_check import PublisherCheck
from enclave_kernel.supervisor.session_channel import FromSession, SessionChannel, ToSession
from enclave_kernel.supervisor.token_bucket import TokenBucket
from enclave_kernel.supervisor.usage import VaultMeter, memory_step
from enclave_kernel.supervisor.vault_pool import VaultPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_kernel.vault_process import VaultDeath, VaultProcess
from enclave_protocol.enclave_usage import VaultInfo
from enclave_protocol.errors import EnclaveError
from enclave_protocol.manifest import Package
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_header import PackageHeader, decode_header

__all__ = ["KeyRelease", "PackageLoader", "TooManyVaultsError"]

_log = logging.getLogger(__name__)
_MAX_VAULTS = 32
_DEATH_WAIT_S = 1.5
_MAX_DEATHS_KEPT = 64
_LOADS_AT_ONCE = 32
_SECONDS_PER_LOAD = 1.0
"""Nobody loads more by hand; a loop that does must not storm KMS (THREATS X-08)."""

_ATTESTATIONS_AT_ONCE = 4
_SECONDS_PER_ATTESTATION = 0.5
"""The NSM serves one request at a time, and releases of keys wait for it as well."""

KeyRelease = Callable[[PackageHeader], Awaitable[bytearray]]
"""Fetches the data key of the package with this header, as `enclave_kernel.kms` does."""


class TooManyVaultsError(EnclaveError):
    """A kernel has as many vaults as it may have."""


class _ChannelOwner(Protocol):
    kernel_id: str
    channel: SessionChannel | None


@dataclass
class _Vault:
    process: VaultProcess
    package: Package
    meter: VaultMeter
    loaded: float = field(default_factory=time.monotonic)

    def describe(self) -> VaultInfo:
        """Return what the kernel and `enclave status` may know of it."""
        seen = self.meter.seen
        return VaultInfo(
            package=self.package.name,
            version=self.package.version,
            walled=self.process.walled,
            uptime_s=int(time.monotonic() - self.loaded),
            memory_bytes=None if seen is None else seen.memory_bytes,
            cpu_percent=None if seen is None else seen.cpu_percent,
        )


class PackageLoader:
    """The vaults of one kernel. Every id is looked up here: another kernel's is unknown.

    Args:
        owner: The kernel.
        pool: Where vaults come from.
        release_key: Key release.
        about: Says what enclave this is, in a reply to the request of this number.
        attest: Returns an attestation document for notebooks with this nonce.
        publishers: Says whether the user may trust who made a package.
        clock: Set by every key release.
        counters: Told of every load.
    """

    def __init__(
        self,
        owner: _ChannelOwner,
        pool: VaultPool,
        release_key: KeyRelease,
        about: Callable[[int], About],
        attest: Callable[[bytes], Awaitable[bytes]],
        publishers: PublisherCheck,
        clock: TrustedClock,
        counters: Counters,
    ) -> None:
        self._owner = owner
        self._pool = pool
        self._release_key = release_key
        self._about = about
        self._attest = attest
        self._attestations = TokenBucket(_ATTESTATIONS_AT_ONCE, _SECONDS_PER_ATTESTATION)
        self._publishers = publishers
        self._clock = clock
        self._counters = counters
        self._vaults: dict[str, _Vault] = {}
        self._deaths: dict[str, asyncio.Future[VaultDeath]] = {}
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._cancelled: set[int] = set()
        # One load at a time for each notebook: what it asks for in a burst waits here, and not in
        # the way of other notebooks (THREATS X-08).
        self._turn = asyncio.Lock()
        self._bucket = TokenBucket(_LOADS_AT_ONCE, _SECONDS_PER_LOAD)
        self._asked: set[asyncio.Task[None]] = set()
        self._closed = False

    def describe(self) -> tuple[VaultInfo, ...]:
        """Return what `enclave status` shows of each loaded package's vault."""
        return tuple(vault.describe() for vault in self._vaults.values())

    def meters(self) -> tuple[VaultMeter, ...]:
        """Return what is to be looked at from time to time."""
        return tuple(vault.meter for vault in self._vaults.values())

    def handle(self, message: FromSession) -> None:
        """Take one message of the kernel process; never waits."""
        if self._closed:
            return
        if isinstance(message, LoadPackage):
            self._begin_load(message)
        elif isinstance(message, CancelLoad):
            load = self._loads.get(message.request_id)
            if load is not None and message.request_id not in self._cancelled:
                # Once: a second one would cut short what the first has to clean up.
                self._cancelled.add(message.request_id)
                load.cancel()
        elif isinstance(message, InterruptVault):
            if message.vault_id in self._vaults:
                self._vaults[message.vault_id].process.interrupt()
        elif isinstance(message, UnloadVault):
            vault = self._vaults.pop(message.vault_id, None)
            if vault is not None:
                self._pool.end(vault.process)
        elif isinstance(message, AboutRequest):
            self._send(self._about(message.request_id))
        elif isinstance(message, UsageRequest):
            self._tell_usage(message)
        elif isinstance(message, VaultDeathRequest):
            if len(self._asked) >= _MAX_VAULTS:
                self._send(VaultDeathMessage(request_id=message.request_id, reason=None))
                return
            self._ask(self._tell_death(message))
        elif isinstance(message, AttestRequest):
            if len(self._asked) >= _MAX_VAULTS:
                error = EnclaveError("this notebook asks for too many attestation documents")
                self._refuse(message.request_id, error)
                return
            self._ask(self._tell_attestation(message))

    def _ask(self, work: Coroutine[None, None, None]) -> None:
        asked = asyncio.create_task(work)
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)

    async def _tell_attestation(self, message: AttestRequest) -> None:
        await asyncio.sleep(self._attestations.take())
        try:
            document = await self._attest(message.nonce)
        except EnclaveError as error:
            self._refuse(message.request_id, error)
        else:
            self._send(NotebookAttested(request_id=message.request_id, document=document))

    def _tell_usage(self, message: UsageRequest) -> None:
        seen = [vault.meter.seen for vault in self._vaults.values()]
        known = [usage for usage in seen if usage is not None]
        self._send(
            VaultsUsage(
                request_id=message.request_id,
                memory_bytes=sum(usage.memory_bytes for usage in known),
                cpu_percent=sum(usage.cpu_percent for usage in known),
            )
        )

    def _send(self, message: ToSession, descriptors: tuple[int, ...] = ()) -> None:
        if self._owner.channel is not None:
            self._owner.channel.send(message, descriptors)

    def _begin_load(self, message: LoadPackage) -> None:
        number = message.request_id
        if number in self._loads or len(self._loads) + len(self._vaults) >= _MAX_VAULTS:
            error = TooManyVaultsError(
                f"{_MAX_VAULTS} packages are loaded or loading in this notebook, the most it may "
                "have; unload one with: %unload_encrypted NAME"
            )
            # Without a line in the log: nothing slows a notebook down that asks for one too many.
            self._counters.refused(error)
            self._refuse(number, error)
            return
        self._loads[number] = asyncio.create_task(self._load(message))
        self._loads[number].add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self._loads.pop(number, None)
        self._cancelled.discard(number)

    def _refuse_load(self, number: int, error: EnclaveError) -> None:
        kind = type(error).__name__
        self._counters.refused(error)
        # The class alone: the text names the user's file, and quotes labels and KMS.
        _log.info(
            "kernel %s was refused a package: %s",
            self._owner.kernel_id,
            kind,
            extra={"fields": {"event": "refused", "kernel": self._owner.kernel_id, "kind": kind}},
        )
        self._refuse(number, error)

    def _refuse(self, number: int, error: EnclaveError) -> None:
        self._send(LoadRefused(request_id=number, kind=type(error).__name__, message=str(error)))

    async def _load(self, message: LoadPackage) -> None:
        try:
            async with self._turn:
                await asyncio.sleep(self._bucket.take())
                await self._load_or_raise(message)
        except PackageError as error:
            self._refuse_load(message.request_id, error.with_file(message.file_name))
        except EnclaveError as error:
            self._refuse_load(message.request_id, error)
        except Exception as error:
            log_failure(_log, "loading a package failed", error)
            failure = EnclaveError("the supervisor failed to load the package; see: enclave logs")
            self._refuse_load(message.request_id, failure)

    async def _load_or_raise(self, message: LoadPackage) -> None:
        """1. Parse. 2. Publisher. 3. A vault that passed its self-check. 4. Key. 5. Both meet."""
        header = decode_header(message.header)
        if len(header.raw) != len(message.header):
            raise EnclaveError("the header sent to the supervisor has bytes behind its end")
        is_new = await self._publishers.check(header, allow_unsigned=message.unsigned)
        vault: VaultProcess | None = None
        died = asyncio.Event()
        vault_id = secrets.token_hex(8)

        def on_death(death: VaultDeath) -> None:
            died.set()
            self._vault_died(vault_id, death)

        try:
            vault = await self._pool.take(on_death, native=header.label.policy.native)
            self._deaths[vault_id] = asyncio.get_running_loop().create_future()
            data_key = await self._release_key(header)
            try:
                await self._pool.start(vault, header.raw, data_key, now_ms=self._clock.now_ms())
            finally:
                # Also when the load is cancelled before the vault's turn came.
                data_key[:] = bytes(len(data_key))
            if is_new:
                await self._publishers.pin(header)
            if died.is_set() or self._closed:
                raise EnclaveError("the vault ended before the package was loaded; load it again")
        except BaseException:
            if vault is not None:
                self._pool.end(vault)
            raise
        meter = VaultMeter(vault.pid, vault.control_group)
        self._vaults[vault_id] = _Vault(vault, header.label.package, meter)
        self._counters.loaded()
        kernel = self._owner.kernel_id
        _log.info(
            "kernel %s loaded a package into vault %s",
            kernel,
            vault_id,
            extra={"fields": {"event": "loaded", "kernel": kernel, "vault": vault_id}},
        )
        with vault.session_socket as sock:
            loaded = PackageLoaded(message.request_id, vault_id, new_publisher=is_new)
            self._send(loaded, (sock.fileno(),))

    def _vault_died(self, vault_id: str, death: VaultDeath) -> None:
        vault = self._vaults.pop(vault_id, None)
        if vault is not None:
            self._pool.end(vault.process)
        reason = self._deaths.get(vault_id)
        if reason is not None and not reason.done():
            reason.set_result(death)
        while len(self._deaths) > _MAX_DEATHS_KEPT:
            self._deaths.pop(next(iter(self._deaths)))

    async def _tell_death(self, message: VaultDeathRequest) -> None:
        reply = VaultDeathMessage(request_id=message.request_id, reason=None)
        future = self._deaths.get(message.vault_id)
        if future is not None:
            with contextlib.suppress(TimeoutError):
                death = await asyncio.wait_for(asyncio.shield(future), _DEATH_WAIT_S)
                peak = death.peak_memory_bytes
                # A step, as of everything that is told of a vault's memory.
                told = None if peak is None else memory_step(peak)
                reply = VaultDeathMessage(message.request_id, death.reason, told)
        self._send(reply)

    def close(self) -> None:
        """End every vault and every load of this kernel."""
        self._closed = True
        for load in (*self._loads.values(), *self._asked):
            load.cancel()
        for vault in self._vaults.values():
            self._pool.end(vault.process)
        self._vaults.clear()
