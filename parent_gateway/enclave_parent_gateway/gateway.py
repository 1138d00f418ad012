"""The gateway: one process per enclave, between Jupyter's clients and the supervisor.

It outlives Jupyter, holds the control stream and the kernels' sockets, and answers the API on
`gateway.sock`. It parses nothing of what the channels carry. Started by a backend as
`python -m enclave_parent_gateway.gateway`.
"""

import argparse
import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from enclave_parent_gateway.api import (
    ChangeEgress,
    ChannelAttested,
    ForgetKernel,
    GatewayStatus,
    HoldSlot,
    KeepRunning,
    KernelState,
    Launch,
    Launched,
    PollKernel,
    Reply,
    Request,
    SignalSlot,
    WaitKernel,
)
from enclave_parent_gateway.api_server import ApiServer
from enclave_parent_gateway.backends.base import load_backend
from enclave_parent_gateway.callers import Callers
from enclave_parent_gateway.control_stream import ControlStream
from enclave_parent_gateway.egress.addresses import AddressPolicy
from enclave_parent_gateway.egress.service import EgressService, make_room_for_connections
from enclave_parent_gateway.enclave_check import EnclaveCheck
from enclave_parent_gateway.enclave_state import read_enclave_process
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotTrustedError,
    GatewayStoppingError,
    KernelLaunchError,
)
from enclave_parent_gateway.gateway_identity import gateway_key
from enclave_parent_gateway.kernel_slot import KernelSlot, RunningKernel
from enclave_parent_gateway.last_word import KernelVoice, enclave_ended_text
from enclave_parent_gateway.metrics_server import MetricsServer
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.service_manager import say_ready
from enclave_parent_gateway.slot_hold import hold_slot
from enclave_parent_gateway.supervisor_requests import SupervisorRequests
from enclave_parent_gateway.sync.sync_state import folder_in_workspace
from enclave_parent_gateway.traffic import Traffic
from enclave_parent_gateway.workspace_relay import WorkspaceRelay
from enclave_protocol.errors import EnclaveError
from enclave_protocol.log_lines import FORMATS, set_up_logging
from enclave_protocol.messages import (
    Attest,
    Body,
    Done,
    EgressWanted,
    EnclaveStatus,
    KernelEnded,
    KernelLaunched,
    LaunchKernel,
    Shutdown,
    SignalKernel,
    StatusRequest,
)

__all__ = ["Gateway", "main"]

log = logging.getLogger("enclave_parent_gateway.gateway")

_LAUNCH_TIMEOUT_S = 60.0
"""A launch takes 0.1 s; twenty at once on a loaded machine take a few seconds."""
_REPLY_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 5.0
_UNKNOWN = KernelState(-int(signal.SIGKILL), "the gateway does not know this kernel (any more)")


