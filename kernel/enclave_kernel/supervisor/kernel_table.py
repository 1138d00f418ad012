"""The kernels of this enclave: launched, found by id, signalled, and gone when they end."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from enclave_kernel.session_messages import (
    CellsPending,
    FlushWorkspace,
    KernelExited,
    KernelFailed,
    KernelPlace,
    KernelReady,
    KernelWalled,
    StartKernel,
    WorkspaceFlushed,
)
from enclave_kernel.supervisor.egress import EgressListener
from enclave_kernel.supervisor.kernel_process import KernelProcess, KernelProcesses
from enclave_kernel.supervisor.pending_cells import CellsTeller
from enclave_kernel.supervisor.session_channel import FromSession, SessionChannel
from enclave_kernel.supervisor.usage import KernelMeter, VaultMeter
from enclave_kernel.supervisor.workspace import Workspace
from enclave_kernel.supervisor.zygote_process import ZygoteProcess
from enclave_protocol.enclave_usage import MAX_LISTED_VAULTS, VaultInfo
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import (
    CHANNELS,
    KernelCells,
    KernelEnded,
    KernelInfo,
    LaunchKernel,
)
from enclave_protocol.workspace.names import check_rel

__all__ = ["Kernel", "KernelLaunchError", "KernelTable", "UnknownKernelError", "VaultOwner"]

_log = logging.getLogger(__name__)
_READY_TIMEOUT_S = 60.0
_MAX_KERNELS = 256
_MAX_FLUSHES = 1024
_SIGKILL = 9


class KernelLaunchError(EnclaveError):
    """A kernel process did not come up."""


class UnknownKernelError(EnclaveError):
    """No kernel of that id runs."""


class VaultOwner(Protocol):
    """What a kernel's requests for vaults go to."""

    def handle(self, message: FromSession) -> None:
        """Take one message of the kernel process."""

    def describe(self) -> tuple[VaultInfo, ...]:
        """Return what `enclave status` shows of every vault."""

    def meters(self) -> tuple[VaultMeter, ...]:
        """Return what of them is to be looked at from time to time."""

    def close(self) -> None:
        """End every vault of this kernel."""


@dataclass
class Kernel:
    """One kernel and what belongs to it."""

    kernel_id: str
    process: KernelProcess | None = None
    walls: tuple[str, ...] | None = None
    started: float = field(default_factory=time.monotonic)
    channel: SessionChannel | None = None
    vaults: VaultOwner | None = None
    egress: EgressListener | None = None
    meter: KernelMeter | None = None
    cells: CellsTeller | None = None
    ready: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    streams: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def pid(self) -> int:
        """Its process id; 0 before there is a process."""
        return 0 if self.process is None else self.process.pid

    def describe(self, vaults: tuple[VaultInfo, ...]) -> KernelInfo:
        """Return what `enclave status` shows of it, with these of its vaults."""
        seen = None if self.meter is None else self.meter.seen
        return KernelInfo(
            kernel_id=self.kernel_id,
            pid=self.pid,
            uptime_s=round(time.monotonic() - self.started, 1),
            vaults=vaults,
            memory_bytes=None if seen is None else seen.memory_bytes,
            cpu_percent=None if seen is None else seen.cpu_percent,
            cpu_s=None if seen is None else seen.cpu_s,
            walled=self.walls is not None,
        )


