"""The kernel provisioner: what jupyter_client calls to start, watch and end a kernel.

It talks to the gateway, one short connection per call: jupyter_client calls from several event
loops and threads. When an enclave is up, a launch starts no process and imports nothing slow.
Source: FACTS, "Jupyter".
"""

import asyncio
import hashlib
import os
import re
import secrets
import signal
from typing import Any, cast

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import CaselessStrEnum, Float, List, Unicode

from enclave_parent_gateway.api import (
    ForgetKernel,
    KernelState,
    Launch,
    Launched,
    PollKernel,
    SignalSlot,
    WaitKernel,
)
from enclave_parent_gateway.auto_up import IDLE_TIMEOUT_S, ensure_up
from enclave_parent_gateway.enclave_state import read_enclave_process
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotRunningError,
    GatewayError,
    GatewayStoppingError,
    KernelLaunchError,
    RefusedError,
    RuntimeDirError,
)
from enclave_parent_gateway.gateway_client import ask
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import CHANNELS, CurveKeys, Done

__all__ = ["EnclaveProvisioner"]

_ADOPTION_S = 1.0
_GONE = -int(signal.SIGKILL)
"""Return code of a kernel that died with its enclave."""
_LAUNCH_TIMEOUT_S = 90.0
_MAX_TEXT = 4096
_MIN_KEY_BYTES = 32
_PASSED_ON = re.compile(r"LANG|LC_[A-Z]+|TZ|TERM|COLUMNS|JPY_SESSION_NAME")
"""Of the server's environment. Not JPY_ as a whole: JupyterHub keeps a token in JPY_API_TOKEN."""
_SCHEME = re.compile(r"hmac-sha(256|384|512)")


