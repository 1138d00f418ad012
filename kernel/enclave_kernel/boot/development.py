"""Development images only: a software NSM where the machine has none. NOT CONFIDENTIAL.

Such an image reads `/development`, which whoever starts it may add as one more ramdisk:

    nsm-root/           the software NSM's root key and certificate; made anew if it is missing
    pcr0                96 hexadecimal digits that it shall attest
    kms-endpoint-url    where KMS is

A production image has neither the program nor any use for that folder.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["DEVELOPMENT_FOLDER", "DevelopmentError", "Stand", "stand_in"]

DEVELOPMENT_FOLDER: Final = Path("/development")
_SOCKET: Final = Path("/run/software-nsm/nsm.sock")
_START_TIMEOUT_S: Final = 60.0
"""Under an emulator without hardware support it takes seconds."""
_POLL_S: Final = 0.02
_MAX_TEXT_BYTES: Final = 2048
_PCR: Final = re.compile("[0-9a-f]{96}")


class DevelopmentError(EnclaveError):
    """The software NSM does not come up, or a file of the folder is malformed."""


@dataclass(frozen=True)
class Stand:
    """What stands in: the NSM's endpoint, and where KMS is (None: AWS)."""

    nsm: str
    kms_endpoint_url: str | None


def stand_in(command: tuple[str, ...], folder: Path = DEVELOPMENT_FOLDER) -> Stand:
    """Start the software NSM, and return once it answers.

    Args:
        command: Of the image's settings; the options for socket, root and PCR0 are added.
        folder: See the module.

    Raises:
        DevelopmentError: It does not come up.
        OSError: Files cannot be made.
    """
    _SOCKET.parent.mkdir(mode=0o700, exist_ok=True)
    root = _SOCKET.parent / "root"
    given = folder / "nsm-root"
    root.mkdir(mode=0o700)
    if given.is_dir():
        for path in given.iterdir():
            shutil.copyfile(path, root / path.name)
            (root / path.name).chmod(0o600)
    pcr0 = _read(folder / "pcr0")
    if pcr0 is not None and not _PCR.fullmatch(pcr0):
        raise DevelopmentError(f"{folder / 'pcr0'} is not 96 hexadecimal digits")
    code = str(Path(__file__).parents[1])
    measured = ("--measure", code) if pcr0 is None else ("--pcr0", pcr0)
    process = subprocess.Popen(
        [*command, "--socket", str(_SOCKET), "--root-dir", str(root), *measured],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _SOCKET.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DevelopmentError("the software NSM of this development image does not start")
        time.sleep(_POLL_S)
    return Stand(f"unix:{_SOCKET}", _read(folder / "kms-endpoint-url"))


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT_BYTES).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DevelopmentError(f"{path} is not ASCII text") from error
