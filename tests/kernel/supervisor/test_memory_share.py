"""What one kernel or vault may use by default: three quarters of what the root leaves."""

import os
from pathlib import Path

import pytest

from enclave_kernel.supervisor.memory_share import memory_share

_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
_DISK = "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
_TMPFS = "24 23 0:21 / / rw - tmpfs none rw\n"


def _mounts(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [_DISK, _TMPFS + _DISK, ""])
def test_a_root_on_a_disk_takes_no_memory(tmp_path: Path, text: str) -> None:
    assert memory_share(mounts=_mounts(tmp_path, text)) == _MEMORY // 4 * 3


@pytest.mark.parametrize(
    "text", [_TMPFS, _DISK + _TMPFS, "1 1 0:2 / / rw - rootfs rootfs rw\n" + _TMPFS]
)
def test_a_root_in_memory_is_not_shared_out(tmp_path: Path, text: str) -> None:
    root = Path("/dev/shm")  # noqa: S108 - a file system in memory, as an image's root is
    status = os.statvfs(root)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    share = memory_share(root, _mounts(tmp_path, text))
    # Others write there while this runs.
    assert abs(share - (_MEMORY - used) // 4 * 3) < 64 << 20
    assert 0 < share <= _MEMORY // 4 * 3


def test_a_root_in_memory_that_is_full_leaves_less(tmp_path: Path) -> None:
    root = Path("/dev/shm")  # noqa: S108
    mounts = _mounts(tmp_path, _TMPFS)
    before = memory_share(root, mounts)
    file = root / f"memory-share-{os.getpid()}"
    try:
        file.write_bytes(bytes(128 << 20))
        assert before - memory_share(root, mounts) > 64 << 20
    finally:
        file.unlink()
