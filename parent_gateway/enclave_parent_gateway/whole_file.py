"""Replacing a small file as a whole: the state, the choices and the pins that this side keeps.

What is appended to, and what is too large to be written at once, has its own way (`sync.journal`).
"""

import os
import secrets
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Put `data` in the place of what the file held, if it was there.

    Whoever reads meanwhile, is killed meanwhile or, if it is durable, loses power finds the old
    file or the new one, and nothing between. Whether two may write at once is for the callers to
    say: the last one wins.

    Args:
        path: The file; its folder is there.
        data: All of the new content.
        mode: Who may read it, whatever the umask.
        durable: Wait until the disk has it. What a reboot ends anyway does not need that, and a
            process that was started and is not yet written down must not wait for a disk.

    Raises:
        OSError: It cannot be written; the file is as it was, and nothing lies beside it.
    """
    # A name of its own: another writer's half must never be what this one puts in place.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