class Gateway:
    """Everything the gateway knows, and what it does about it.

    Args:
        paths: Of the enclave it belongs to.
        endpoint: The supervisor's, as in `transport.connect`.
        backend: Name of the backend, which knows how the enclave is stopped.
        idle_timeout_s: Stop the enclave after so many seconds without a kernel; 0: never.
        addresses: What the egress proxy may connect to, if not to public addresses only.
    """

    def __init__(
        self,
        paths: EnclavePaths,
        *,
        endpoint: str,
        backend: str,
        idle_timeout_s: float,
        addresses: AddressPolicy | None = None,
    ) -> None:
        self._paths = paths
        self._endpoint = endpoint
        self._backend = load_backend(backend)
        self._metrics = MetricsServer(paths.metrics_socket, backend, self._status)
        self._traffic = Traffic()
        self._idle_timeout_s = idle_timeout_s
        self._slots: dict[str, KernelSlot] = {}
        self._kernels: dict[str, RunningKernel] = {}
        self._stopping = False
        self._done = asyncio.Event()
        self._busy_at = asyncio.get_running_loop().time()
        self._background: set[asyncio.Task[Any]] = set()
        self._callers = Callers(paths)
        self._lost_text = enclave_ended_text(backend, shared=self._callers.shared)
        self._requests = SupervisorRequests(paths, self._backend)
        own = self._backend.own_destination(paths)
        self._egress = EgressService(paths, endpoint, addresses or AddressPolicy(), own)
        self._check = EnclaveCheck(paths, backend)
        self._key = gateway_key(paths)
        self._control = ControlStream(
            endpoint,
            check=self._check,
            on_connected=self._connected,
            on_event=self._event,
            on_gone=self._lost,
            answer=self._requests.answer,
            process=lambda: read_enclave_process(paths.state_file),
            key=self._key,
        )

    async def run(self) -> None:
        """Serve until a Shutdown request or SIGTERM. SIGTERM leaves the enclave running."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._done.set)
        server = ApiServer(self._paths.gateway_socket, self._handle, self._callers)
        workspace = WorkspaceRelay(
            self._paths.workspace_socket,
            self._endpoint,
            self._check,
            self._key,
            lambda: self._traffic.streams.update(("workspace",)),
        )
        tasks = [asyncio.create_task(self._control.run()), asyncio.create_task(self._watch_idle())]
        await server.start()
        await self._metrics.start()
        workspace.start()
        log.info("gateway for %s listens", self._endpoint)
        say_ready()
        try:
            await self._done.wait()
        finally:
            await server.close()
            await self._metrics.close()
            workspace.close()
            for task in (*tasks, *self._background):
                task.cancel()
            for slot in self._slots.values():
                slot.close()
            await self._egress.close()
            self._requests.close()
            log.info("gateway ends")

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # The supervisor's side

    async def _connected(self) -> None:
        """Match what we know with what runs there: kernels may have ended, or be older than us."""
        self._traffic.streams["supervisor"] += 1
        status = await self._enclave_status()
        alive = {kernel.kernel_id for kernel in status.kernels}
        for kernel in self._kernels.values():
            if kernel.launched and kernel.kernel_id not in alive:
                kernel.end(-int(signal.SIGKILL), "it ended while the gateway was not connected")
        for kernel_id in sorted(alive - self._kernels.keys()):
            self._adopt(kernel_id)
        self._callers.keep_only(self._slots)

    def _adopt(self, kernel_id: str) -> None:
        """Listen again for a kernel that an earlier gateway started."""
        name = kernel_id.rpartition("-")[0]
        if not name or name in self._slots:
            return
        slot = self._slot(name)
        slot.kernel = self._kernels[kernel_id] = RunningKernel(kernel_id)
        slot.kernel.launched = True
        try:
            slot.listen()
        except OSError as error:
            log.warning("cannot listen for kernel %s: %s", kernel_id, error)
            return
        slot.accept()
        log.info("found kernel %s again", kernel_id)

    def _event(self, body: Body) -> None:
        if isinstance(body, KernelEnded):
            kernel = self._kernels.get(body.kernel_id)
            if kernel is not None:
                self._end(kernel, body.returncode, body.reason)
        elif isinstance(body, EgressWanted):
            self._traffic.streams["egress"] += 1
            self._egress.carry(body)
        else:
            log.warning("unexpected event %s", type(body).__name__)

    def _end(self, kernel: RunningKernel, returncode: int, reason: str) -> None:
        self._busy_at = asyncio.get_running_loop().time()
        kernel.end(returncode, reason)
        name, ended = kernel.kernel_id, "kernel %s ended: %d, %s"
        fields = {"event": "ended", "kernel": name, "returncode": returncode}
        log.info(ended, name, returncode, reason, extra={"fields": fields})
        for slot in self._slots.values():
            if slot.kernel is kernel:
                slot.hold()

    def _gone(self) -> None:
        for kernel in list(self._kernels.values()):
            if kernel.state.returncode is None:
                self._end(kernel, -int(signal.SIGKILL), "the enclave ended")

    def _lost(self) -> None:
        """The enclave ended without having been told to: tell every notebook."""
        self._gone()
        told = 0
        for slot in self._slots.values():
            try:
                slot.say_last_word(self._lost_text)
                told += slot.said_last_word
            except OSError as error:
                log.warning("the clients of slot %s are not told: %s", slot.name, error)
        # A gateway that starts first, as systemd's does, has seen no enclave yet.
        if told or self._traffic.streams["supervisor"]:
            log.error("the enclave has ended; %d notebooks are told", told)

    async def _enclave_status(self) -> EnclaveStatus:
        reply = await self._control.request(StatusRequest(), timeout_s=_REPLY_TIMEOUT_S)
        if not isinstance(reply, EnclaveStatus):
            raise EnclaveGoneError(f"the enclave answered {type(reply).__name__} to StatusRequest")
        return reply

    # The clients' side

    async def _handle(self, request: Request, uid: int) -> Reply:
        """Answer one request of the API. Cancelled when the client hangs up."""
        self._callers.check(request, uid, self._kernels)
        match request:
            case Launch(slot):
                self._callers.claim(slot, uid)
                return await self._launch(request)
            case PollKernel(kernel_id):
                kernel = self._kernels.get(kernel_id)
                return kernel.state if kernel else _UNKNOWN
            case WaitKernel(kernel_id):
                kernel = self._kernels.get(kernel_id)
                if kernel is None:
                    return _UNKNOWN
                await kernel.ended.wait()
                return kernel.state
            case SignalSlot(kernel_id, signum):
                kernel = self._kernels.get(kernel_id)
                if kernel is not None and kernel.state.returncode is None:
                    await self._signal(kernel_id, signum)
                return Done()
            case ForgetKernel(slot):
                await self._forget(slot)
                return Done()
            case HoldSlot(slot):
                self._callers.claim(slot, uid)
                return await hold_slot(self._done, lambda: self._start(self._forget(slot)))
            case KeepRunning(idle_timeout_s):
                self._idle_timeout_s = idle_timeout_s
                return Done()
            case ChangeEgress():
                return await self._egress.change(request)
            case StatusRequest():
                return self._callers.view(await self._status(), uid)
            case Attest(nonce):
                found = await self._control.attest(nonce, timeout_s=_REPLY_TIMEOUT_S)
                return ChannelAttested(*found)
            case Shutdown():
                return await self._shutdown()

    async def _launch(self, request: Launch) -> Launched:
        # Shielded: a launch that was sent is seen to its end, or nobody would know the kernel.
        task = self._start(self._launch_in_slot(request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._start(self._withdraw(task, request.slot))
            raise

    async def _withdraw(self, launch: "asyncio.Task[Launched]", slot: str) -> None:
        with suppress(EnclaveError, OSError):
            await launch
            log.info("the client that launched %s hung up before the reply", slot)
            await self._forget(slot)

    def _slot(self, name: str) -> KernelSlot:
        if name not in self._slots:
            prefix = self._paths.channel_prefix(name)
            self._slots[name] = KernelSlot(
                name, prefix, self._endpoint, self._traffic, self._callers
            )
        return self._slots[name]

    async def _launch_in_slot(self, request: Launch) -> Launched:
        if self._stopping:
            raise GatewayStoppingError("the enclave goes down; start the kernel again")
        self._busy_at = asyncio.get_running_loop().time()
        slot = self._slot(request.slot)
        async with slot.lock:
            if slot.said_last_word and not self._control.connected:
                # Jupyter's attempts to restart the kernel, which remove the sockets' files.
                with suppress(OSError):
                    slot.listen_again()
                raise EnclaveGoneError(self._lost_text)
            await self._kill(slot)
            try:
                slot.listen()
            except OSError as error:
                raise KernelLaunchError(
                    f"cannot listen in {self._paths.channels}: {error.strerror}; type: "
                    "enclave down && enclave up"
                ) from error
            kernel = RunningKernel(
                f"{request.slot}-{secrets.token_hex(3)}",
                KernelVoice(request.key, request.signature_scheme, request.curve),
            )
            # Known before it exists: its end may be reported right behind its launch.
            self._kernels[kernel.kernel_id] = slot.kernel = kernel
            asked_at = asyncio.get_running_loop().time()
            try:
                reply = await self._control.request(
                    LaunchKernel(
                        kernel.kernel_id,
                        request.key,
                        request.signature_scheme,
                        request.cwd,
                        request.environ,
                        request.arguments,
                        request.curve,
                        folder_in_workspace(self._paths.sync_file, request.cwd),
                    ),
                    timeout_s=_LAUNCH_TIMEOUT_S,
                )
                if not isinstance(reply, KernelLaunched):
                    raise KernelLaunchError(f"the enclave answered {type(reply).__name__}")
            except EnclaveError:
                # After a timeout it may start yet.
                self._start(self._signal(kernel.kernel_id, signal.SIGKILL))
                self._discard(slot)
                raise
            kernel.launched = True
            if kernel.state.returncode is None:
                slot.accept()
            took_ms = (asyncio.get_running_loop().time() - asked_at) * 1000
            fields = {"event": "started", "kernel": kernel.kernel_id, "ms": round(took_ms)}
            log.info(
                "kernel %s started, pid %d, %.0f ms",
                kernel.kernel_id,
                reply.pid,
                took_ms,
                extra={"fields": fields},
            )
            return Launched(kernel.kernel_id, reply.pid, str(slot.prefix))

    async def _signal(self, kernel_id: str, signum: int) -> None:
        with suppress(EnclaveGoneError, EnclaveNotTrustedError):
            await self._control.request(SignalKernel(kernel_id, signum), timeout_s=_REPLY_TIMEOUT_S)

    async def _kill(self, slot: KernelSlot) -> None:
        """End the slot's kernel if one runs, and forget it."""
        kernel = slot.kernel
        if kernel is None:
            return
        if kernel.state.returncode is None:
            await self._signal(kernel.kernel_id, signal.SIGKILL)
            try:
                async with asyncio.timeout(_KILL_TIMEOUT_S):
                    await kernel.ended.wait()
            except TimeoutError:
                log.warning("kernel %s does not end", kernel.kernel_id)
        slot.kernel = None
        self._kernels.pop(kernel.kernel_id, None)

    async def _forget(self, name: str) -> None:
        slot = self._slots.get(name)
        if slot is None:
            return self._callers.release(name)  # held, and never launched
        async with slot.lock:
            await self._kill(slot)
            self._discard(slot)

    def _discard(self, slot: KernelSlot) -> None:
        slot.close()
        self._traffic.retire_slot(slot.counters)
        if slot.kernel is not None:
            self._kernels.pop(slot.kernel.kernel_id, None)
            slot.kernel = None
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
            self._callers.release(slot.name)

    async def _status(self) -> GatewayStatus:
        try:
            enclave = await self._enclave_status()
        except (EnclaveGoneError, EnclaveNotTrustedError):
            enclave = None
        slots = (slot.status() for slot in self._slots.values())
        return GatewayStatus(
            enclave,
            tuple(status for status in slots if status),
            self._idle_timeout_s,
            None if enclave else self._control.refusal,
            self._egress.status(),
            dict(self._traffic.streams),
            self._traffic.total(),
        )

    # The end

    async def _shutdown(self) -> Done:
        """End the enclave and, once the reply is out, ourselves."""
        self._stopping = True
        with suppress(EnclaveGoneError, EnclaveNotTrustedError):
            await self._control.request(Shutdown(), timeout_s=_REPLY_TIMEOUT_S)
        self._gone()
        # ApiServer.close lets the reply out.
        self._done.set()
        return Done()

    async def _watch_idle(self) -> None:
        """Bring the enclave down when nobody has used it for long enough."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await asyncio.sleep(min(5.0, max(self._idle_timeout_s / 4, 0.1)))
            if any(kernel.state.returncode is None for kernel in self._kernels.values()):
                self._busy_at = loop.time()
            if not self._idle_timeout_s or loop.time() - self._busy_at < self._idle_timeout_s:
                continue
            lock = self._paths.lock()
            if not lock.try_acquire():
                # Somebody brings the enclave up or down: its time begins when that is done.
                self._busy_at = loop.time()
                continue
            try:
                self._stopping = True
                log.info("no kernel for %g s: the enclave goes down", self._idle_timeout_s)
                with suppress(EnclaveError):
                    await self._control.request(Shutdown(), timeout_s=_REPLY_TIMEOUT_S)
                await asyncio.to_thread(self._backend.stop_processes, self._paths)
            finally:
                # The lock goes with the process: whoever waits for it finds our socket gone.
                self._done.set()


def main() -> None:
    """Run the gateway as its own process."""
    parser = argparse.ArgumentParser(prog="python -m enclave_parent_gateway.gateway")
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--endpoint", required=True, help="as transport.connect takes it")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--idle-timeout", type=float, default=0.0, help="seconds, 0: never")
    parser.add_argument(
        "--log-format", choices=FORMATS, help="of standard error; default: json, on a terminal text"
    )
    options = parser.parse_args()
    # Whatever is made without a mode is this user's alone.
    os.umask(0o077)
    set_up_logging(options.log_format)
    make_room_for_connections()

    async def serve() -> None:
        gateway = Gateway(
            EnclavePaths.at(options.runtime_dir, options.state_dir),
            endpoint=options.endpoint,
            backend=options.backend,
            idle_timeout_s=options.idle_timeout,
        )
        await gateway.run()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
