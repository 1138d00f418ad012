"""THREATS E.10: the kernel's surface, as a package in a vault sees it."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.redteam import attacks, kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.places import Died, Place, achieved, newer_than_4_14

pytestmark = needs_root

X86_64 = os.uname().machine == "x86_64"
x86_only = pytest.mark.skipif(not X86_64, reason="an ABI of x86_64")


def works(control: dict[str, str], names: set[str], arena: Arena) -> None:
    """Check the control: it can do this, but for what an old kernel does not have."""
    missing = newer_than_4_14(*names) if arena.old_kernel else set()
    assert achieved(control) >= names - missing, control
    assert {control[name] for name in missing} <= {"ENOSYS"}


def test_k01_capabilities_in_a_user_namespace(arena: Arena, hostile: Place) -> None:
    control = arena.plain().run(kernel_attacks.user_namespaces)
    works(control, {"unshare", "clone", "clone3"}, arena)
    outcome = hostile.run(kernel_attacks.user_namespaces)
    assert outcome == {"unshare": "EPERM", "clone": "EPERM", "clone3": "ENOSYS"}


def test_k02_file_system_escapes(arena: Arena, hostile: Place) -> None:
    control = arena.plain(private_mounts=True).run(kernel_attacks.file_system_escapes)
    names = {"mount", "umount2", "chroot", "pivot_root", "setns", "fsopen", "open_tree"}
    works(control, names | {"open_by_handle_at"}, arena)
    outcome = hostile.run(kernel_attacks.file_system_escapes)
    assert achieved(outcome) == set() and set(outcome.values()) <= {"EPERM", "ENOSYS"}


def test_k03_complex_interfaces(arena: Arena, hostile: Place) -> None:
    control = arena.plain().run(kernel_attacks.complex_interfaces)
    names = {"bpf", "io_uring_setup", "perf_event_open", "add_key", "keyctl", "personality"}
    works(control, names | {"vmsplice"}, arena)
    outcome = hostile.run(kernel_attacks.complex_interfaces)
    assert achieved(outcome) == set() and set(outcome.values()) <= {"EPERM", "ENOSYS"}


def test_k04_administration(arena: Arena, hostile: Place) -> None:
    control = arena.plain(private_mounts=True).run(kernel_attacks.administration)
    # Far enough to be told that the arguments are nonsense. A container may lack some of it.
    assert len([name for name, outcome in control.items() if outcome != "EPERM"]) > 4, control
    outcome = hostile.run(kernel_attacks.administration)
    assert set(outcome.values()) == {"EPERM"}


@x86_only
def test_k05_the_i386_entry(arena: Arena, hostile: Place) -> None:
    try:
        opened = arena.plain(1_980_001).run(kernel_attacks.i386_socket, 1)
    except Died:
        pytest.skip("this kernel has no i386 entry")
    assert opened > 2
    assert hostile.run(kernel_attacks.i386_fate) == -signal.SIGSYS


@x86_only
def test_k06_the_x32_numbers(arena: Arena, hostile: Place) -> None:
    # Without a filter the kernel answers, with a socket or that it has no x32.
    assert arena.plain(1_980_001).run(kernel_attacks.x32_fate) == 0
    assert hostile.run(kernel_attacks.x32_fate) == -signal.SIGSYS


def test_k07_the_upper_half_of_an_int(arena: Arena, hostile: Place) -> None:
    control = arena.plain(1_980_001).run(kernel_attacks.wide_arguments, [1, 2])
    assert achieved(control) >= {"1 1", "1 1 high", "2 1 high", "2 2 high"}
    outcome = hostile.run(kernel_attacks.wide_arguments, [1, 2])
    if hostile is arena.vault:
        assert set(outcome.values()) == {"EPERM"}
    # Where these two families are allowed: the rare ones stay closed by either spelling.
    outcome = hostile.run(kernel_attacks.wide_arguments, [17, 38, 40])
    assert set(outcome.values()) == {"EPERM"}
    control = arena.plain().run(kernel_attacks.wide_arguments, [17, 40])
    assert achieved(control) >= {"17 3", "17 3 high"}


def test_k08_exotic_socket_families(arena: Arena, hostile: Place) -> None:
    families = list(range(1, 46))
    control = arena.plain().run(kernel_attacks.wide_arguments, families)
    assert achieved(control) >= {"1 1", "2 1", "16 3", "17 3"}
    outcome = hostile.run(kernel_attacks.wide_arguments, families)
    allowed = set() if hostile is arena.vault else {"1", "2", "10", "16"}
    assert {name.split()[0] for name in achieved(outcome)} <= allowed
    others = {name for name in outcome if name.split()[0] not in allowed}
    assert {outcome[name] for name in others} == {"EPERM"}


def test_k09_kernel_memory_and_log(arena: Arena, hostile: Place) -> None:
    paths = ["/dev/mem", "/dev/kmsg", "/dev/kvm", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms"]
    paths += ["/proc/timer_list", "/sys/kernel", "/sys/fs/cgroup", "/sys/kernel/debug"]
    control = arena.plain().run(kernel_attacks.kernel_files, paths)
    assert achieved(control) >= {"/proc/kallsyms", "/proc/timer_list", "/sys/kernel"}
    outcome = hostile.run(kernel_attacks.kernel_files, paths)
    assert achieved(outcome) == set()


def test_k10_devices_of_its_own(arena: Arena, hostile: Place) -> None:
    control = arena.plain(private_mounts=True).run(kernel_attacks.make_devices)
    assert achieved(control) >= {"mknod mem", "mknod nsm", "mknod null", "/dev/ptmx"}
    outcome = hostile.run(kernel_attacks.make_devices)
    assert {outcome[name] for name in outcome if name.startswith("mknod")} == {"EPERM"}
    # A notebook has terminals of its own.
    own = set() if hostile is arena.vault else {"/dev/ptmx"}
    nodes = {name for name in outcome if name.startswith("/")} - own
    assert {outcome[name] for name in nodes} == {"ENOENT"}


def test_k11_set_user_id_programs(arena: Arena, hostile: Place) -> None:
    program = shutil.which("id")
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="redteam-suid-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "id"
        shutil.copy(program, path)
        path.chmod(0o4755)
        control = arena.plain(1_980_001).run(kernel_attacks.set_user_id_program, str(path))
        assert control == "0"
        outcome = hostile.run(kernel_attacks.set_user_id_program, str(path))
        assert outcome in ("PermissionError", "FileNotFoundError")
    lines = Path(f"/proc/{arena.payload_pid}/status").read_text().splitlines()
    assert "NoNewPrivs:\t1" in lines and "CapBnd:\t0000000000000000" in lines


def test_k13_keystrokes(arena: Arena, hostile: Place) -> None:
    # Whatever descriptor 0 is: without a wall it is the driver that answers.
    control = arena.plain().run(kernel_attacks.keystrokes)
    assert "EPERM" not in control.values()
    outcome = hostile.run(kernel_attacks.keystrokes)
    assert {outcome[name] for name in ("TIOCSTI", "high TIOCSTI", "TIOCLINUX")} == {"EPERM"}
    assert achieved(outcome) == set()


def test_k14_helpers_the_kernel_starts(arena: Arena, hostile: Place) -> None:
    paths = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"]
    paths += ["/sys/kernel/uevent_helper", "/proc/sys/fs/binfmt_misc/register"]
    control = arena.plain().run(attacks.control_plane, paths)
    assert achieved(control) >= {"/proc/sys/kernel/core_pattern"}
    outcome = hostile.run(attacks.control_plane, paths)
    assert achieved(outcome) == set()


def test_k16_the_kernels_layout(arena: Arena, hostile: Place) -> None:
    paths = ["/proc/kallsyms", "/proc/modules", "/sys/kernel/notes", "/sys/module", "/boot"]
    control = arena.plain().run(kernel_attacks.kernel_files, paths)
    assert achieved(control) >= {"/proc/kallsyms", "/sys/kernel/notes"}
    assert achieved(hostile.run(kernel_attacks.kernel_files, paths)) == set()
    assert hostile.run(kernel_attacks.administration)["syslog"] == "EPERM"


def test_the_old_kernel_is_one(arena: Arena) -> None:
    """The second run is what it says: without this, both would be the same."""
    control = arena.plain().run(kernel_attacks.user_namespaces)
    assert control["clone3"] == ("ENOSYS" if arena.old_kernel else "done")
