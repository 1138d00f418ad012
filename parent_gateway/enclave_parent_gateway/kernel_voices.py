"""Keeps the keys of running kernels over the gateway's own restarts, one file per slot.

With them the next gateway can tell a kernel's clients that the enclave has ended. What they are
and why they may be in a file: docs/decisions/kernel_voices.md.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from enclave_parent_gateway.last_word import KernelVoice
from enclave_parent_gateway.whole_file import replace_file
from enclave_protocol.messages import KernelId

__all__ = ["KeptKernel", "KernelVoices"]

log = logging.getLogger(__name__)

_SUFFIX = ".voice"
_SLOT = re.compile(r"[0-9a-f][0-9a-f-]{0,15}[0-9a-f]")
_MAX_FILE_BYTES = 4096
"""A key has up to 256 bytes, a CurveZMQ pair 80."""
_MAX_FILES = 1024


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kernel_id: KernelId
    voice: KernelVoice


@dataclass(frozen=True)
class KeptKernel:
    """A kernel that an earlier gateway launched: its slot, its id, its keys."""

    slot: str
    kernel_id: str
    voice: KernelVoice


class KernelVoices:
    """The files, in the folder of the channels' sockets; only this user reads them.

    Args:
        folder: `EnclavePaths.channels`, which `enclave down` empties.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, slot: str, kernel_id: str, voice: KernelVoice) -> None:
        """Write a slot's file, whole or not at all. A full disk costs a later word, not a launch.

        Args:
            slot: The slot's name.
            kernel_id: Of the kernel that is launched in it.
            voice: Its keys.
        """
        kept = msgspec.msgpack.encode(_Kept(kernel_id, voice))
        try:
            replace_file(self._path(slot), kept, durable=False)
        except OSError as error:
            log.warning("the keys of kernel %s are not kept: %s", kernel_id, error.strerror)

    def forget(self, slot: str) -> None:
        """Remove a slot's file, if there is one."""
        self._path(slot).unlink(missing_ok=True)

    def load(self) -> list[KeptKernel]:
        """Return what is kept; a file that holds nothing of ours is skipped and removed."""
        found = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}"))[:_MAX_FILES]:
            kept = _read(path)
            if kept is None or not _SLOT.fullmatch(path.stem):
                log.warning("%s holds no kernel's keys", path.name)
                path.unlink(missing_ok=True)
                continue
            found.append(KeptKernel(path.stem, kept.kernel_id, kept.voice))
        return found

    def _path(self, slot: str) -> Path:
        return self._folder / f"{slot}{_SUFFIX}"


def _read(path: Path) -> _Kept | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        return None if len(data) > _MAX_FILE_BYTES else msgspec.msgpack.decode(data, type=_Kept)
    except (OSError, msgspec.MsgspecError, ValueError):
        # Never the text of it: the file may hold a key.
        return None
