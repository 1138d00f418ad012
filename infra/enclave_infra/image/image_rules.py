"""What no image of ours may hold; checked on the finished root, before anything is written.

Source: issue 6, "The image holds only what it needs"; THREATS K-11, W-05.
"""

import re
from pathlib import Path
from typing import Final

from enclave_infra.image.cpio_archive import image_mode, image_paths
from enclave_infra.image.errors import ImageRuleError
from enclave_infra.image.python_packages import SITE

__all__ = ["check_root"]

_PROGRAM_FOLDERS: Final = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/libexec")
_FORBIDDEN: Final = re.compile(
    # Compilers, assemblers, linkers; ways to another user; package managers; other interpreters.
    r"((x86_64|aarch64)-linux-gnu-)?(gcc|g\+\+|c\+\+|cc|cpp|clang|tcc|as|ld|ld\.(bfd|gold)|gfortran)"
    r"(-[0-9.]+)?|make|go|rustc|su|sudo|login|passwd|newgrp|chsh|mount|umount|sshd|ssh|getty|agetty"
    r"|apt|apt-get|dpkg|perl|curl|wget|nc|gdb|strace"
)
_SOFTWARE_NSM: Final = "enclave_infra"
_LOCKED: Final = ("*", "!", "!*")
_NO_SHELLS: Final = ("/usr/sbin/nologin", "/bin/false", "/usr/bin/false")
_SPECIAL_BITS: Final = 0o6000


def check_root(root: Path, *, development: bool) -> None:
    """Check a finished root.

    Raises:
        ImageRuleError: Names the first thing that must not be there.
    """
    for folder in _PROGRAM_FOLDERS:
        directory = root / folder
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if _FORBIDDEN.fullmatch(path.name):
                raise ImageRuleError(
                    f"/{folder}/{path.name} is in the image: leave out its package"
                )
    for path in image_paths(root):
        if image_mode(path, root) & _SPECIAL_BITS:
            raise ImageRuleError(f"/{path.relative_to(root)} would be setuid or setgid")
    software_nsm = root / SITE / _SOFTWARE_NSM
    if not development and software_nsm.exists():
        raise ImageRuleError("a production image must not hold the software NSM")
    _check_users(root)


def _check_users(root: Path) -> None:
    for line in (root / "etc/shadow").read_text().splitlines():
        if line.split(":")[1] not in _LOCKED:
            raise ImageRuleError(f"the user {line.split(':')[0]} has a password")
    for line in (root / "etc/passwd").read_text().splitlines():
        name, field, *_, shell = line.split(":")
        if field != "x" or shell not in _NO_SHELLS:
            raise ImageRuleError(f"the user {name} can log in")
