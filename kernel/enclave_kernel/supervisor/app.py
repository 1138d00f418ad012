"""The supervisor put together: one listener, one zygote, the kernels and their vaults."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from enclave_kernel.isolation.control_groups import ControlGroupError, ControlGroups, GroupLimits
from enclave_kernel.key_release_errors import WrongEnvironmentError
from enclave_kernel.kms import load_boto3, release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.session_messages import About, KernelPlace
from enclave_kernel.supervisor.admission import Admission
from enclave_kernel.supervisor.channel_identity import new_channel_identity
from enclave_kernel.supervisor.code_folders import code_folders, import_path
from enclave_kernel.supervisor.control_stream import ControlStream, NoGatewayError
from enclave_kernel.supervisor.counters import Counters
from enclave_kernel.supervisor.egress import Egress
from enclave_kernel.supervisor.kernel_process import KernelProcesses
from enclave_kernel.supervisor.kernel_table import Kernel, KernelTable, UnknownKernelError
from enclave_kernel.supervisor.memory_share import memory_share
from enclave_kernel.supervisor.package_loader import PackageLoader
from enclave_kernel.supervisor.publisher_check import PublisherCheck
from enclave_kernel.supervisor.stream_listener import StreamListener
from enclave_kernel.supervisor.usage import UsageClock
from enclave_kernel.supervisor.user_ids import UserIds
from enclave_kernel.supervisor.vault_pool import VaultPool
from enclave_kernel.supervisor.workspace import Workspace
from enclave_kernel.supervisor.zygote_process import ZygoteProcess
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.channel_binding import NOTEBOOK_USER_DATA
from enclave_protocol.messages import (
    Attest,
    Attested,
    Body,
    Credentials,
    CredentialsRequest,
    Done,
    EgressWanted,
    EnclaveStatus,
    KernelCells,
    KernelEnded,
    KernelLaunched,
    LaunchKernel,
    MessageError,
    OpenChannel,
    Ping,
    Shutdown,
    SignalKernel,
    StatusRequest,
)
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.relay import relay, relay_secured

__all__ = ["Supervisor", "SupervisorOptions"]

_log = logging.getLogger(__name__)
_MAX_CONTROLS = 16
"""Open at once; the oldest goes when one more comes (THREATS V-08)."""
_KEY_THREADS = 8
"""Releases at once; a notebook has one at most, and a silent KMS holds it for a minute."""
_MAX_TASKS = 4096
"""Processes and threads of one notebook."""
_PCR_INDICES = (0, 1, 2, 3, 4, 8)
_INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR")


@dataclass(frozen=True)
class SupervisorOptions:
    """How the supervisor was started.

    Attributes:
        listen: `vsock:PORT` or `unix:PATH`.
        nsm: `/dev/nsm`, or `unix:PATH` of a software NSM in development.
        runtime_dir: A directory of its own, 0700; sockets and private directories live there.
        kms_endpoint_url: Development only: where KMS is, instead of AWS.
        kernel_memory_bytes: The most one kernel's processes may use; None: no limit.
        hidden: Folders that no notebook may see, with state of the enclave in them.
        development: Packages that their owner marked for development may be opened.
    """

    listen: str
    nsm: str
    runtime_dir: Path
    kms_endpoint_url: str | None = None
    kernel_memory_bytes: int | None = None
    hidden: tuple[Path, ...] = ()
    development: bool = False

    @property
    def own_machine(self) -> bool:
        """Whether the enclave is a machine of its own, and not processes of the parent's."""
        return self.listen.startswith("vsock:")


