"""Runs commands as a user without rights who has a range of user ids, as Debian's adduser gives."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["NOBODY", "nobodys_folder", "without_root"]

NOBODY = 65534
_FIRST_ID, _IDS = 100_000, 65_536
# In a mount namespace of its own, so that this machine's files stay as they are.
_SCRIPT = 'mount --bind "$1" /etc && shift && exec setpriv --reuid={id} --regid={id} "$@"'


@contextmanager
def nobodys_folder() -> Iterator[Path]:
    """Return a new folder of that user, at a place which it can reach."""
    folder = Path(tempfile.mkdtemp(prefix="nobody-", dir="/tmp"))
    folder.chmod(0o711)
    os.chown(folder, NOBODY, NOBODY)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def without_root(folder: Path, *, with_ids: bool = True) -> list[str]:
    """Return the words to write before a command; the user is `nobody`. Needs root.

    Args:
        folder: New files go here: a copy of /etc.
        with_ids: The user has a range of ids.
    """
    etc = folder / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"nobody:{_FIRST_ID}:{_IDS}\n" if with_ids else "")
    words = ["unshare", "--mount", "sh", "-c", _SCRIPT.format(id=NOBODY), "sh", str(etc)]
    return [*words, "--clear-groups", "--inh-caps=-all", "env", f"HOME={folder}"]
