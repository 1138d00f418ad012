"""The rows of THREATS E.9 to E.14 again, with the person at the notebook as the attacker.

The same attacks as from a vault, run by a cell of a real notebook with the marked package loaded.
That each of them works without walls is shown beside the vault's rows, in the same run; where that
control would be another one here, it is here.
"""

import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.redteam import attacks, kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import achieved
from tests.redteam.test_11_ipc import shared_things
from tests.support.enclave_home import EnclaveHome, kernel

pytestmark = needs_root

_STATE = ["maps", "environ", "auxv", "io", "cmdline", "status", "stat", "oom_score_adj"]


def _outcomes(notebook: HostileNotebook, attack: Any, *arguments: Any) -> dict[str, str]:
    found: dict[str, str] = notebook.run(attack, *arguments)
    return found


def test_p01_to_p04_the_vault_in_procfs(notebook: HostileNotebook, modern: Arena) -> None:
    with modern.victim() as victim:
        for pid, address, secret in (
            (victim.pid, victim.address, victim.secret),
            (notebook.vault_pid, 4096, "00"),
        ):
            read = _outcomes(notebook, attacks.memory_file, pid, address, secret)
            assert set(read.values()) == {"ENOENT"}
            assert set(_outcomes(notebook, attacks.proc_files, pid, _STATE).values()) == {"ENOENT"}
            assert set(_outcomes(notebook, attacks.proc_links, pid).values()) == {"ENOENT"}


@pytest.mark.parametrize("attack", [attacks.ptrace, attacks.ptrace_attach])
def test_p05_ptrace(notebook: HostileNotebook, attack: Any) -> None:
    assert set(_outcomes(notebook, attack, notebook.vault_pid).values()) == {"EPERM"}


def test_p06_to_p09_memory_limits_and_events(notebook: HostileNotebook) -> None:
    pid = notebook.vault_pid
    assert set(_outcomes(notebook, attacks.cross_copy, pid, 4096, "00").values()) == {"EPERM"}
    assert achieved(_outcomes(notebook, attacks.theft, pid)) == set()
    assert set(_outcomes(notebook, attacks.tamper, pid).values()) == {"ESRCH"}
    assert _outcomes(notebook, attacks.profile, pid) == {"perf_event_open": "EPERM"}


def test_p12_p13_sockets_and_the_kernels_settings(notebook: HostileNotebook, modern: Arena) -> None:
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind("\0redteam-u12")
        outside.listen()
        assert "@redteam-u12" in modern.plain().run(attacks.sockets_seen)
        assert not [name for name in notebook.run(attacks.sockets_seen) if "redteam" in name]
    paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/swappiness",
    ]
    hostile = _outcomes(notebook, attacks.control_plane, paths)
    # What is masked is /dev/null: opening that hurts nobody.
    assert achieved(hostile) <= {"/proc/sysrq-trigger"}


def test_k01_to_k04_the_kernels_surface(notebook: HostileNotebook) -> None:
    assert _outcomes(notebook, kernel_attacks.user_namespaces) == {
        "unshare": "EPERM",
        "clone": "EPERM",
        "clone3": "ENOSYS",
    }
    for attack in (
        kernel_attacks.file_system_escapes,
        kernel_attacks.complex_interfaces,
        kernel_attacks.administration,
    ):
        hostile = _outcomes(notebook, attack)
        assert achieved(hostile) == set(), hostile
        assert set(hostile.values()) <= {"EPERM", "ENOSYS"}, hostile


def test_k07_k08_v01_sockets_of_other_families(notebook: HostileNotebook) -> None:
    hostile = _outcomes(notebook, kernel_attacks.wide_arguments, list(range(1, 46)))
    # Unix, IPv4, IPv6 and NETLINK_ROUTE are a person's to use; raw ones take a capability.
    families = {name.split()[0] for name in achieved(hostile)}
    assert families == {"1", "2", "10", "16"}
    assert {hostile[name] for name in hostile if name.split()[0] == "40"} == {"EPERM"}


