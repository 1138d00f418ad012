"""The user's kernel process: ipykernel on ready-made listeners, told what to be by the supervisor.

Runs in a process forked from the zygote. No connection file is written, and the sockets are bound
to listeners that the supervisor made, so a client can connect before this process is up.
"""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq
from ipykernel.control import ControlThread
from ipykernel.heartbeat import Heartbeat
from ipykernel.kernelapp import IPKernelApp
from traitlets import default
from traitlets.config import Config

from enclave_kernel import process_control, session_messages
from enclave_kernel.end_of_main import end_main
from enclave_kernel.isolation.notebook_network import PROXY_ENVIRON
from enclave_kernel.isolation.notebook_root import HOME, WORKSPACE
from enclave_kernel.isolation.notebook_walls import WallsSpec, check_notebook_walls
from enclave_kernel.session.iopub_hold import HoldingIOPubThread
from enclave_kernel.session.notebook_kernel import EnclaveKernel
from enclave_kernel.session.own_init import become_walled_kernel
from enclave_kernel.session.own_packages import make_own_packages
from enclave_kernel.session.supervisor_link import SupervisorLink
from enclave_kernel.session.workspace_flush import flush_after_cells
from enclave_kernel.session_messages import (
    KernelFailed,
    KernelPlace,
    KernelReady,
    KernelWalled,
    StartKernel,
)
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import CHANNELS, MessageError

__all__ = ["EnclaveKernelApp", "run_kernel"]

_EXTENSION = "enclave_kernel.session.magics"
_CONTROL_END_S = 5.0
_SHELL_INSIDE = "inproc://enclave-shell"
_OWN_ENVIRON = {
    "HOME": str(HOME),
    # Its user has no entry in the password file.
    "USER": HOME.name,
    "LOGNAME": HOME.name,
    "TMPDIR": "/tmp",  # noqa: S108 (a mount of its own)
    **PROXY_ENVIRON,
}


def _bind_to_listener(sock: "zmq.Socket[bytes]", descriptor: int, endpoint: str) -> None:
    """Have libzmq accept on a listening descriptor instead of making its own."""
    sock.setsockopt(zmq.USE_FD, descriptor)
    sock.bind(endpoint)


class _Heartbeat(Heartbeat):
    """ipykernel's heartbeat on a ready-made listener."""

    descriptor: int

    def _try_bind_socket(self) -> None:
        _bind_to_listener(self.socket, self.descriptor, f"ipc://{self.ip}-{self.port}")


