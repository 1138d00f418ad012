"""An enclave's end of the workspace that says what it is told to, and a parent's that asks so."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from enclave_parent_gateway.sync.ignore import read_rules
from enclave_parent_gateway.sync.journal import Journal
from enclave_parent_gateway.sync.mirror import Mirror, Outcome
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.errors import ProtocolError
from enclave_protocol.workspace.messages import (
    Begin,
    Commit,
    Data,
    Entry,
    FromEnclave,
    FromParent,
    Hello,
    Listing,
    Read,
    Ready,
    Refused,
    Scan,
    Welcome,
    Whole,
    decode_from_enclave,
    decode_from_parent,
)
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.tree import Tree

__all__ = ["Forbidden", "HostileEnclave", "bring", "everything", "file_entry"]

_OLD = 1_500_000_000_000_000_000


def file_entry(data: bytes | int, *, mode: int = 0o644) -> Entry:
    """Return the entry of a file with this content, or of this size."""
    size = data if isinstance(data, int) else len(data)
    return Entry("file", size, _OLD, mode, inode=7)


class HostileEnclave:
    """Lists `entries` whatever it is asked for, and sends `contents`.

    Args:
        entries: What it pretends to have.
        contents: Bytes that it sends, by path.
        answer: Answers a message instead, if it returns something.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        contents: Mapping[str, bytes] | None = None,
        answer: Callable[[FromParent], list[FromEnclave]] = lambda message: [],
    ) -> None:
        self._entries = dict(entries)
        self._contents = dict(contents or {})
        self._answer = answer
        self.asked: list[FromParent] = []

    @contextmanager
    def serve(self) -> Iterator[socket.socket]:
        """Serve one stream; the parent's end is the caller's."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        thread.start()
        ours.settimeout(60)
        try:
            yield ours
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            ours.close()
            thread.join(30)

    def _serve(self, sock: socket.socket) -> None:
        stream: MessageStream[FromParent] = MessageStream(sock, decode_from_parent)
        with contextlib.suppress(ProtocolError):
            while True:
                message = stream.receive()
                self.asked.append(message)
                for reply in self._answer(message) or self._usual(message):
                    stream.send(reply)
        stream.close()

    def _usual(self, message: FromParent) -> list[FromEnclave]:
        if isinstance(message, Hello):
            return [Welcome(1, "ab" * 16, False)]
        if isinstance(message, Scan):
            roots = message.roots
            listed = [
                (rel, entry)
                for rel, entry in self._entries.items()
                if "" in roots or any(rel == r or rel.startswith(f"{r}/") for r in roots)
            ]
            return [Listing(tuple(listed), (), False)]
        if isinstance(message, Read):
            data = self._contents[message.rel]
            return [Whole(self._entries[message.rel], memoryview(data))]
        if isinstance(message, Begin | Data | Commit):
            return [Ready()] if isinstance(message, Begin) else []
        return [Refused("failed", "no")]


class Forbidden:
    """Folders beside a root that nobody may read or write: with a secret, and with a canary.

    Args:
        root: The folder that both are put into.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "outside"
        self.folder.mkdir()
        self.secret = os.urandom(16).hex()
        (self.folder / "secret.txt").write_text(self.secret)
        self._before = self._look()

    def _look(self) -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.folder.rglob("*"))
        }

    def check(self) -> None:
        """See that nothing was written, made or removed there."""
        assert self._look() == self._before


def bring(root: Path, enclave: HostileEnclave) -> Outcome:
    """Have the parent's end mirror `root` with a hostile enclave, once."""
    tree = Tree(root)
    try:
        with enclave.serve() as sock:
            remote = RemoteTree(MessageStream(sock, decode_from_enclave))
            journal = Journal(root.parent / "journal", remote.workspace, str(root))
            mirror = Mirror(tree, remote, journal, read_rules(root), lambda _totals: None)
            return mirror.run([""])
    finally:
        tree.close()


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
