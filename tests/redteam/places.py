"""Where an attack can run: in a vault, in a notebook, or in a plain process without walls.

    outcomes = place.run(attacks.ptrace, pid)

sends the attack's source there, runs it, and returns what it returned. The same attack in a plain
process is the control: what does not work even there proves nothing about a wall.
"""

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from jupyter_client.blocking.client import BlockingKernelClient

from enclave_kernel.isolation.seccomp import ARCHITECTURES
from tests.redteam import attempt
from tests.redteam.old_kernel import LINUX_4_14_LAST, install_old_kernel
from tests.support.enclave_home import run_code

__all__ = [
    "Died",
    "NotebookPlace",
    "Place",
    "PlainPlace",
    "Spawner",
    "VaultPlace",
    "achieved",
    "newer_than_4_14",
    "payload",
    "spawner",
]

_TIMEOUT_S = 120
_OURS = re.compile(r"^from tests\.redteam[^\n(]*(\([^)]*\)|[^\n(]*)$", re.MULTILINE)
_NUMBERS = ARCHITECTURES[os.uname().machine].numbers
_BECOME = """
import ctypes, errno, fcntl, json, mmap, os, resource, select, signal, socket, struct, subprocess
import tempfile, threading, time
if {private_mounts}:
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x00020000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
if {uid} is not None:
    os.setgroups([])
    os.setresgid(*[{uid}] * 3)
    os.setresuid(*[{uid}] * 3)
    # As after an exec: else nobody but root could trace it, and it would be a wall of its own.
    ctypes.CDLL(None).prctl(4, ctypes.c_ulong(1), 0, 0, 0)
"""


class Died(Exception):  # noqa: N818 (it is how an attack ended, not an error of the test)
    """The process was killed by a signal while the attack ran."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Place(Protocol):
    """Somewhere an attack can run."""

    old_kernel: bool

    def run(self, attack: Callable[..., Any], *arguments: Any) -> Any:
        """Run the attack there and return what it returns: plain data."""
        ...


def payload(attack: Callable[..., Any], *arguments: Any) -> str:
    """Return source that runs the attack and leaves its result in `result`."""
    module = inspect.getmodule(attack)
    assert module is not None
    sources = [inspect.getsource(attempt)]
    if module is not attempt:
        sources.append(_OURS.sub("", inspect.getsource(module)))
    call = f"NUMBERS.update({dict(_NUMBERS)!r})\nresult = {attack.__name__}(*{arguments!r})"
    return "\n".join([*sources, call])


def achieved(outcomes: dict[str, str]) -> set[str]:
    """Return the names of the attempts that succeeded."""
    return {name for name, outcome in outcomes.items() if outcome == "done"}


def newer_than_4_14(*names: str) -> set[str]:
    """Return those of the system calls that Linux 4.14 does not have."""
    return {name for name in names if _NUMBERS.get(name, 0) > LINUX_4_14_LAST}


class Spawner:
    """A thread that lives long and starts processes, as the supervisor's does.

    Args:
        old_kernel: What it starts finds every system call newer than Linux 4.14 missing.
    """

    def __init__(self, *, old_kernel: bool = False) -> None:
        self.old_kernel = old_kernel
        initializer = install_old_kernel if old_kernel else None
        self._thread = ThreadPoolExecutor(1, "redteam-spawner", initializer)

    def do(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do something in the thread."""
        return self._thread.submit(action, *arguments, **options).result(_TIMEOUT_S)

    def close(self) -> None:
        """End the thread; whatever it started that is to die with it dies."""
        self._thread.shutdown()


@contextmanager
def spawner(*, old_kernel: bool = False) -> Iterator[Spawner]:
    """Return a spawner, closed at the end."""
    made = Spawner(old_kernel=old_kernel)
    try:
        yield made
    finally:
        made.close()


class VaultPlace:
    """Code of a package, in a vault: adversary K.

    Args:
        package: The proxy of a package that exports `run(code)`.
        old_kernel: Whether its vault was started on an "old kernel".
    """

    def __init__(self, package: Any, *, old_kernel: bool = False) -> None:
        self.package = package
        self.old_kernel = old_kernel

    def run(self, attack: Callable[..., Any], *arguments: Any) -> Any:
        """Run the attack in the vault."""
        return self.package.run(payload(attack, *arguments))


class NotebookPlace:
    """Code that a notebook's user types: adversary U.

    Args:
        client: Of the notebook's kernel.
        old_kernel: Whether its enclave was started on an "old kernel".
    """

    def __init__(self, client: BlockingKernelClient, *, old_kernel: bool = False) -> None:
        self.client = client
        self.old_kernel = old_kernel

    def run(self, attack: Callable[..., Any], *arguments: Any) -> Any:
        """Run the attack in the kernel's process."""
        source = payload(attack, *arguments)
        scope = "_scope = {'__name__': 'attack'}"
        cell = f"{scope}\nexec({source!r}, _scope)\nprint('\\n' + repr(_scope['result']))"
        shown = run_code(self.client, cell, timeout_s=_TIMEOUT_S)
        return ast.literal_eval(shown.splitlines()[-1])


class PlainPlace:
    """A process without any wall: the control.

    Args:
        uid: User and group to become; None to stay root.
        spawner: Starts it; None for this thread.
        private_mounts: Give it a mount namespace, so that what it mounts is seen by nobody.
        options: Of `subprocess.run`.
    """

    def __init__(
        self,
        uid: int | None = None,
        *,
        spawner: Spawner | None = None,
        private_mounts: bool = False,
        **options: Any,
    ) -> None:
        self.uid = uid
        self.old_kernel = spawner is not None and spawner.old_kernel
        self._spawner = spawner
        self._private_mounts = private_mounts
        self._options = options

    def run(self, attack: Callable[..., Any], *arguments: Any) -> Any:
        """Run the attack in a new process."""
        become = _BECOME.format(uid=self.uid, private_mounts=self._private_mounts)
        code = f"{become}\n{payload(attack, *arguments)}\nprint('\\n' + repr(result))"
        do: Callable[..., Any] = self._spawner.do if self._spawner else _do
        options = {"cwd": "/", "start_new_session": True} | self._options
        ended = do(
            subprocess.run,
            [sys.executable, "-I", "-S", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            **options,
        )
        if ended.returncode < 0:
            raise Died(-ended.returncode)
        assert ended.returncode == 0, ended.stderr
        return ast.literal_eval(ended.stdout.splitlines()[-1])


def _do(action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return action(*arguments, **options)
