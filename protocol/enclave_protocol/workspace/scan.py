"""What is in a tree: every entry that travels, and what does not, with the reason."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final

from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import (
    MAX_DEPTH,
    MAX_REL_CHARS,
    TEMPORARY_FOLDER,
    wrong_name,
)
from enclave_protocol.workspace.tree import Tree, TreeError, entry_of, reason_for

__all__ = ["MAX_ENTRIES", "scan"]

MAX_ENTRIES: Final = 1_000_000
"""In one tree: ten times what is promised; a listing of so many takes 200 MiB (THREATS Y-06)."""


def scan(tree: Tree, roots: Iterable[str]) -> Iterator[tuple[str, Entry | str]]:
    """Look at paths and all that is below them; a folder comes before what is in it.

    Args:
        tree: Where.
        roots: Paths; "" is the whole tree. One that does not exist yields nothing.

    Yields:
        A path, and its entry or why it does not travel.

    Raises:
        TreeError: There are more than `MAX_ENTRIES`.
    """
    count = 0
    for root in roots:
        folders: list[str] = []
        if root:
            try:
                found = tree.look(root)
            except TreeError as error:
                yield root, str(error)
                continue
            if found is None:
                continue
            yield root, found
            if found.kind == "folder":
                folders.append(root)
        else:
            folders.append("")
        while folders:
            rel = folders.pop()
            try:
                listed = _list(tree, rel)
            except TreeError as error:
                if error.reason != "changed":
                    yield rel, f"it cannot be listed: {error}"
                continue
            count += len(listed)
            if count > MAX_ENTRIES:
                raise TreeError("full", f"there are more than {MAX_ENTRIES} files and folders")
            for path, entry in listed:
                if isinstance(entry, Entry) and entry.kind == "folder":
                    folders.append(path)
                yield path, entry


def _list(tree: Tree, rel: str) -> list[tuple[str, Entry | str]]:
    prefix = f"{rel}/" if rel else ""
    deepest = prefix.count("/") >= MAX_DEPTH
    now_ns = time.time_ns()
    listed: list[tuple[str, Entry | str]] = []
    with tree.folder(rel) as folder:
        try:
            with os.scandir(folder) as names:
                for item in names:
                    if not rel and item.name == TEMPORARY_FOLDER:
                        continue
                    path = prefix + item.name
                    reason = wrong_name(item.name)
                    if reason is None and (deepest or len(path) > MAX_REL_CHARS):
                        reason = "its path is too long or too deep"
                    if reason is None:
                        try:
                            status = item.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        reason = tree.refused(status)
                    listed.append((path, entry_of(status, now_ns) if reason is None else reason))
        except OSError as error:
            raise reason_for(error) from error
    return listed
