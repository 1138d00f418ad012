"""The temporary folder of a build: one that mmdebstrap's and apt's own users can pass through."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_infra.image.errors import ToolError

__all__ = ["work_folder"]

_PASSABLE = 0o711


@contextmanager
def work_folder() -> Iterator[Path]:
    """Return a new folder below TMPDIR (/tmp), removed at the end.

    Raises:
        ToolError: We are not root, and a folder above it is closed to other users. Without root
            mmdebstrap is in a user namespace, where it is another user.
    """
    with tempfile.TemporaryDirectory(prefix="enclave-image-") as name:
        work = Path(name)
        work.chmod(_PASSABLE)
        if os.geteuid() != 0:
            for parent in work.resolve().parents:
                if not parent.stat().st_mode & 0o001:
                    raise ToolError(
                        f"without root, mmdebstrap has to pass through {parent}, which is closed "
                        "to others; type: TMPDIR=/var/tmp enclave-image ..."
                    )
        yield work
