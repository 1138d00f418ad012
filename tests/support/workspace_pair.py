"""Both ends of a workspace's mirror over a socket pair, the enclave's in a thread."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_kernel.workspace.server import WorkspaceServer
from enclave_parent_gateway.sync.ignore import read_rules
from enclave_parent_gateway.sync.journal import Journal
from enclave_parent_gateway.sync.mirror import Mirror, Outcome
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.errors import ProtocolError
from enclave_protocol.workspace.messages import (
    FromEnclave,
    FromParent,
    decode_from_enclave,
    decode_from_parent,
)
from enclave_protocol.workspace.stream import MessageStream, StreamEndedError
from enclave_protocol.workspace.tree import Tree

__all__ = ["CutStream", "WorkspacePair", "serve_workspace"]


class CutStream(MessageStream[FromEnclave]):
    """The parent's end of a stream that breaks after so many messages; -1: never."""

    def __init__(self, sock: socket.socket, messages: int = -1) -> None:
        super().__init__(sock, decode_from_enclave)
        self.left = messages

    def _count(self) -> None:
        if self.left == 0:
            self.shut()
            raise StreamEndedError("cut by the test")
        self.left -= 1

    def send(self, message: FromParent | FromEnclave) -> None:
        self._count()
        super().send(message)

    def receive(self) -> FromEnclave:
        self._count()
        return super().receive()


@contextmanager
def serve_workspace(
    folder: Path, workspace: str, *, open_modes: bool = False
) -> Iterator[socket.socket]:
    """Serve a folder as the enclave does; the other end of the stream is the caller's."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        tree = Tree(folder)
        stream: MessageStream[FromParent] = MessageStream(theirs, decode_from_parent)
        with contextlib.suppress(ProtocolError):
            WorkspaceServer(tree, stream, workspace=workspace, open_modes=open_modes).run()
        tree.close()
        stream.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        thread.join(30)
        assert not thread.is_alive()


class WorkspacePair:
    """A folder of the parent's and one of an enclave's, below `root`."""

    def __init__(self, root: Path, *, open_modes: bool = False) -> None:
        self.root = root
        self.open_modes = open_modes
        self.local = root / "local"
        self.remote = root / "remote"
        self.journal = root / "journal"
        self.local.mkdir()
        self.remote.mkdir()
        self.workspace = os.urandom(16).hex()

    def mirror_once(self, cut: int = -1) -> dict[str, str]:
        """Bring both together as `enclave sync --once` does; return what could not be brought.

        Args:
            cut: Both ends die after so many messages.

        Raises:
            StreamEndedError: They did.
        """
        with self.open(cut) as (mirror, _):
            outcome = mirror.run([""])
            problems = outcome.problems
            for _ in range(20):
                roots = {*outcome.again, *outcome.waiting}
                if not roots:
                    return problems
                if outcome.waiting:
                    time.sleep(0.025)
                outcome = mirror.run(roots)
                problems |= outcome.problems
            raise AssertionError(f"it comes to no end: {outcome}")

    @contextmanager
    def open(self, cut: int = -1) -> Iterator[tuple[Mirror, RemoteTree]]:
        """Return a mirror, whose process ends without a word at the end."""
        with (
            serve_workspace(self.remote, self.workspace, open_modes=self.open_modes) as sock,
            contextlib.ExitStack() as stack,
        ):
            tree = Tree(self.local)
            stack.callback(tree.close)
            remote = RemoteTree(CutStream(sock, cut))
            journal = Journal(self.journal, remote.workspace, str(self.local))
            # Not closed: what was not flushed is lost, as in a process that is killed.
            stack.callback(lambda: os.close(journal._descriptor))
            yield (
                Mirror(tree, remote, journal, read_rules(self.local), lambda _totals: None),
                remote,
            )

    def once(self, roots: list[str] | None = None) -> Outcome:
        """Return what one pass did."""
        with self.open() as (mirror, _):
            return mirror.run(roots or [""])