class KernelTable:
    """All kernels.

    Args:
        processes: Where a kernel's process comes from.
        on_ended: Told of every kernel that was launched and ended.
        on_cells: Told of the cells that a kernel has and has not answered.
        make_vaults: Makes the owner of a kernel's vaults.
        workspace: What the parent mirrors.
        open_egress: Makes a walled kernel's way to the egress proxy.

    Attributes:
        walls: What the kernel that came up last found standing around it; None before the first.
    """

    def __init__(
        self,
        processes: KernelProcesses,
        *,
        on_ended: Callable[[KernelEnded], None],
        on_cells: Callable[[KernelCells], None],
        make_vaults: Callable[[Kernel], VaultOwner],
        workspace: Workspace,
        open_egress: Callable[[Kernel], EgressListener | None],
    ) -> None:
        self._processes = processes
        self._on_ended = on_ended
        self._on_cells = on_cells
        self._make_vaults = make_vaults
        self._workspace = workspace
        self._flushes: set[asyncio.Task[None]] = set()
        self._open_egress = open_egress
        self.walls: tuple[str, ...] | None = None
        self._kernels: dict[str, Kernel] = {}

    def __len__(self) -> int:
        return len(self._kernels)

    def get(self, kernel_id: str) -> Kernel:
        """Return a kernel that runs.

        Raises:
            UnknownKernelError: None does by that id.
        """
        try:
            return self._kernels[kernel_id]
        except KeyError:
            raise UnknownKernelError(f"no kernel {kernel_id} runs in this enclave") from None

    def describe(self) -> tuple[KernelInfo, ...]:
        """Return what `enclave status` shows of each kernel; not all vaults if there are many."""
        room = MAX_LISTED_VAULTS
        found = []
        for kernel in self._kernels.values():
            vaults = () if kernel.vaults is None else kernel.vaults.describe()[:room]
            room -= len(vaults)
            found.append(kernel.describe(vaults))
        return tuple(found)

    def meters(self) -> tuple[KernelMeter, ...]:
        """Return what of the kernels themselves is to be looked at from time to time."""
        meters = (kernel.meter for kernel in self._kernels.values())
        return tuple(meter for meter in meters if meter is not None)

    def vault_meters(self) -> tuple[VaultMeter, ...]:
        """Return the same for all vaults."""
        owners = (kernel.vaults for kernel in self._kernels.values())
        return tuple(m for owner in owners if owner is not None for m in owner.meters())

    async def launch(self, request: LaunchKernel, zygote: ZygoteProcess) -> Kernel:
        """Start a kernel process and return it when its five sockets are bound.

        Raises:
            KernelLaunchError: The id is taken, too many kernels run, or the process ended or
                was not ready within 60 s.
            ZygoteError: There is no zygote to fork from.
        """
        if request.kernel_id in self._kernels:
            raise KernelLaunchError(f"kernel {request.kernel_id} runs already")
        if len(self._kernels) >= _MAX_KERNELS:
            raise KernelLaunchError(f"{_MAX_KERNELS} kernels run already; shut one down first")
        kernel = Kernel(request.kernel_id)
        self._kernels[kernel.kernel_id] = kernel
        try:
            kernel.process = await self._processes.take(request.kernel_id, zygote)
            self._start(kernel, kernel.process, request)
            await asyncio.wait_for(kernel.ready, _READY_TIMEOUT_S)
        except BaseException as error:
            if kernel.process is not None:
                kernel.process.signal(_SIGKILL)
            self._remove(kernel)
            if isinstance(error, TimeoutError):
                raise KernelLaunchError("the kernel process was not ready within 60 s") from error
            raise
        finally:
            self._processes.prepare(zygote)
        return kernel

    def _start(self, kernel: Kernel, process: KernelProcess, request: LaunchKernel) -> None:
        kernel.vaults = self._make_vaults(kernel)
        kernel.meter = KernelMeter(process.pid, process.cgroup)
        kernel.cells = CellsTeller(kernel.kernel_id, self._on_cells)
        kernel.channel = SessionChannel(
            process.session,
            on_message=lambda message: self._take(kernel, message),
            on_end=lambda: self._channel_ended(kernel),
        )
        kernel.channel.send(
            StartKernel(
                kernel_id=kernel.kernel_id,
                endpoint_prefix=process.prefix,
                key=request.key,
                signature_scheme=request.signature_scheme,
                cwd=_start_folder(request),
                environ=request.environ,
                arguments=request.arguments,
                place=self._place(process, request),
                curve=request.curve,
                workspace=None if request.workspace is None else str(self._workspace.folder()),
            )
        )

    def _place(self, process: KernelProcess, request: LaunchKernel) -> KernelPlace | None:
        """Return the process's walls, with the workspace where it is the notebook's folder.

        And in an enclave in any case: there are no other files of the user's.
        """
        place = process.place
        if place is None or (request.workspace is None and place.use_folder):
            return place
        folder = str(self._workspace.folder())
        return msgspec.structs.replace(place, use_folder=False, workspace=folder)

    def _flush(self, kernel: Kernel, message: FlushWorkspace) -> None:
        async def flush() -> None:
            await self._workspace.flush()
            if kernel.channel is not None:
                kernel.channel.send(WorkspaceFlushed(message.request_id))

        # A kernel asks once a cell: one that asks more often waits in line like the others.
        if len(self._flushes) < _MAX_FLUSHES:
            task = asyncio.create_task(flush())
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)

    def signal(self, kernel_id: str, number: int) -> None:
        """Signal a kernel's process group; if it ended already, nothing happens."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and kernel.process is not None:
            kernel.process.signal(number)

    def tell_cells(self) -> None:
        """Tell again of the cells that every kernel has and has not answered."""
        for kernel in self._kernels.values():
            if kernel.cells is not None:
                kernel.cells.tell()

    def _take(self, kernel: Kernel, message: FromSession) -> None:
        if isinstance(message, KernelWalled):
            self._take_walls(kernel, message.walls)
        elif isinstance(message, KernelReady):
            self._take_ready(kernel)
        elif isinstance(message, KernelFailed):
            if not kernel.ready.done():
                kernel.ready.set_exception(KernelLaunchError(message.message))
        elif isinstance(message, CellsPending):
            if kernel.cells is not None:
                kernel.cells.take(message.cells)
        elif isinstance(message, FlushWorkspace):
            self._flush(kernel, message)
        elif kernel.vaults is not None:
            kernel.vaults.handle(message)

    def _take_walls(self, kernel: Kernel, walls: tuple[str, ...]) -> None:
        # The first time only: then nothing of the user's has run in there.
        if kernel.walls is not None:
            return
        kernel.walls = walls
        if walls != self.walls:
            _log.info("walls of a notebook: %s", "; ".join(walls))
        self.walls = walls
        kernel.egress = self._open_egress(kernel)

    def _take_ready(self, kernel: Kernel) -> None:
        if kernel.ready.done():
            return
        expected = kernel.process is not None and kernel.process.place is not None
        if expected and kernel.walls is None:
            kernel.ready.set_exception(KernelLaunchError("the kernel came up without its walls"))
            return
        kernel.ready.set_result(None)

    def _channel_ended(self, kernel: Kernel) -> None:
        # The process ended, or will get no more vaults: those it has end with the connection.
        if kernel.vaults is not None:
            kernel.vaults.close()

    async def connect(self, kernel: Kernel, channel: str) -> socket.socket:
        """Return a connection to one channel of a kernel.

        Raises:
            OSError: The kernel ended meanwhile, or is not up yet.
        """
        if kernel.process is None:
            raise ConnectionRefusedError(f"kernel {kernel.kernel_id} is not up yet")
        number = CHANNELS.index(channel) + 1
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, f"{kernel.process.prefix}-{number}")
        except BaseException:
            sock.close()
            raise
        return sock

    def ended(self, message: KernelExited) -> None:
        """A process that the zygote made ended: tell of it and remove what it had."""
        if self._processes.lost(message.name):
            return
        kernel = self._by_process(message.name)
        if kernel is None:
            return
        reason = self._reason(kernel, message.returncode)
        if not kernel.ready.done():
            kernel.ready.set_exception(KernelLaunchError(f"the kernel process {reason}"))
            return
        self._remove(kernel)
        _log.info("kernel %s %s", kernel.kernel_id, reason)
        self._on_ended(
            KernelEnded(kernel_id=kernel.kernel_id, returncode=message.returncode, reason=reason)
        )

    def all_ended(self) -> None:
        """The zygote is gone and took every kernel with it."""
        self._processes.close()
        for kernel in list(self._kernels.values()):
            if kernel.process is None:
                continue
            # The kernel process died with the zygote, what it started did not.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, _SIGKILL)
            self.ended(KernelExited(name=kernel.process.name, returncode=-_SIGKILL))

    def _by_process(self, name: str) -> Kernel | None:
        for kernel in self._kernels.values():
            if kernel.process is not None and kernel.process.name == name:
                return kernel
        return None

    def _reason(self, kernel: Kernel, returncode: int) -> str:
        group = None if kernel.process is None else kernel.process.cgroup
        if returncode == -_SIGKILL and group is not None and group.killed_for_memory():
            limit = group.limit_bytes // 2**20
            return f"was ended because it needed more than its {limit} MiB of memory"
        if returncode < 0:
            return f"was ended by signal {-returncode}"
        return f"ended with status {returncode}"

    def _remove(self, kernel: Kernel) -> None:
        self._kernels.pop(kernel.kernel_id, None)
        if kernel.channel is not None:
            kernel.channel.close()
        if kernel.egress is not None:
            kernel.egress.close()
        if kernel.cells is not None:
            kernel.cells.close()
        for stream in kernel.streams:
            stream.cancel()
        if kernel.process is not None:
            kernel.process.remove()

    def close(self) -> None:
        """Remove every kernel; their processes end with the zygote."""
        self._processes.close()
        for kernel in list(self._kernels.values()):
            self._remove(kernel)


def _start_folder(request: LaunchKernel) -> str:
    """Return the notebook's folder, in the workspace if it is in there."""
    if not request.workspace:
        return request.cwd if request.workspace is None else ""
    # The parent's word: it leads nowhere else, even for the kernel's own user.
    return check_rel(request.workspace)
