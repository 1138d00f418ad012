"""Processes that are to be kernels: forked, limited and waiting to be told which kernel to be.

One is kept waiting, so that a notebook's start spends no time on a fork and a control group (moving
a process into one waits for every processor).
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.control_groups import ControlGroup, ControlGroups
from enclave_kernel.session_messages import KernelPlace
from enclave_kernel.supervisor.zygote_process import ZygoteError, ZygoteProcess
from enclave_protocol.messages import CHANNELS

__all__ = ["KernelProcess", "KernelProcesses"]

_log = logging.getLogger(__name__)
_LISTEN_BACKLOG = 64
_NAME_BYTES: Final = 8
_PAUSE_BEFORE_NEXT_S: Final = 0.25
"""The kernel that was just started has the processors first."""


@dataclass
class KernelProcess:
    """One process and what belongs to it.

    Attributes:
        name: What the zygote calls it.
        prefix: Path before "-1" to "-5" of its five listeners.
        place: Its walls; None: there are none.
        zygote: Its parent.
        session: Our end of the socket to it, until it has a session.
        pid: 0 before it is forked.
        cgroup: Its limits, where the system offers any.
        ended: It is gone, or has to go.
    """

    name: str
    prefix: str
    place: KernelPlace | None
    zygote: ZygoteProcess
    session: socket.socket
    pid: int = 0
    cgroup: ControlGroup | None = None
    ended: bool = field(default=False)

    def name_listeners(self, prefix: str) -> None:
        """Have the listeners' paths begin with this one from here on.

        Raises:
            OSError: They cannot be renamed.
        """
        for number in range(1, len(CHANNELS) + 1):
            Path(f"{self.prefix}-{number}").rename(f"{prefix}-{number}")
        self.prefix = prefix

    def signal(self, number: int) -> None:
        """Signal its process group; if it ended already, nothing happens."""
        self.zygote.signal(self.name, number)

    def remove(self) -> None:
        """Forget it and remove what it left; the process ends when it finds its socket closed."""
        self.ended = True
        self.session.close()
        for number in range(1, len(CHANNELS) + 1):
            with contextlib.suppress(OSError):
                Path(f"{self.prefix}-{number}").unlink()
        if self.cgroup is not None:
            self.cgroup.remove()


class KernelProcesses:
    """Makes them, one of them ahead of time.

    Args:
        directory: Where the listeners' sockets are, only the supervisor's user enters it.
        cgroups: Memory limits, or None where the system offers none.
        make_place: Decides about a process's walls; None: there can be none.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cgroups: ControlGroups | None,
        make_place: Callable[[], KernelPlace | None],
    ) -> None:
        self._directory = directory
        self._cgroups = cgroups
        self._make_place = make_place
        self._waiting: asyncio.Task[KernelProcess] | None = None
        self._next: asyncio.TimerHandle | None = None
        self._untaken: dict[str, KernelProcess] = {}

    async def take(self, kernel_id: str, zygote: ZygoteProcess) -> KernelProcess:
        """Return a process that waits for `StartKernel`; it is the caller's.

        Args:
            kernel_id: What its listeners are named by.
            zygote: Whose child it has to be.

        Raises:
            ZygoteError: There is no zygote to fork from.
            OSError: A listener or a control group cannot be made.
        """
        process = await self._waiting_or_new(zygote)
        self._untaken.pop(process.name, None)
        try:
            process.name_listeners(str(self._directory / kernel_id))
        except BaseException:
            process.remove()
            raise
        return process

    async def _waiting_or_new(self, zygote: ZygoteProcess) -> KernelProcess:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            with contextlib.suppress(ZygoteError, OSError):
                process = await waiting
                if process.zygote is zygote and not process.ended:
                    return process
                self._untaken.pop(process.name, None)
                process.remove()
        return await self._make(zygote)

    def prepare(self, zygote: ZygoteProcess, *, at_once: bool = False) -> None:
        """Have one waiting, soon."""
        if self._next is not None:
            self._next.cancel()
        loop = asyncio.get_running_loop()
        pause = 0.0 if at_once else _PAUSE_BEFORE_NEXT_S
        self._next = loop.call_later(pause, self._start_making, zygote)

    def _start_making(self, zygote: ZygoteProcess) -> None:
        self._next = None
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._make(zygote))
            self._waiting.add_done_callback(_note_failure)

    def lost(self, name: str) -> bool:
        """Say whether the process of that name, which ended, was nobody's yet."""
        process = self._untaken.get(name)
        if process is None:
            return False
        process.remove()
        return True

    def close(self) -> None:
        """Remove the waiting one, and make no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        for process in self._untaken.values():
            process.remove()
        self._untaken.clear()

    async def _make(self, zygote: ZygoteProcess) -> KernelProcess:
        name = secrets.token_hex(_NAME_BYTES)
        ours, theirs = socket.socketpair()
        process = KernelProcess(name, str(self._directory / name), self._make_place(), zygote, ours)
        self._untaken[name] = process
        listeners: list[socket.socket] = []
        try:
            for number in range(1, len(CHANNELS) + 1):
                listeners.append(_listen(Path(f"{process.prefix}-{number}")))
            descriptors = [*(sock.fileno() for sock in listeners), theirs.fileno()]
            process.pid = await zygote.fork(name, descriptors)
            if self._cgroups is not None:
                # Before the process is told what to be: it allocates nothing until then.
                process.cgroup = self._cgroups.create(name)
                await asyncio.to_thread(process.cgroup.add, process.pid)
        except BaseException:
            self._untaken.pop(name, None)
            process.remove()
            raise
        finally:
            theirs.close()
            for sock in listeners:
                sock.close()
        return process


def _note_failure(task: "asyncio.Task[KernelProcess]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        # Whoever takes it makes another, and hears of what is wrong then.
        _log.warning("no kernel process could be prepared: %s", error)


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        sock.listen(_LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