def test_k09_k10_k13_k16_devices_and_what_shows_the_kernel(notebook: HostileNotebook) -> None:
    paths = ["/dev/mem", "/dev/kmsg", "/dev/kvm", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms"]
    paths += ["/proc/timer_list", "/sys/kernel", "/sys/fs/cgroup", "/sys/kernel/debug"]
    assert achieved(_outcomes(notebook, kernel_attacks.kernel_files, paths)) == set()
    made = _outcomes(notebook, kernel_attacks.make_devices)
    assert {made[name] for name in made if name.startswith("mknod")} == {"EPERM"}
    pushed = _outcomes(notebook, kernel_attacks.keystrokes)
    # A terminal of one's own may be taken: that is how any shell in a notebook starts.
    assert {pushed[name] for name in pushed if name != "TIOCSCTTY"} == {"EPERM"}


def test_k11_set_user_id_programs(notebook: HostileNotebook, modern: Arena) -> None:
    program = shutil.which("id")
    assert program is not None
    # Where both see it: the notebook's own folder, whose files it takes for its own.
    with tempfile.TemporaryDirectory(prefix="redteam-suid-", dir=notebook.folder) as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "id"
        shutil.copy(program, path)
        path.chmod(0o4755)
        arguments = kernel_attacks.set_user_id_program, str(path)
        assert modern.plain(1_980_001).run(*arguments) == "0"
        assert notebook.run(*arguments) == str(notebook.value("os.getuid()"))
    assert notebook.value("os.getuid()") != 0


def test_a01_a02_the_security_module_is_not_there(notebook: HostileNotebook) -> None:
    assert notebook.value("[os.path.exists(p) for p in ('/dev/nsm', '/dev/vsock')]") == [False] * 2
    nodes = notebook.value("sorted(os.listdir('/dev'))")
    assert set(nodes) <= {
        *("fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"),
        *("tty", "urandom", "zero"),
    }


def test_a12_no_credentials_in_reach(notebook: HostileNotebook) -> None:
    names = notebook.value("sorted(os.environ)")
    assert not [name for name in names if "AWS" in name or "KEY" in name or "TOKEN" in name]
    assert notebook.value("[os.path.exists(os.path.expanduser('~/.aws')), os.listdir('/run')]") == [
        False,
        [],
    ]


def test_s01_s02_signals(notebook: HostileNotebook, modern: Arena) -> None:
    with modern.victim() as victim:
        for pid in (victim.pid, notebook.vault_pid):
            hostile = _outcomes(notebook, attacks.send_signals, pid)
            assert set(hostile.values()) <= {"ESRCH", "ENOSYS"}
            assert _outcomes(notebook, attacks.continue_it, pid) == {"SIGCONT": "ESRCH"}
        assert victim.signals() == 0


def test_s05_s06_s08_names_and_keys(notebook: HostileNotebook) -> None:
    name = f"redteam-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(f"\0{name}")
        supervisor.listen()
        hostile = _outcomes(notebook, attacks.abstract_sockets, name)
        assert "connect" not in achieved(hostile)
    with shared_things() as (key, shared):
        assert achieved(_outcomes(notebook, attacks.shared_memory, key, shared)) == set()
    assert achieved(_outcomes(notebook, attacks.keyring, name)) == set()


def test_s07_the_enclaves_sockets(notebook: HostileNotebook, enclave: EnclaveHome) -> None:
    paths = sorted(str(path) for path in enclave.runtime.rglob("*") if path.is_socket())
    assert paths
    hostile = _outcomes(notebook, attacks.connect_to, paths)
    assert achieved(hostile) == set()


def test_s09_inherited_descriptors(notebook: HostileNotebook) -> None:
    links = notebook.value(
        "sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
        " if os.path.lexists(f'/proc/self/fd/{fd}'))"
    )
    known = ("socket:", "pipe:", "anon_inode:", "/dev/", "/memfd:", "/proc/")
    home = "/home/notebook/"
    assert not [link for link in links if not link.startswith((*known, home))]


def test_s13_forged_credentials(notebook: HostileNotebook) -> None:
    assert _outcomes(notebook, attacks.forged_credentials) == {"pid 1": "EPERM"}


def test_x01_x03_exhaustion_is_its_own(enclave: EnclaveHome, notebook: HostileNotebook) -> None:
    with kernel(cwd=str(notebook.folder)) as (_, client):
        greedy = HostileNotebook(
            enclave, client, notebook.marked, notebook.folder, notebook.started
        )
        assert greedy.run(kernel_attacks.thread_many, 6000) < 4096
        assert greedy.run(kernel_attacks.open_many, 70_000) < 65_536
    assert notebook.value("1 + 1") == 2


def test_f09_nothing_that_a_vault_imports_can_be_changed(notebook: HostileNotebook) -> None:
    code = "[p for p in sys.path + [sys.prefix, '/usr/lib', '/etc'] if p and os.access(p, os.W_OK)]"
    notebook.cell("import sys")
    (own,) = notebook.value(code)
    # The notebook's own packages, in a mount of its own: there is no such place for a vault.
    assert own.startswith("/home/notebook/")
    assert not Path(f"/proc/{notebook.vault_pid}/root/home/notebook").exists()


def test_n01_n08_the_machines_network_is_not_there(
    notebook: HostileNotebook, modern: Arena
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        notebook.cell("import socket")
        outcome = notebook.cell(f"socket.create_connection(('127.0.0.1', {port}), 5)")
        assert outcome.error == "ConnectionRefusedError"
    assert notebook.value("[name for _, name in socket.if_nameindex()]") == ["lo"]
    for address in ("169.254.169.254", "10.0.0.1", "1.1.1.1", "::ffff:169.254.169.254"):
        attempt = f"socket.create_connection(({address!r}, 80), 5)"
        assert notebook.cell(attempt).error == "OSError", address
        inside = f"m.run({f'import socket; {attempt}'!r})"
        assert notebook.cell(inside).error == "EncryptedPackageError"


def test_canaries_are_nowhere_the_user_can_look(notebook: HostileNotebook) -> None:
    """After all of the above: the process's memory, with the vault as the positive control."""
    marked = notebook.marked
    assert marked.found_in_process(notebook.vault_pid) == marked.in_vault
    assert marked.found_in_process(notebook.pid) == set()
