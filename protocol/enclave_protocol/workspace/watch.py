"""Watches a tree with inotify(7): which paths to look at again, as soon as something happens.

A hint, never the truth: whoever is told looks for himself. Folders are watched by descriptor, so
that a link put in a folder's place leads nowhere (docs/decisions/inotify_for_the_workspace.md).
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import TEMPORARY_FOLDER, wrong_name
from enclave_protocol.workspace.scan import scan
from enclave_protocol.workspace.tree import Tree, TreeError

__all__ = ["TreeWatch"]

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_ONLY_FOLDERS, _EXCLUDE_UNLINKED, _IS_FOLDER = 0x01000000, 0x04000000, 0x40000000
_MASK: Final = (
    (_MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE)
    | _ONLY_FOLDERS
    | _EXCLUDE_UNLINKED
)
_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 256 * 1024
_libc: Final = ctypes.CDLL(None, use_errno=True)


class TreeWatch:
    """Tells which paths of a tree changed.

    Args:
        tree: The tree; all of its folders are watched from here on.
        chrooted: It is this process's root, and there is no /proc that could be believed.

    Attributes:
        descriptor: Readable when there is something to tell.
        closed: Files that were closed after writing, since they were last taken from here.
        blind: The system does not watch so many folders: somebody has to look again and again.

    Raises:
        OSError: There is no inotify to be had.
    """

    def __init__(self, tree: Tree, *, chrooted: bool = False) -> None:
        self._tree = tree
        self._chrooted = chrooted
        self.blind = False
        self.closed: set[str] = set()
        self.descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify_init1: {os.strerror(code)}")
        self._folders: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._add_all("")

    def close(self) -> None:
        """Stop watching."""
        os.close(self.descriptor)

    def _add_all(self, rel: str) -> None:
        """Watch a folder and those below; each before it is listed, so that nothing is missed."""
        if not self._add(rel):
            return
        with suppress(TreeError):
            for path, entry in scan(self._tree, (rel,)):
                if isinstance(entry, Entry) and entry.kind == "folder" and path != rel:
                    self._add(path)

    def _add(self, rel: str) -> bool:
        try:
            with self._tree.folder(rel) as folder:
                number = self._watch(folder)
        except TreeError:
            return False
        if number < 0:
            self.blind = True
            return False
        # The same folder under a new name has the number it had.
        self._numbers.pop(self._folders.get(number, ""), None)
        self._folders[number] = rel
        self._numbers[rel] = number
        return True

    def _watch(self, folder: int) -> int:
        """Return the number of a watch on an open folder, or a negative one."""
        if self._chrooted:
            os.fchdir(folder)
            path = b"."
        else:
            path = f"/proc/self/fd/{folder}".encode()
        number: int = _libc.inotify_add_watch(self.descriptor, path, ctypes.c_uint32(_MASK))
        if self._chrooted:
            os.chdir("/")
        return number

    def _forget(self, rel: str) -> None:
        """Stop watching a folder that went away under this name, and those below it."""
        below = f"{rel}/"
        gone = [path for path in self._numbers if path == rel or path.startswith(below)]
        for path in gone:
            number = self._numbers.pop(path)
            self._folders.pop(number, None)
            _libc.inotify_rm_watch(self.descriptor, number)

    def read(self) -> set[str] | None:
        """Return the paths that something happened to since the last call; None: all of them.

        A folder's path means everything below it.
        """
        changed: set[str] = set()
        for number, mask, name in self._events():
            if mask & _OVERFLOW:
                self._folders.clear()
                self._numbers.clear()
                self._add_all("")
                return None
            folder = self._folders.get(number)
            if mask & _IGNORED:
                if folder is not None:
                    del self._folders[number]
                    self._numbers.pop(folder, None)
                continue
            if folder is None or not name or wrong_name(name) is not None:
                continue
            if not folder and name == TEMPORARY_FOLDER:
                continue
            rel = f"{folder}/{name}" if folder else name
            if mask & _IS_FOLDER:
                if mask & _MOVED_FROM:
                    self._forget(rel)
                elif mask & _DELETE:
                    self._folders.pop(self._numbers.pop(rel, 0), None)
                if mask & (_MOVED_TO | _CREATE):
                    self._add_all(rel)
            elif mask & _CLOSE_WRITE:
                self.closed.add(rel)
            changed.add(rel)
        return changed

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while True:
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(data):
                number, mask, _cookie, size = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                name = data[offset : offset + size].rstrip(b"\0")
                offset += size
                yield number, mask, os.fsdecode(name)
