import os
from pathlib import Path

import pytest

from enclave_kernel.boot.hardening import (
    HardeningError,
    close_devices,
    close_kernel,
    forbid_modules,
)

_REQUIRED = {
    # THREATS section C, "Boot, before anything else".
    "user/max_user_namespaces": "0",
    "kernel/kptr_restrict": "2",
    "kernel/dmesg_restrict": "1",
    "kernel/perf_event_paranoid": "3",
    "fs/suid_dumpable": "0",
    "kernel/core_pattern": "|/bin/false",
    "fs/protected_symlinks": "1",
    "fs/protected_hardlinks": "1",
}
_WHERE_PRESENT = {"kernel/unprivileged_bpf_disabled": "1", "kernel/yama/ptrace_scope": "3"}


@pytest.fixture
def sysctls(tmp_path: Path) -> Path:
    """Files as a kernel has them before: what is written is read back."""
    for name in (*_REQUIRED, *_WHERE_PRESENT, "kernel/modules_disabled"):
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("9999\n" if name.startswith("user") else "x\n")
    return tmp_path / "sys"


def test_sysctls(sysctls: Path, tmp_path: Path) -> None:
    ksm = tmp_path / "ksm"
    ksm.write_text("1\n")
    close_kernel(sysctls, ksm)
    for name, value in (_REQUIRED | _WHERE_PRESENT).items():
        assert (sysctls / name).read_text() == value
    assert ksm.read_text() == "0"


@pytest.mark.parametrize("name", _REQUIRED)
def test_a_required_sysctl_that_is_missing_ends_the_boot(sysctls: Path, name: str) -> None:
    (sysctls / name).unlink()
    (sysctls / name).mkdir()
    with pytest.raises(HardeningError, match="cannot be set"):
        close_kernel(sysctls, sysctls / "none")


@pytest.mark.parametrize("name", _WHERE_PRESENT)
def test_what_a_kernel_need_not_have(sysctls: Path, name: str) -> None:
    (sysctls / name).unlink()
    close_kernel(sysctls, sysctls / "none")
    assert not (sysctls / name).exists()


def test_a_value_that_does_not_stick_is_noticed(sysctls: Path) -> None:
    target = sysctls / "kernel" / "kptr_restrict"
    target.unlink()
    target.symlink_to("/dev/null")  # takes what is written, and keeps nothing
    with pytest.raises(HardeningError, match="kptr_restrict is '', expected '2'"):
        close_kernel(sysctls, sysctls / "none")


def test_modules_are_forbidden(sysctls: Path) -> None:
    forbid_modules(sysctls)
    assert (sysctls / "kernel/modules_disabled").read_text() == "1"
    (sysctls / "kernel/modules_disabled").unlink()
    forbid_modules(sysctls)  # a kernel without modules


def test_nsm_is_for_root_alone(tmp_path: Path) -> None:
    for name in ("nsm", "vsock", "null"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
    close_devices(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"nsm": 0o600, "vsock": 0o600, "null": 0o666}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may change every mode")
def test_a_node_that_stays_open(tmp_path: Path) -> None:
    (tmp_path / "nsm").symlink_to("/dev/null")
    with pytest.raises(HardeningError, match="stays open"):
        close_devices(tmp_path)