class Supervisor:
    """The enclave's root process.

    Raises:
        EnclaveError: The NSM, the endpoint or the memory limit cannot be had.
    """

    def __init__(self, options: SupervisorOptions) -> None:
        self._options = options
        self._started = time.monotonic()
        # First of all: nothing that is started later may inherit what it is made of.
        self._identity = new_channel_identity()
        self._nsm = NsmClient.open(options.nsm)
        self._pcrs = {i: self._nsm.describe_pcr(i)[1].hex() for i in _PCR_INDICES}
        self._module_id = self._nsm.describe().module_id
        self._keys = RsaPool()
        self._clock = TrustedClock()
        self._counters = Counters()
        self._key_threads = ThreadPoolExecutor(_KEY_THREADS, thread_name_prefix="key-release")
        self._cgroups = _groups_for_kernels(options.kernel_memory_bytes)
        sockets = options.runtime_dir / "k"
        vaults = options.runtime_dir / "v"
        workspace = options.runtime_dir / "w"
        for directory in (sockets, vaults, workspace):
            directory.mkdir(mode=0o700, exist_ok=True)
        # A vault passes through here to its own directory, which nobody can list.
        vaults.chmod(0o711)
        self._user_ids = UserIds()
        self._pool = VaultPool(vaults, import_path(), self._user_ids)
        self._workspace = Workspace(workspace, self._user_ids)
        self._processes = KernelProcesses(
            sockets, cgroups=self._cgroups, make_place=self._place_of_a_kernel
        )
        self._egress = Egress(self._announce)
        self._kernels = KernelTable(
            self._processes,
            on_ended=self._tell,
            on_cells=self._tell,
            make_vaults=self._vaults_of,
            open_egress=lambda kernel: self._egress.listen_for(kernel.pid, kernel.kernel_id),
            workspace=self._workspace,
        )
        self._control: ControlStream | None = None
        self._controls: list[ControlStream] = []
        self._stopping = asyncio.Event()
        self._listener = StreamListener(
            options.listen,
            identity=self._identity,
            admission=Admission(self._identity.public_key, required=not options.development),
            attest=self._attest,
            on_control=self._serve_control,
            on_channel=self._carry_channel,
            on_egress=self._egress.take,
            on_workspace=self._carry_workspace,
        )
        self._zygote = self._new_zygote()

    def _describe_isolation(self) -> tuple[str, ...]:
        """Return what vaults found standing around them, and what was done for kernels."""
        walls = self._pool.walls
        described = ["vault: not checked yet"] if walls is None else [f"vault: {w}" for w in walls]
        notebooks = self._kernels.walls
        if os.geteuid() != 0:
            described.append("vault and notebook: the enclave's own user, no boundary without root")
        elif notebooks is None:
            described.append("notebook: not checked yet")
        else:
            described += [f"notebook: {wall}" for wall in notebooks]
        if self._cgroups is not None:
            described.append("memory limit per kernel")
        return tuple(described)

    def _place_of_a_kernel(self) -> KernelPlace | None:
        if os.geteuid() != 0:
            return None
        number = self._user_ids.next()
        return KernelPlace(
            uid=number,
            gid=number,
            # In an enclave the parent must not choose what of it a notebook may write to.
            use_folder=self._options.development and not self._options.own_machine,
            hidden=(str(self._options.runtime_dir), *map(str, self._options.hidden)),
            code=code_folders(),
            memory_limit=self._options.kernel_memory_bytes,
        )

    def _new_zygote(self) -> ZygoteProcess:
        environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        zygote = ZygoteProcess(environ, on_exit=self._kernels.ended, on_gone=self._zygote_gone)
        self._processes.prepare(zygote, at_once=True)
        return zygote

    def _zygote_gone(self) -> None:
        self._kernels.all_ended()
        if not self._stopping.is_set():
            self._zygote = self._new_zygote()

    def _vaults_of(self, kernel: Kernel) -> PackageLoader:
        return PackageLoader(
            kernel,
            self._pool,
            self._release_key,
            self._about,
            self._attest_for_notebook,
            PublisherCheck(self._ask_gateway),
            self._clock,
            self._counters,
        )

    def _about(self, request_id: int) -> About:
        return About(
            request_id=request_id,
            version=version("enclave-kernel"),
            module_id=self._module_id,
            pcr0=self._pcrs[0],
            debug=self._is_debug(),
            development=self._options.development,
            uptime_s=round(time.monotonic() - self._started, 1),
            isolation=self._describe_isolation(),
        )

    def _tell(self, event: KernelEnded | KernelCells) -> None:
        if self._control is not None:
            self._control.notify(event)

    def _announce(self, event: EgressWanted) -> bool:
        if self._control is None:
            return False
        self._control.notify(event)
        return True

    @contextlib.asynccontextmanager
    async def _way_to_kms(self) -> AsyncIterator[str | None]:
        """Yield the proxy to use; None: KMS is a process of this machine (development)."""
        if self._options.kms_endpoint_url is not None and not self._options.own_machine:
            yield None
            return
        async with self._egress.own_proxy() as url:
            yield url

    async def _release_key(self, header: PackageHeader) -> bytearray:
        self._check_environment(header.label.policy.environment)
        credentials = await self._ask_gateway(CredentialsRequest())
        if not isinstance(credentials, Credentials):
            raise MessageError("the gateway's answer to a request for credentials holds none")
        async with self._way_to_kms() as proxy_url:
            release = partial(
                release_data_key,
                header,
                nsm=self._nsm,
                keys=self._keys,
                credentials=credentials,
                endpoint_url=self._options.kms_endpoint_url,
                clock=self._clock,
                proxy_url=proxy_url,
            )
            timed = partial(_timed, release, self._counters)
            releasing = asyncio.get_running_loop().run_in_executor(self._key_threads, timed)
            try:
                return await asyncio.shield(releasing)
            except asyncio.CancelledError:
                releasing.add_done_callback(_wipe)
                raise

    async def _ask_gateway(self, request: Body) -> Body:
        if self._control is None:
            raise NoGatewayError
        return await self._control.request(request)

    def _check_environment(self, environment: str) -> None:
        """Refuse a package in an enclave that its owner did not make it for (THREATS A-08)."""
        if environment == "development" and not self._options.development:
            raise WrongEnvironmentError(
                "the package is marked for development, and this is a production enclave; ask its "
                'owner for one with environment = "production"'
            )
        if environment == "production" and self._is_debug():
            raise WrongEnvironmentError(
                "the package is for production, and this enclave runs in debug mode, where its "
                "console can be read; start it again without debug mode"
            )

    def _is_debug(self) -> bool:
        # Debug mode zeroes PCR0 (FACTS, attestation document).
        return not any(bytes.fromhex(self._pcrs[0]))

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or a Shutdown request; leave nothing behind."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stopping.set)
        accepting = asyncio.create_task(self._listener.run())
        accepting.add_done_callback(lambda _: self._stopping.set())
        usage = UsageClock(self._kernels.meters, self._kernels.vault_meters)
        looking = asyncio.create_task(usage.run())
        # What it says of its walls is what the enclave reports.
        self._pool.prepare_spare()
        # Whoever loads the first package shall not wait for it.
        self._key_threads.submit(load_boto3)
        try:
            await self._stopping.wait()
            if accepting.done():
                # It ends by itself only where the endpoint cannot be listened on.
                accepting.result()
        finally:
            accepting.cancel()
            looking.cancel()
            await self._close()

    async def _close(self) -> None:
        self._stopping.set()
        self._kernels.close()
        await asyncio.to_thread(self._zygote.stop)
        await asyncio.to_thread(self._pool.close)
        self._key_threads.shutdown(wait=False, cancel_futures=True)
        self._keys.close()
        self._nsm.close()
        if self._cgroups is not None:
            self._cgroups.close()
        if self._control is not None:
            await self._control.close()
        await self._workspace.close()
        self._listener.close()
        for name in ("k", "v", "w"):
            with contextlib.suppress(OSError):
                (self._options.runtime_dir / name).rmdir()

    async def _carry_channel(self, sock: socket.socket, opened: OpenChannel) -> None:
        try:
            kernel = self._kernels.get(opened.kernel_id)
            inner = await self._kernels.connect(kernel, opened.channel)
        except (OSError, UnknownKernelError):
            # Usual while a kernel ends: ZeroMQ clients connect again until told to stop.
            sock.close()
            return
        task = asyncio.create_task(relay(sock, inner))
        kernel.streams.add(task)
        task.add_done_callback(kernel.streams.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)

    async def _carry_workspace(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes
    ) -> None:
        try:
            agent = await self._workspace.serve(rest)
        except BaseException:
            writer.transport.abort()
            raise
        await relay_secured(reader, writer, agent)

    async def _serve_control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes
    ) -> None:
        stream = ControlStream(reader, writer, self._handle)
        # The newest gateway is the one that counts: an older one crashed or is being replaced.
        self._control = stream
        self._controls.append(stream)
        if len(self._controls) > _MAX_CONTROLS:
            self._controls.pop(0).abort()
        try:
            await stream.run(rest)
        finally:
            if self._control is stream:
                self._control = None
            if stream in self._controls:
                self._controls.remove(stream)

    async def _attest_for_notebook(self, nonce: bytes) -> bytes:
        """Return a document that says nothing but which enclave this is."""
        return await asyncio.to_thread(self._nsm.attest, nonce=nonce, user_data=NOTEBOOK_USER_DATA)

    async def _attest(self, nonce: bytes) -> bytes:
        """Return a document for our own TLS key (THREATS A-13: for none that we did not make)."""
        return await asyncio.to_thread(
            self._nsm.attest, nonce=nonce, user_data=self._identity.user_data
        )

    async def _handle(self, body: Body) -> Body:
        if isinstance(body, LaunchKernel):
            kernel = await self._kernels.launch(body, self._zygote)
            return KernelLaunched(pid=kernel.pid)
        if isinstance(body, SignalKernel):
            self._kernels.signal(body.kernel_id, body.signum)
            return Done()
        if isinstance(body, Ping):
            return Done()
        if isinstance(body, StatusRequest):
            # Before the reply: a gateway that started again learns by it what it has to know.
            self._kernels.tell_cells()
            return self._status()
        if isinstance(body, Attest):
            return Attested(document=await self._attest(body.nonce))
        if isinstance(body, Shutdown):
            asyncio.get_running_loop().call_later(0.05, self._stopping.set)
            return Done()
        raise MessageError(f"{type(body).__name__} is no request of a gateway")

    def _status(self) -> EnclaveStatus:
        return EnclaveStatus(
            version=version("enclave-kernel"),
            module_id=self._module_id,
            debug=self._is_debug(),
            uptime_s=round(time.monotonic() - self._started, 1),
            pcrs={str(index): value for index, value in self._pcrs.items()},
            isolation=self._describe_isolation(),
            kernels=self._kernels.describe(),
            vaults=len(self._kernels.vault_meters()),
            counts=self._counters.snapshot(),
        )


def _groups_for_kernels(limit_bytes: int | None) -> ControlGroups | None:
    """Return what limits kernels; without a limit asked for, `memory_share` each.

    Raises:
        ControlGroupError: A limit was asked for and cannot be held.
    """
    name = f"enclave-{os.getpid()}"
    if limit_bytes is not None:
        return ControlGroups(name, GroupLimits(limit_bytes, tasks=_MAX_TASKS))
    if os.geteuid() != 0:
        return None
    try:
        return ControlGroups(name, GroupLimits(memory_share(), tasks=_MAX_TASKS))
    except ControlGroupError as error:
        _log.warning("kernels are limited without control groups: %s", error)
        return None


def _timed(release: Callable[[], bytearray], counters: Counters) -> bytearray:
    """Release a key and count how long it took. Runs in a thread."""
    began = time.monotonic()
    try:
        return release()
    finally:
        counters.released(time.monotonic() - began)


def _wipe(releasing: "asyncio.Future[bytearray]") -> None:
    """Wipe a data key that nobody waits for any more."""
    if not releasing.cancelled() and releasing.exception() is None:
        data_key = releasing.result()
        data_key[:] = bytes(len(data_key))