class EnclaveKernelApp(IPKernelApp):
    """ipykernel's application with its five sockets bound to given listeners."""

    name = "enclave-kernel"
    # From the class, not traitlets: set before the application is initialised.
    listeners: Mapping[str, int]

    @default("kernel_class")
    def _own_kernel_class(self) -> type[EnclaveKernel]:
        return EnclaveKernel

    def _bind_socket(self, s: "zmq.Socket[bytes]", port: int) -> int:
        channel = CHANNELS[port - 1]
        if channel == "iopub":
            # The default high-water mark drops output without a word when a client is slow
            # (FACTS, Jupyter). The queue is this process's own memory.
            s.sndhwm = 0
        _bind_to_listener(s, self.listeners[channel], f"ipc://{self.ip}-{port}")
        if channel == "shell":
            # The debugger connects to where the socket was bound last; the listener's path is not
            # to be seen from behind a notebook's walls.
            s.bind(_SHELL_INSIDE)
        return port

    def init_iopub(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Make the iopub socket and its thread, as ipykernel does, with our own thread."""
        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
        self._apply_curve_server_options(self.iopub_socket)
        self.iopub_port = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()  # type: ignore[no-untyped-call]
        self.iopub_thread = HoldingIOPubThread(self.iopub_socket, pipe=True, session=self.session)
        self.iopub_thread.start()  # type: ignore[no-untyped-call]
        self.iopub_socket = self.iopub_thread.background_socket

    def init_heartbeat(self) -> None:
        """Start the heartbeat thread, in a context of its own as ipykernel does."""
        self.heartbeat = _Heartbeat(  # type: ignore[no-untyped-call]
            zmq.Context(),
            ("ipc", self.ip, self.hb_port),
            curve_publickey=self.curve_publickey,
            curve_secretkey=self.curve_secretkey,
        )
        self.heartbeat.descriptor = self.listeners["hb"]
        self.heartbeat.start()

    def init_connection_file(self) -> None:
        """No file: the connection is known to the supervisor and the parent's client only."""

    def write_connection_file(self, **kwargs: Any) -> None:
        """No file, as above."""

    def log_connection_info(self) -> None:
        """Remember the ports for connect_request; there is no file to tell of."""
        self._ports = {
            channel: getattr(self, f"{channel}_port")
            for channel in ("shell", "iopub", "stdin", "hb", "control")
        }


def _wait_for_start(link: SupervisorLink) -> StartKernel:
    message = link.receive()
    if not isinstance(message, StartKernel):
        raise MessageError("the supervisor's first message to a kernel is not StartKernel")
    return message


def _spec(start: StartKernel, place: KernelPlace) -> WallsSpec:
    return WallsSpec(
        uid=place.uid,
        gid=place.gid,
        folder=start.cwd if place.use_folder else None,
        workspace=place.workspace,
        hidden=place.hidden,
        code=place.code,
        memory_limit=place.memory_limit,
    )


def _configure(start: StartKernel) -> Config:
    config = Config()
    config.Session.key = start.key
    config.Session.signature_scheme = start.signature_scheme
    config.InteractiveShellApp.extra_extensions = [_EXTENSION]
    return config


def _curve_pair(start: StartKernel) -> tuple[bytes | None, bytes | None]:
    return (None, None) if start.curve is None else (start.curve.public_key, start.curve.secret_key)


def run_kernel(
    listeners: Mapping[str, int], session_descriptor: int, status_descriptor: int | None
) -> int:
    """Be the kernel that the supervisor's first message describes, until it is shut down.

    Args:
        listeners: Listening descriptors by channel.
        session_descriptor: The socket to the supervisor.
        status_descriptor: In a pid namespace of its own: where its init tells how it ended.

    Returns:
        The process's exit status.
    """
    link = SupervisorLink(socket.socket(fileno=session_descriptor))
    start = _wait_for_start(link)
    walls: tuple[str, ...] = ()
    folder = start.cwd
    if start.place is not None and status_descriptor is not None:
        keep_away = (*listeners.values(), session_descriptor)
        try:
            standing = become_walled_kernel(_spec(start, start.place), status_descriptor, keep_away)
            walls = check_notebook_walls(standing)
        except (EnclaveError, OSError) as error:
            link.send(session_messages.encode(KernelFailed(str(error)[:4096])))
            return 1
        # Now: an option of the user's may run code before the sockets are bound.
        link.send(session_messages.encode(KernelWalled(walls)))
        folder = standing.root.folder
    process_control.reset_signals()
    os.environ.clear()
    os.environ.update(start.environ)
    if walls:
        os.environ.update(_OWN_ENVIRON)
        make_own_packages(HOME)
    workspace = None if start.workspace is None else WORKSPACE if walls else Path(start.workspace)
    _enter_directory(folder if workspace is None else start.cwd, workspace)
    # What an interactive `python` has: modules beside the notebook can be imported.
    sys.path.insert(0, "")
    public, secret = _curve_pair(start)
    app = EnclaveKernelApp.instance(
        config=_configure(start),
        transport="ipc",
        ip=start.endpoint_prefix,
        shell_port=1,
        iopub_port=2,
        stdin_port=3,
        control_port=4,
        hb_port=5,
        curve_publickey=public,
        curve_secretkey=secret,
    )
    app.listeners = listeners
    app.initialize(list(start.arguments))  # type: ignore[no-untyped-call]
    if app.session.key != start.key or app.session.signature_scheme != start.signature_scheme:
        # An option among the arguments could switch signatures off (THREATS J-01).
        raise MessageError("the kernel's options change its session key, which they may not")
    if (app.curve_publickey, app.curve_secretkey) != (public, secret):
        raise MessageError("the kernel's options change its encryption, which they may not")
    app.kernel.supervisor_link = link
    if workspace is not None:
        flush_after_cells(app.shell, link)
    link.send(session_messages.encode(KernelReady()))
    app.start()  # type: ignore[no-untyped-call]
    _end_control(app.control_thread)
    # os._exit in the zygote's child skips it.
    end_main()
    return 0


def _end_control(thread: ControlThread | None) -> None:
    """Wait until the request to shut down is answered, in its own thread.

    That thread flushes output through the thread of iopub, which `atexit` stops. A flush that comes
    in between is never done, and waited for 10 s (ipykernel 7.4, `OutStream.flush_timeout`).
    """
    if thread is not None:
        # It is not told yet where it was not a request that ended this process.
        thread.stop()
        thread.join(_CONTROL_END_S)


def _enter_directory(folder: str, workspace: Path | None) -> None:
    """Go to the notebook's directory; where the enclave has none by that name, stay above it.

    And say what an absolute path means in `%run_encrypted`: the workspace, or where it started.

    Args:
        folder: The directory, in the workspace if there is one.
        workspace: Where that is, if the notebook is in it.
    """
    candidates = [folder]
    if workspace is not None:
        # It may not have come yet: `enclave sync` is under way.
        path = workspace / folder
        above = [str(place) for place in path.parents if place.is_relative_to(workspace)]
        candidates = [str(path), *above]
    for candidate in (*candidates, os.environ.get("HOME", "/"), "/"):
        try:
            os.chdir(candidate)
        except OSError:
            continue
        break
    os.environ["ENCLAVE_WORKSPACE"] = str(workspace or Path.cwd())
