"""The enclave's workspace as the supervisor has it: a folder, and the process that serves it.

The supervisor makes the folder and hands streams on. It reads nothing of what they carry, and never
opens a file of the workspace: both would be a stranger's, to a process that is root.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC, LockdownError
from enclave_kernel.isolation.mounts import SAFE, mount
from enclave_kernel.isolation.owned_folder import can_show_as_owned
from enclave_kernel.supervisor.user_ids import UserIds
from enclave_protocol.errors import EnclaveError

__all__ = ["Workspace"]

_log = logging.getLogger(__name__)
_QUESTION, _ANSWER = b"?", b"!"
_FLUSH_TIMEOUT_S: Final = 10.0
"""A notebook's cell does not wait longer for its files: a large one goes on behind it."""
_END_TIMEOUT_S: Final = 5.0
_MAX_INODES: Final = 2_000_000
_DETACH: Final = 2


class Workspace:
    """The folder, made when it is first needed, and at most one process that serves it.

    Args:
        directory: An empty folder that only the supervisor's user enters.
        user_ids: Where the serving process's user comes from.
    """

    def __init__(self, directory: Path, user_ids: UserIds) -> None:
        self._directory = directory
        self._name = secrets.token_hex(16)
        self._walled = os.geteuid() == 0
        self._uid = user_ids.next() if self._walled else None
        self._mounted = False
        self._open_modes = False
        self._made = False
        self._agent: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._changing = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._late = False

    def folder(self) -> Path:
        """Return the folder with the workspace's files.

        Raises:
            OSError: It cannot be made.
        """
        path = self._directory / "files"
        if self._made:
            return path
        path.mkdir(mode=0o700, exist_ok=True)
        if self._uid is not None:
            self._mount(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(descriptor, self._uid, self._uid)
                self._open_modes = not can_show_as_owned(descriptor)
                # Without such mounts notebooks are strangers in there, and nobody else gets in.
                os.fchmod(descriptor, 0o777 if self._open_modes else 0o700)
            finally:
                os.close(descriptor)
            if self._open_modes:
                _log.info("no id-mapped mounts here: notebooks write to the workspace as others")
        self._made = True
        return path

    def _mount(self, path: Path) -> None:
        """Have a file system of its own for it: it takes half of the memory at most."""
        try:
            mount("tmpfs", path, "tmpfs", SAFE, f"mode=0700,size=50%,nr_inodes={_MAX_INODES}")
            self._mounted = True
        except LockdownError as error:
            _log.warning("the workspace has no file system of its own: %s", error)

    async def serve(self, early: bytes) -> socket.socket:
        """Return the other end of a stream that a new process serves; an older one ends first.

        Args:
            early: Bytes of the stream that were read already.

        Raises:
            OSError: The process cannot be started.
        """
        async with self._changing:
            await self._end_agent()
            ours, theirs = socket.socketpair()
            control, its_control = socket.socketpair()
            try:
                self._agent = self._start(theirs.fileno(), its_control.fileno())
                ours.setblocking(False)
                control.setblocking(False)
                self._control = control
                self._late = False
                await asyncio.get_running_loop().sock_sendall(ours, early)
            except BaseException:
                ours.close()
                control.close()
                raise
            finally:
                theirs.close()
                its_control.close()
            return ours

    def _start(self, stream: int, control: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-m", "enclave_kernel.workspace.agent"]
        command += ["--stream", str(stream), "--control", str(control)]
        command += ["--root", str(self.folder()), "--workspace", self._name]
        if self._uid is not None:
            command += ["--uid", str(self._uid)]
        if self._open_modes:
            command.append("--open-modes")
        # From the main thread: it dies with the thread that made it.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            pass_fds=(stream, control),
            start_new_session=True,
        )

    async def flush(self) -> None:
        """Return when what was written so far is on the parent's disk.

        Returns at once when nothing mirrors the workspace, and after 10 s in any case; what is
        late then is not waited for again.
        """
        async with self._asking:
            control, agent = self._control, self._agent
            if control is None or agent is None or agent.poll() is not None:
                return
            loop = asyncio.get_running_loop()
            try:
                if self._late:
                    control.recv(64)
                    self._late = False
                async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                    await loop.sock_sendall(control, _QUESTION)
                    await loop.sock_recv(control, 64)
            except TimeoutError:
                self._late = True
                _log.info("the parent has not got all files of a cell yet; the cell goes on")
            except OSError:
                # Still no answer, or the process ended.
                return

    async def _end_agent(self) -> None:
        agent, self._agent = self._agent, None
        control, self._control = self._control, None
        if control is not None:
            # A question that waits for its answer ends with it.
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            control.close()
        if agent is not None:
            agent.kill()
            try:
                await asyncio.to_thread(agent.wait, _END_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                # Two that write at a time would find each other's half-written files.
                self._agent = agent
                raise EnclaveError("the workspace is still in use; try again") from error

    async def close(self) -> None:
        """End the process and give the memory back."""
        with contextlib.suppress(EnclaveError):
            await self._end_agent()
        path = self._directory / "files"
        if self._mounted:
            LIBC.umount2(os.fsencode(path), _DETACH)
            with contextlib.suppress(OSError):
                path.rmdir()
