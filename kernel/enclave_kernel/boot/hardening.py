"""What is closed before anything else runs: the NSM, kernel modules, kernel interfaces.

The standard library only.
Source: THREATS section C, "Boot, before anything else", and B.1.
"""

import logging
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["HardeningError", "close_devices", "close_kernel", "forbid_modules"]

_log = logging.getLogger(__name__)
_SYSCTLS: Final = Path("/proc/sys")
_REQUIRED: Final = {
    "user/max_user_namespaces": "0",
    "kernel/kptr_restrict": "2",
    "kernel/dmesg_restrict": "1",
    "kernel/perf_event_paranoid": "3",
    "fs/suid_dumpable": "0",
    "kernel/core_pattern": "|/bin/false",
    "fs/protected_symlinks": "1",
    "fs/protected_hardlinks": "1",
}
_WHERE_PRESENT: Final = {
    # Names that depend on how the kernel was built.
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/yama/ptrace_scope": "3",
    "kernel/kexec_load_disabled": "1",
    "kernel/io_uring_disabled": "2",
    "kernel/sysrq": "0",
    "vm/unprivileged_userfaultfd": "0",
    "fs/protected_fifos": "2",
    "fs/protected_regular": "2",
    "dev/tty/ldisc_autoload": "0",
    "dev/tty/legacy_tiocsti": "0",
}
_KSM: Final = Path("/sys/kernel/mm/ksm/run")
_FOR_ROOT_ALONE: Final = ("nsm", "vsock", "kmsg", "mem", "port", "vhost-vsock", "fuse", "kvm")
_ALLOWED_NODES: Final = 0o600


class HardeningError(EnclaveError):
    """Something cannot be closed; the image does not go on."""


def close_devices(devices: Path = Path("/dev")) -> None:
    """Make the NSM and its like usable by root alone (AWS's driver makes /dev/nsm 0666).

    Raises:
        HardeningError: A node stays open.
    """
    for name in _FOR_ROOT_ALONE:
        node = devices / name
        try:
            node.chmod(_ALLOWED_NODES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HardeningError(f"{node} stays open to other users: {error.strerror}") from error


def close_kernel(sysctls: Path = _SYSCTLS, ksm: Path = _KSM) -> None:
    """Set the sysctls and switch same-page merging off.

    Raises:
        HardeningError: A required one is refused, or another value is read back.
    """
    for name, value in _REQUIRED.items():
        _set(sysctls / name, value)
    for name, value in _WHERE_PRESENT.items():
        if (sysctls / name).exists():
            _set(sysctls / name, value)
        else:
            _log.info("this kernel has no %s", name)
    if ksm.exists():
        _set(ksm, "0")


def forbid_modules(sysctls: Path = _SYSCTLS) -> None:
    """Let the kernel load no module any more; a kernel without modules needs none of this.

    Raises:
        HardeningError: It is refused.
    """
    path = sysctls / "kernel" / "modules_disabled"
    if path.exists():
        _set(path, "1")


def _set(path: Path, value: str) -> None:
    try:
        path.write_text(value)
        found = path.read_text().strip()
    except OSError as error:
        raise HardeningError(f"{path} cannot be set to {value}: {error.strerror}") from error
    # Some of them only ever go up: a stricter value than ours is right as well.
    if found != value and not (found.isdigit() and value.isdigit() and int(found) > int(value) > 0):
        raise HardeningError(f"{path} is {found!r}, expected {value!r}")
