"""THREATS E.11: signals, sessions, sockets, shared memory, and what a process inherits."""

import ctypes
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.isolation.seccomp import ARCHITECTURES
from enclave_kernel.session.package_failures import CallLimitError
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.places import NotebookPlace, Place, achieved, newer_than_4_14
from tests.support.enclave_home import EnclaveHome
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink, payload_pid
from tests.support.vault_packages import load_sealed

pytestmark = needs_root

_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = ARCHITECTURES[os.uname().machine].numbers


def test_s01_signals(arena: Arena, hostile: Place) -> None:
    newer = newer_than_4_14("pidfd_send_signal") if arena.old_kernel else set()
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.send_signals, victim.pid)
        assert achieved(control) == set(control) - newer
        assert victim.signals() >= 1
    with arena.victim() as victim:
        outcome = hostile.run(attacks.send_signals, victim.pid)
        assert achieved(outcome) == set()
        assert set(outcome.values()) <= {"ESRCH", "ENOSYS"}
        assert victim.signals() == 0
    # Without namespaces, another user: not even to know that it is there.
    stranger = arena.plain(1_980_002).run(attacks.send_signals, arena.vault_pid)
    assert set(stranger.values()) <= {"EPERM", "ENOSYS"}


def test_s02_sigcont_within_a_session(arena: Arena, hostile: Place) -> None:
    with arena.victim(own_session=False) as victim:
        control = arena.plain(1_980_002, start_new_session=False)
        assert achieved(control.run(attacks.continue_it, victim.pid)) == {"SIGCONT"}
        assert hostile.run(attacks.continue_it, victim.pid) == {"SIGCONT": "ESRCH"}
    stranger = arena.plain(1_980_002, start_new_session=False)
    for pid in (arena.vault_pid, arena.payload_pid):
        assert stranger.run(attacks.continue_it, pid) == {"SIGCONT": "EPERM"}
        assert os.getsid(pid) != os.getsid(0)


def test_s03_signals_sent_by_the_kernel(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.signals_by_the_kernel, victim.pid)
        assert "F_SETOWN" in achieved(control)
        assert victim.signals() >= 1
    with arena.victim() as victim:
        outcome = hostile.run(attacks.signals_by_the_kernel, victim.pid)
        assert "SIGEV_THREAD_ID" not in achieved(outcome)
        assert victim.signals() == 0


def test_s04_kill_all(arena: Arena, mortal: Place) -> None:
    with arena.victim() as victim:
        arena.plain(victim.uid).run(attacks.kill_all)
        assert victim.process.wait(30) == -signal.SIGKILL
    with arena.victim() as victim:
        mortal.run(attacks.kill_all)
        assert victim.process.poll() is None
        assert victim.signals() == 0
    assert arena.vault.run(attacks.children) >= 1


def test_s05_abstract_sockets(arena: Arena, hostile: Place) -> None:
    name = f"redteam-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(f"\0{name}")
        supervisor.listen()
        control = arena.plain(1_980_002).run(attacks.abstract_sockets, name)
        assert achieved(control) == {"connect", "bind"}
        outcome = hostile.run(attacks.abstract_sockets, name)
        assert outcome["connect"] in ("EPERM", "ECONNREFUSED")
        if hostile is arena.vault:
            assert achieved(outcome) == set()
        # What a notebook binds is a name in its own network namespace, and nobody's outside.
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(f"\0{name}-squat")


@contextmanager
def shared_things() -> Iterator[tuple[int, str]]:
    """Make shared memory, a semaphore and queues that everybody may use; yield key and name."""
    key, name = secrets.randbits(30), f"redteam-{secrets.token_hex(4)}"
    create = 0o1000 | 0o666
    ids = _LIBC.shmget(key, 4096, create), _LIBC.semget(key, 1, create), _LIBC.msgget(key, create)
    path = Path("/dev/shm") / name  # noqa: S108 (the real one)
    path.write_text("x")
    path.chmod(0o644)
    try:
        yield key, name
    finally:
        path.unlink()
        _LIBC.shmctl(ids[0], 0, None)
        _LIBC.semctl(ids[1], 0, 0)
        _LIBC.msgctl(ids[2], 0, None)


def test_s06_shared_memory_semaphores_queues(arena: Arena, hostile: Place) -> None:
    with shared_things() as (key, name):
        control = arena.plain(1_980_002).run(attacks.shared_memory, key, name)
        assert achieved(control) >= {"shmget", "semget", "msgget", "/dev/shm"}  # noqa: S108
        outcome = hostile.run(attacks.shared_memory, key, name)
        assert achieved(outcome) == set()
        assert set(outcome.values()) <= {"EPERM", "ENOENT", "ENOSYS"}


