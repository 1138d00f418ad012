"""A warm interpreter that forks kernel processes. It never sees a key or a package.

It imports what every kernel needs once, so that a kernel starts in a fraction of an interpreter's
start-up and shares its pages. It has one thread, no ZeroMQ context and no IPython application
before a fork (FACTS, ipykernel 7.4), and no NumPy: a forked BLAS would be stuck with the threads
it was made with.

Started by the supervisor as `python -m enclave_kernel.zygote FD`.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass

from enclave_kernel import process_control, session_messages
from enclave_kernel.isolation.kernel_calls import system_call
from enclave_kernel.isolation.namespaces import CLONE_NEWPID
from enclave_kernel.session_messages import (
    MAX_SESSION_BYTES,
    ForkKernel,
    KernelExited,
    KernelForked,
    SignalChild,
)
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import CHANNELS

__all__ = ["main"]

_DESCRIPTORS_PER_FORK = len(CHANNELS) + 1
_STATUS_BYTES = 4
_MAX_PENDING_DESCRIPTORS = 16 * _DESCRIPTORS_PER_FORK


# What ipykernel and IPython import while a kernel starts, beyond what their modules import. None
# starts a thread; a name that a version lacks costs the kernels a little time, nothing else.
_WARM_MODULES = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "ipykernel.debugger",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "sqlite3",
    "tornado.platform.asyncio",
    "tornado.queues",
    "enclave_kernel.session.kernel_app",
    "enclave_kernel.session.magics",
)


def _warm_up() -> None:
    """Import what every kernel uses and freeze it out of the collector's sight."""
    for name in _WARM_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class _Child:
    """A forked kernel; with `status` it is the init of a pid namespace, which tells it there."""

    name: str
    status: int | None


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._decoder = FrameDecoder(MAX_SESSION_BYTES)
        self._descriptors: list[int] = []
        self._kernels: dict[int, _Child] = {}
        self._walled = os.geteuid() == 0
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_write)
        self._wakeup_write = wakeup_write
        # A handler, not SIG_DFL: only then does the wake-up descriptor hear of it.
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)

    def run(self) -> None:
        """Serve until the supervisor closes its end."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wakeup_read, select.POLLIN)
        while True:
            for descriptor, _event in poller.poll():
                if descriptor == self._wakeup_read:
                    os.read(self._wakeup_read, 4096)
                    self._reap()
                elif not self._read_control():
                    self._end_kernels()
                    return

    def _end_kernels(self) -> None:
        """Kill every kernel with what it started; the death signal would reach only itself."""
        for pid in self._kernels:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _read_control(self) -> bool:
        data, descriptors, flags, _address = socket.recv_fds(
            self._control, 65536, _MAX_PENDING_DESCRIPTORS
        )
        self._descriptors += descriptors
        if not data:
            return False
        if flags & socket.MSG_CTRUNC:
            raise RuntimeError("descriptors from the supervisor were cut off")
        for payload in self._decoder.feed(data):
            message = session_messages.decode_to_zygote(payload)
            if isinstance(message, SignalChild):
                self._signal(message)
            else:
                self._fork(message)
        return True

    def _signal(self, message: SignalChild) -> None:
        for pid, child in self._kernels.items():
            if child.name != message.name:
                continue
            if child.status is not None:
                # Init passes it on to the kernel's group; SIGKILL ends all of the namespace.
                os.kill(pid, message.signum)
                continue
            try:
                os.killpg(pid, message.signum)
            except ProcessLookupError:
                # Between fork and setsid the group does not exist yet.
                os.kill(pid, message.signum)

    def _fork(self, message: ForkKernel) -> None:
        mine = self._descriptors[:_DESCRIPTORS_PER_FORK]
        del self._descriptors[:_DESCRIPTORS_PER_FORK]
        status, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if self._walled else (None, None)
        parent = os.getpid()
        # Until the child has handlers of its own, a signal waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if self._walled:
            system_call("unshare", CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            if status is not None:
                os.close(status)
            self._become_kernel(mine, told, parent)
        if self._walled:
            system_call("setns", self._own_pids, CLONE_NEWPID)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._kernels[pid] = _Child(message.name, status)
        for descriptor in (*mine, *(() if told is None else (told,))):
            os.close(descriptor)
        self._send(KernelForked(name=message.name, pid=pid))

    def _become_kernel(self, descriptors: list[int], told: int | None, parent: int) -> None:
        """The forked child: leave everything of the zygote behind, never return."""
        status = 1
        try:
            if told is None:
                process_control.die_with_parent(parent)
            else:
                process_control.die_with_pipe(told)
            os.setsid()
            signal.set_wakeup_fd(-1)
            self._control.close()
            held = [child.status for child in self._kernels.values() if child.status is not None]
            inherited = (self._wakeup_read, self._wakeup_write, self._own_pids)
            for descriptor in (*inherited, *self._descriptors, *held):
                os.close(descriptor)
            from enclave_kernel.session.kernel_app import run_kernel

            *listeners, session = descriptors
            status = run_kernel(dict(zip(CHANNELS, listeners, strict=True)), session, told)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._kernels:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            # Not reaped yet, so the pid and its group cannot be anybody else's: what the kernel
            # left in its group goes with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(found.si_pid, signal.SIGKILL)
            _pid, status = os.waitpid(found.si_pid, 0)
            child = self._kernels.pop(found.si_pid, None)
            if child is not None:
                code = _told(child, status)
                self._send(KernelExited(name=child.name, returncode=code))

    def _send(self, message: KernelForked | KernelExited) -> None:
        self._control.sendall(encode_frame(session_messages.encode(message)))


def _told(child: _Child, status: int) -> int:
    """Return the exit code that a kernel's init told of, or else its own."""
    own = os.waitstatus_to_exitcode(status)
    if child.status is None:
        return own
    try:
        told = os.read(child.status, _STATUS_BYTES)
        # Of no process that ended, if somebody else than init wrote it.
        return os.waitstatus_to_exitcode(int.from_bytes(told, "big")) if told else own
    except (BlockingIOError, ValueError, OverflowError):
        return own
    finally:
        os.close(child.status)


def main() -> None:
    """Run the zygote on the inherited socket whose descriptor is the first argument."""
    # Ctrl-C in a terminal is for the supervisor to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process_control.die_with_parent(os.getppid())
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _warm_up()
    _Zygote(control).run()


if __name__ == "__main__":
    main()
