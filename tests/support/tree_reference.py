"""What two trees should become: a second, simple telling of docs/spec/workspace.md, "Decisions".

Works on whole trees in memory, from the top; the mirror works on paths. Nothing of it is shared.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Leaf", "Node", "differences", "merge", "read_tree"]


@dataclass(frozen=True)
class Leaf:
    """A file."""

    content: bytes
    mode: int
    mtime_ns: int


@dataclass(frozen=True)
class _Mode:
    """A folder's own, kept in it under the name ""."""

    mode: int


Node = Leaf | dict[str, Any] | None


def read_tree(root: Path) -> Node:
    """Return what is in a folder; the root's own mode does not count."""
    found = _read(root)
    assert isinstance(found, dict)
    del found[""]
    return found


def _read(path: Path) -> Node:
    status = path.lstat()
    if stat.S_ISREG(status.st_mode):
        return Leaf(path.read_bytes(), stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    assert stat.S_ISDIR(status.st_mode)
    below = {item.name: _read(item) for item in path.iterdir() if item.name != ".enclave-sync"}
    return {"": _Mode(stat.S_IMODE(status.st_mode)), **below}


def differences(found: Node, expected: Node) -> dict[str, tuple[str, str]]:
    """Return what is different, by path, in a few words."""
    mine, theirs = _flat(found, ""), _flat(expected, "")
    return {
        path: (mine.get(path, "nothing"), theirs.get(path, "nothing"))
        for path in mine.keys() | theirs.keys()
        if mine.get(path) != theirs.get(path)
    }


def _flat(node: Node, path: str) -> dict[str, str]:
    if isinstance(node, Leaf):
        text = f"{len(node.content)} bytes {node.content[-8:]!r} {node.mode:o} {node.mtime_ns}"
        return {path: text}
    result: dict[str, str] = {}
    for name, below in (node or {}).items():
        if name:
            result |= _flat(below, f"{path}/{name}")
        else:
            result[path] = f"folder {below.mode:o}"
    return result


def merge(local: Node, remote: Node, base: Node, date: str) -> Node:
    """Return what both sides are to have.

    Args:
        local: What the parent has.
        remote: What the enclave has.
        base: What both had.
        date: For the names of conflicts.
    """
    return _Merge(date).folder(local, remote, base)


class _Merge:
    def __init__(self, date: str) -> None:
        self._date = date

    def folder(self, local: Node, remote: Node, base: Node) -> dict[str, Any]:
        """Merge what is in two folders; one that is not there counts as empty."""
        mine, theirs, both = (n if isinstance(n, dict) else {} for n in (local, remote, base))
        result: dict[str, Any] = {}
        taken = {*mine, *theirs}
        conflicts: list[tuple[str, Node]] = []
        for name in sorted(taken | set(both)):
            if not name:
                continue
            node, other = self.node(mine.get(name), theirs.get(name), both.get(name))
            if node is not None:
                result[name] = node
            if other is not None:
                conflicts.append((name, other))
        for name, other in conflicts:
            result[self._free(name, taken)] = other
        return result

    def _free(self, name: str, taken: set[str]) -> str:
        path = Path(name)
        for number in range(1, 100):
            extra = "" if number == 1 else f" {number}"
            wanted = f"{path.stem} (conflict {self._date} enclave{extra}){path.suffix}"
            if wanted not in taken:
                taken.add(wanted)
                return wanted
        raise AssertionError("no name is free")

    def node(self, mine: Node, theirs: Node, base: Node) -> tuple[Node, Node]:
        """Return what a name means in the end, and what of the enclave's gets another name."""
        if mine == theirs or theirs == base:
            return mine, None
        if mine == base:
            return theirs, None
        if isinstance(mine, dict) and isinstance(theirs, dict):
            return self._both_folders(mine, theirs, base), None
        if mine is None or theirs is None:
            return self._deleted(mine, theirs, base), None
        if isinstance(mine, Leaf) and isinstance(theirs, Leaf):
            return mine, None if mine.content == theirs.content else theirs
        return self._two_kinds(mine, theirs, base)

    def _both_folders(self, mine: Node, theirs: Node, base: Node) -> Node:
        before = _mode_of(base)
        mode = _mode_of(theirs) if _mode_of(mine) == before else _mode_of(mine)
        return {"": mode, **self.folder(mine, theirs, base)}

    def _deleted(self, mine: Node, theirs: Node, base: Node) -> Node:
        """One side deleted it, the other changed something of it: what changed stays."""
        left = theirs if mine is None else mine
        if isinstance(left, Leaf):
            return left
        below = self.folder(mine, theirs, base)
        if below or _mode_of(left) != _mode_of(base):
            return {"": _mode_of(left), **below}
        return None

    def _two_kinds(self, mine: Node, theirs: Node, base: Node) -> tuple[Node, Node]:
        """A file here and a folder there, or the other way round; both changed, somewhere."""
        folder = mine if isinstance(mine, dict) else theirs
        unchanged = isinstance(base, dict) and _mode_of(folder) == _mode_of(base)
        if unchanged and not self._survives(folder, base):
            # Of the folder things were removed at most: the file takes its place.
            return (theirs if folder is mine else mine), None
        return mine, theirs

    def _survives(self, folder: Node, base: Node) -> bool:
        """Say whether anything below a folder changed otherwise than by being removed."""
        assert isinstance(folder, dict)
        before = base if isinstance(base, dict) else {}
        for name, node in folder.items():
            if not name:
                continue
            was = before.get(name)
            if isinstance(node, Leaf):
                if node != was:
                    return True
            elif (
                not isinstance(was, dict)
                or _mode_of(node) != _mode_of(was)
                or self._survives(node, was)
            ):
                return True
        return False


def _mode_of(node: Node) -> Any:
    return node.get("") if isinstance(node, dict) else None