def test_s07_sockets_in_the_file_system(
    arena: Arena, user: NotebookPlace, enclave: EnclaveHome
) -> None:
    paths = sorted(str(path) for path in enclave.runtime.rglob("*") if path.is_socket())
    assert paths
    control = arena.plain().run(attacks.connect_to, paths)
    assert {name for name in achieved(control) if name.startswith("connect")}
    for place in (arena.vault, user, arena.plain(1_980_002)):
        outcome = place.run(attacks.connect_to, paths)
        assert achieved(outcome) == set()
        assert set(outcome.values()) <= {"EPERM", "EACCES", "ENOENT"}


def _key_in_a_session_keyring(description: str) -> None:
    syscall, number = _LIBC.syscall, ctypes.c_long(_NUMBERS["keyctl"])
    assert syscall(number, 1, None) > 0  # a keyring of this thread's own
    words = b"user", description.encode(), b"secret"
    assert syscall(ctypes.c_long(_NUMBERS["add_key"]), *words, 6, -3) > 0


def test_s08_keyrings(arena: Arena, user: NotebookPlace) -> None:
    description = f"redteam-{secrets.token_hex(4)}"
    arena.spawner.do(_key_in_a_session_keyring, description)
    control = arena.plain(1_980_002).run(attacks.keyring, description)
    assert achieved(control) >= {"search"}
    assert set(user.run(attacks.keyring, description).values()) == {"EPERM"}
    with arena.another_vault() as place:
        assert set(place.run(attacks.keyring, description).values()) == {"EPERM"}


def test_s09_inherited_descriptors(arena: Arena) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(directory, True)
    try:
        control = arena.plain(close_fds=False).run(attacks.inherited_descriptors)
        assert {reading, directory} <= set(control)
        with arena.another_vault() as place:
            found = place.run(attacks.inherited_descriptors)
            assert found[:3] == [0, 1, 2] and len(found) == 4
    finally:
        for descriptor in (reading, writing, directory):
            os.close(descriptor)


def test_s10_inherited_state(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDTEAM", "1")
    mask = os.umask(0)

    def spoil() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    arena.spawner.do(spoil)
    try:
        control = arena.plain(restore_signals=False).run(attacks.inherited_state)
        assert "REDTEAM" in control["environ"] and control["umask"] == 0
        assert control["blocked"] == [signal.SIGUSR2] and control["ignored"] == [signal.SIGHUP]
        with arena.another_vault() as place:
            state = place.run(attacks.inherited_state)
    finally:
        arena.spawner.do(restore)
        signal.signal(signal.SIGHUP, before)
        os.umask(mask)
    assert set(state["environ"]) <= {
        *("PATH", "LANG", "ORT_DISABLE_TELEMETRY", "HOME", "TMPDIR", "LC_CTYPE")
    }
    assert state["umask"] == 0o77 and state["blocked"] == [] and not state["timer"]
    assert state["cwd"].startswith("/vault-") and state["ignored"] == []


_COUNTED = """
[package]
name = "counted"
version = "1"
module = "counted"
[exports.functions]
look = "look(seconds)"
[policy]
max_calls = 4
"""
_COUNTED_SOURCE = """
import os, tempfile, time
def look(seconds):
    os.close(tempfile.mkstemp(prefix="began-")[0])
    time.sleep(seconds)
    return "looked"
"""


def test_s11_interrupts_at_chosen_moments(tmp_path: Path) -> None:
    """Interrupting a call does not give it back: it was counted before it began."""
    with VaultLink() as link:
        sealed = seal_package({"counted.py": _COUNTED_SOURCE}, _COUNTED)
        counted: Any = load_sealed(link, sealed, tmp_path).proxy
        (vault,) = link.vaults.values()
        began = Path(f"/proc/{payload_pid(vault.pid)}/root/tmp")
        assert counted.look(0) == "looked"

        def interrupt_once(count: int) -> None:
            while len(list(began.glob("began-*"))) < count:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        for count in (2, 3):
            thread = threading.Thread(target=interrupt_once, args=(count,))
            with pytest.raises(KeyboardInterrupt):
                thread.start()
                counted.look(60)
            thread.join()
        assert counted.look(0) == "looked"
        with pytest.raises(CallLimitError, match="used up"):
            counted.look(0)


def test_s12_datagrams_of_a_socketpair(arena: Arena, hostile: Place) -> None:
    name = f"redteam-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        outside.bind(f"\0{name}")
        outside.setblocking(False)
        control = arena.plain(1_980_002).run(attacks.datagrams, name)
        assert achieved(control) == {"sendto", "sendmsg"}
        assert {outside.recv(100), outside.recv(100)} == {b"sendto", b"sendmsg"}
        outcome = hostile.run(attacks.datagrams, name)
        first = "EPERM" if hostile is arena.vault else "ECONNREFUSED"
        assert outcome == {"sendto": first, "sendmsg": "ECONNREFUSED"}
        with pytest.raises(BlockingIOError):
            outside.recv(100)


def test_s13_forged_credentials(arena: Arena, hostile: Place) -> None:
    assert achieved(arena.plain().run(attacks.forged_credentials)) == {"pid 1"}
    assert hostile.run(attacks.forged_credentials) == {"pid 1": "EPERM"}
    assert payload_pid(arena.vault_pid) == arena.payload_pid