class EnclaveProvisioner(KernelProvisionerBase):
    """Runs one Jupyter kernel in the enclave."""

    pass_environment = List(
        Unicode(),
        config=True,
        help="Names of environment variables of the Jupyter server that the kernel gets as well.",
    )
    idle_timeout = Float(
        IDLE_TIMEOUT_S,
        min=0,
        config=True,
        help="An enclave that this server starts goes down after so many seconds without a "
        "kernel; 0: never.",
    )

    transport_encryption = CaselessStrEnum(
        ["required", "disabled"],
        "required",
        config=True,
        help="CurveZMQ between Jupyter's clients and the kernel in the enclave. 'disabled' is for "
        "clients that do not know it: whoever stands between them reads and writes along.",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pid: int | None = None
        self._enclave_kernel_id: str | None = None
        self._reason_told: str | None = None
        self._paths_found: EnclavePaths | None = None

    @property
    def _paths(self) -> EnclavePaths:
        if self._paths_found is None:
            self._paths_found = EnclavePaths.from_environment()
        return self._paths_found

    @property
    def _slot(self) -> str:
        """Start of Jupyter's kernel id, for people, and of its digest, to be unique."""
        name = str(self.kernel_id)
        digest = hashlib.sha256(name.encode()).hexdigest()
        start = name[:8] if re.fullmatch(r"[0-9a-f]{8}", name[:8]) else digest[-8:]
        return f"{start}-{digest[:8]}"

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched and its end not yet collected by `wait`."""
        return self._enclave_kernel_id is not None

    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its return code. Never raises."""
        if self._enclave_kernel_id is None:
            return 0
        try:
            state = await self._ask_state(self._enclave_kernel_id)
        except (EnclaveNotRunningError, RuntimeDirError) as error:
            self.log.warning("kernel %s is lost: %s", self.kernel_id, error)
            return _GONE
        except (EnclaveError, TimeoutError) as error:
            # A gateway that is slow is not one that is dead: do not restart anybody's kernel.
            self.log.warning("kernel %s may be alive: %s", self.kernel_id, error or "no answer")
            return None
        if state.returncode is not None:
            self._tell_why(state.reason)
        return state.returncode

    async def _ask_state(self, kernel_id: str) -> KernelState:
        """Ask the gateway how a kernel is; start another gateway if only that has ended.

        Raises:
            EnclaveNotRunningError: The enclave has ended as well.
            EnclaveError, TimeoutError: It is not known.
        """
        socket = self._paths.gateway_socket
        try:
            return await ask(socket, PollKernel(kernel_id), KernelState)
        except EnclaveNotRunningError:
            process = read_enclave_process(self._paths.state_file)
            if process is None or not process.is_running():
                raise
        if self._paths.is_shared:
            # systemd starts it again; the kernel lives as long as the enclave does.
            raise GatewayError("the gateway has ended, and the enclave lives")
        await ensure_up(self._paths, idle_timeout_s=self.idle_timeout, revive=True)
        reply = await ask(socket, PollKernel(kernel_id), KernelState)
        if reply.returncode is not None:
            # It finds its kernels again a moment after it answers.
            await asyncio.sleep(_ADOPTION_S)
            reply = await ask(socket, PollKernel(kernel_id), KernelState)
        return reply

    def _tell_why(self, reason: str) -> None:
        """Log once why the kernel ended; jupyter_server shows `reason` to its front-ends."""
        if self._reason_told == self._enclave_kernel_id:
            return
        self._reason_told = self._enclave_kernel_id
        self.log.info("kernel %s: %s", self.kernel_id, reason)
        if self.parent is not None:
            self.parent.reason = reason

    async def wait(self) -> int | None:
        """Return the kernel's return code when it has ended. Never raises."""
        if self._enclave_kernel_id is None:
            return 0
        try:
            state = await ask(
                self._paths.gateway_socket,
                WaitKernel(self._enclave_kernel_id),
                KernelState,
                timeout_s=None,
            )
            code = state.returncode
        except EnclaveError:
            code = _GONE
        self._enclave_kernel_id = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group; nothing happens if it is dead."""
        if self._enclave_kernel_id is None:
            return
        try:
            await ask(
                self._paths.gateway_socket, SignalSlot(self._enclave_kernel_id, int(signum)), Done
            )
        except (EnclaveError, TimeoutError) as error:
            # jupyter_client signals before every shutdown and expects no exception.
            self.log.debug("signal %d was not delivered: %s", signum, error)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002 (the base's signature)
        """Kill the kernel; a dead one is fine."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002 (as above)
        """Ask the kernel to end; a dead one is fine."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the kernel's sockets, unless it starts again in a moment. Never raises."""
        if restart:
            return
        try:
            await ask(self._paths.gateway_socket, ForgetKernel(self._slot), Done)
        except (EnclaveError, TimeoutError) as error:
            self.log.debug("kernel %s is not cleaned up: %s", self.kernel_id, error)

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `launch_kernel`.

        Raises:
            KernelLaunchError: Curve encryption is required, and switched off for this kernel.
        """
        required = getattr(self.parent, "transport_encryption", "disabled") == "required"
        if required and self.transport_encryption == "disabled":
            # Refused, not ignored: whoever requires it relies on it.
            raise KernelLaunchError(
                "transport_encryption='required' and EnclaveProvisioner.transport_encryption="
                "'disabled' contradict each other; remove one of them"
            )
        # The kernelspec's argv is not run: the enclave knows how to start a kernel. What a caller
        # of start_kernel adds to it are options of ipykernel.
        kwargs["cmd"] = list(kwargs.pop("extra_arguments", ()))
        return dict(await super().pre_launch(**kwargs))

    async def launch_kernel(
        self,
        cmd: list[str],
        **kwargs: Any,
    ) -> KernelConnectionInfo:
        """Start a kernel in the enclave and return where its channels listen.

        With no enclave up, the local one is brought up first.

        Args:
            cmd: Options of ipykernel's application, such as `--profile-dir=DIR`.
            **kwargs: `env` and `cwd` as for a process.

        Raises:
            KernelLaunchError: The enclave could not start it; one line says why.
            EnclaveStartError: There was no enclave, and none came up.
            EnclaveNotRunningError: The same, on a backend that no notebook starts.
        """
        key, scheme = self._session_key()
        request = Launch(
            slot=self._slot,
            key=key,
            signature_scheme=scheme,
            cwd=os.path.abspath(kwargs.get("cwd") or "."),  # noqa: PTH100 (Path follows no ..)
            environ=self._environ(kwargs.get("env") or {}),
            arguments=tuple(cmd),
            curve=self._curve_keys(),
        )
        launched = await self._launch(request)
        self._enclave_kernel_id = launched.kernel_id
        self.pid = launched.pid
        info: dict[str, Any] = {
            "transport": "ipc",
            "ip": launched.prefix,
            "key": key,
            "signature_scheme": scheme,
        }
        for number, name in enumerate(CHANNELS, 1):
            info[f"{name}_port"] = number
        if request.curve is not None:
            # Text, as in the connection file it is compared with.
            info["curve_publickey"] = request.curve.public_key.decode("ascii")
            info["curve_secretkey"] = request.curve.secret_key.decode("ascii")
        self.connection_info = cast(KernelConnectionInfo, info)
        return self.connection_info

    async def _launch(self, request: Launch) -> Launched:
        for _ in range(2):
            try:
                return await ask(
                    self._paths.gateway_socket, request, Launched, timeout_s=_LAUNCH_TIMEOUT_S
                )
            except (EnclaveNotRunningError, EnclaveGoneError, GatewayStoppingError) as error:
                self.log.info("%s", error)
                await ensure_up(self._paths, idle_timeout_s=self.idle_timeout)
            except RefusedError as error:
                raise KernelLaunchError(f"the kernel did not start: {error}") from error
            except TimeoutError as error:
                raise KernelLaunchError(
                    f"the kernel did not start within {_LAUNCH_TIMEOUT_S:g} s; see: enclave logs"
                ) from error
        raise KernelLaunchError("the enclave went away while the kernel started; try again")

    def _session_key(self) -> tuple[bytes, str]:
        """Return the manager's key and signature scheme, or better ones if they are too weak."""
        session = getattr(self.parent, "session", None)
        key = bytes(getattr(session, "key", b""))
        scheme = str(getattr(session, "signature_scheme", ""))
        if len(key) < _MIN_KEY_BYTES:
            key = secrets.token_hex(_MIN_KEY_BYTES).encode()
        return key, scheme if _SCHEME.fullmatch(scheme) else "hmac-sha256"

    def _curve_keys(self) -> CurveKeys | None:
        """Return the manager's CurveZMQ pair, a new one if it has none, or None if switched off.

        jupyter_client makes it in LocalProvisioner.pre_launch only, and there only if it is told
        to encrypt; this kernel's channels are encrypted unless it is told not to. It keeps the
        pair over restarts, as it does the session's key.

        Raises:
            KernelLaunchError: This installation cannot encrypt.
        """
        if self.transport_encryption == "disabled":
            return None
        manager = self.parent
        if manager is not None and not hasattr(manager, "curve_publickey"):
            raise KernelLaunchError(
                "this jupyter_client cannot encrypt the kernel's channels; type: pip install -U "
                "'jupyter_client>=8.10'"
            )
        if not zmq.has("curve"):
            raise KernelLaunchError(
                "this pyzmq cannot encrypt the kernel's channels (no CurveZMQ); type: pip install "
                "--force-reinstall pyzmq"
            )
        public = getattr(manager, "curve_publickey", None)
        secret = getattr(manager, "curve_secretkey", None)
        if public is None or secret is None:
            public, secret = zmq.curve_keypair()
        return CurveKeys(bytes(public), bytes(secret))

    def _environ(self, environ: dict[str, str]) -> dict[str, str]:
        """Return what of the server's environment may enter the enclave."""
        named = {*self.pass_environment, *(self.kernel_spec.env if self.kernel_spec else ())}
        chosen = {
            name: value
            for name, value in environ.items()
            if name in named or _PASSED_ON.fullmatch(name)
        }
        for name, value in chosen.items():
            if len(value) > _MAX_TEXT:
                raise KernelLaunchError(
                    f"the variable {name} has {len(value)} characters, at most {_MAX_TEXT} can be "
                    "passed to the kernel; shorten it or take it off pass_environment"
                )
        return chosen

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what `load_provisioner_info` needs in another process, ready for JSON."""
        info: dict[str, Any] = await super().get_provisioner_info()
        connection = dict(info["connection_info"])
        if isinstance(connection.get("key"), bytes):
            connection["key"] = connection["key"].decode()
        info |= {
            "connection_info": connection,
            "enclave_kernel_id": self._enclave_kernel_id,
            "pid": self.pid,
        }
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over a kernel that another Jupyter process started."""
        await super().load_provisioner_info(provisioner_info)
        connection: dict[str, Any] = dict(self.connection_info)
        if isinstance(connection.get("key"), str):
            connection["key"] = connection["key"].encode()
        self.connection_info = cast(KernelConnectionInfo, connection)
        self._enclave_kernel_id = provisioner_info["enclave_kernel_id"]
        self.pid = provisioner_info["pid"]
