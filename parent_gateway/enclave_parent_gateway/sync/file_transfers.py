"""Carries files between the two sides: small ones many at a time, large ones by their blocks."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from enclave_parent_gateway.sync.decisions import Action, local_mode, remote_mode
from enclave_parent_gateway.sync.journal import Journal
from enclave_parent_gateway.sync.plan import Work
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.workspace.blocks import MIN_SIGNED_BYTES, sign
from enclave_protocol.workspace.messages import (
    MAX_BATCH,
    MAX_BATCHES,
    SMALL_FILE_BYTES,
    Entry,
    Put,
    Result,
    Signature,
    Step,
)
from enclave_protocol.workspace.small_files import SmallFiles
from enclave_protocol.workspace.transfer import read_small
from enclave_protocol.workspace.tree import Tree, TreeError

__all__ = ["FileTransfers"]

_BATCH_BYTES: Final = 256 * 1024
_PULLED_AT_ONCE: Final = 128
"""Requests on their way: small enough to fit into a socket's buffer together."""

Done = Callable[[str, Entry | None, Entry | None], None]
Failed = Callable[[str, TreeError], None]


class FileTransfers:
    """Brings files in either direction.

    Args:
        tree: Ours.
        remote: Theirs.
        journal: Where intentions are noted before anything is written.
        done: Told of each file with what it is here and there.
        failed: Told of each that was not brought.
        advanced: Told of bytes as they are brought.
    """

    def __init__(
        self,
        tree: Tree,
        remote: RemoteTree,
        journal: Journal,
        *,
        done: Done,
        failed: Failed,
        advanced: Callable[[int], None],
    ) -> None:
        self._tree = tree
        self._remote = remote
        self._journal = journal
        self._done = done
        self._failed = failed
        self._advanced = advanced
        remote.moved = advanced
        self._batch: list[tuple[Work, Put]] = []
        self._batch_bytes = 0
        self._small = SmallFiles(tree)
        self._sent: list[list[Work]] = []

    def run(self, works: Iterable[Work]) -> None:
        """Bring these files; small ones come first, so that nothing waits for a large one."""
        ordered = sorted(works, key=lambda work: _size(work) > SMALL_FILE_BYTES)
        pushed = [work for work in ordered if work.action is Action.PUSH]
        pulled = [work for work in ordered if work.action is Action.PULL]
        for work in pushed:
            if work.local is None:
                continue
            if work.local.size <= SMALL_FILE_BYTES:
                self._add_to_batch(work, work.local)
            else:
                self._finish_batches()
                self._try(work, self._push_large)
        self._finish_batches()
        self._pull(pulled)

    def _try(self, work: Work, carry: Callable[[Work], None]) -> None:
        try:
            carry(work)
        except TreeError as error:
            self._failed(work.rel, error)

    # To the enclave

    def _there(self, local: Entry) -> Entry:
        mode = remote_mode(local, open_modes=self._remote.open_modes)
        return Entry("file", local.size, local.mtime_ns, mode)

    def _taken(self, descriptor: int, local: Entry) -> Entry:
        """Return what is sent: one that changes all the time is taken as it is now."""
        if not local.fresh:
            return local
        now = self._tree.entry(descriptor)
        return Entry("file", now.size, now.mtime_ns, now.mode, now.inode, True)

    def _read(self, rel: str, local: Entry) -> tuple[Entry, bytes]:
        """Return a small file's content, and what it was then."""
        if not local.fresh:
            return local, self._small.read(rel, local)
        with self._tree.reading(rel, local) as descriptor:
            taken = self._taken(descriptor, local)
            return taken, read_small(descriptor, taken.size)

    def _add_to_batch(self, work: Work, local: Entry) -> None:
        try:
            taken, data = self._read(work.rel, local)
        except TreeError as error:
            self._failed(work.rel, error)
            return
        wanted = self._there(taken)
        step = Put(work.rel, wanted, _in_place(work.remote), memoryview(data))
        size = len(data) + 4 * len(work.rel)
        if self._batch_bytes + size > _BATCH_BYTES or len(self._batch) == MAX_BATCH:
            self._send_batch()
        self._journal.intend(work.rel, taken, wanted, "remote")
        self._batch.append((Work(work.rel, work.action, taken, work.remote), step))
        self._batch_bytes += size

    def _send_batch(self) -> None:
        self._small.close()
        if not self._batch:
            return
        if len(self._sent) == MAX_BATCHES:
            self._take_results()
        self._journal.flush()
        steps: list[Step] = [step for _, step in self._batch]
        self._remote.send_steps(steps)
        self._sent.append([work for work, _ in self._batch])
        self._batch = []
        self._batch_bytes = 0

    def _take_results(self) -> None:
        works = self._sent.pop(0)
        for work, result in zip(works, self._remote.results(), strict=True):
            self._take(work, result)

    def _take(self, work: Work, result: Result) -> None:
        if result.refused is not None:
            self._failed(work.rel, TreeError(result.refused.reason, result.refused.text))
            return
        self._advanced(_size(work))
        self._done(work.rel, work.local, result.entry)

    def _finish_batches(self) -> None:
        self._send_batch()
        while self._sent:
            self._take_results()

    def _push_large(self, work: Work) -> None:
        local = work.local
        if local is None:
            return
        expect = _in_place(work.remote)
        have: Signature | None = None
        if expect is not None and min(expect.size, local.size) >= MIN_SIGNED_BYTES:
            have = self._remote.sign(work.rel, expect)
        with self._tree.reading(work.rel, local) as descriptor:
            taken = self._taken(descriptor, local)
            wanted = self._there(taken)
            self._journal.intend(work.rel, taken, wanted, "remote")
            self._journal.flush()
            still = partial(self._tree.check_same, expect=local)
            found = self._remote.push(work.rel, descriptor, wanted, expect, have=have, still=still)
        self._done(work.rel, taken, found)

    # From the enclave

    def _pull(self, works: list[Work]) -> None:
        asked: list[tuple[Work, Entry, Entry | None]] = []
        for work in works:
            remote = work.remote
            if remote is None:
                continue
            large = remote.size > SMALL_FILE_BYTES
            if asked and (large or len(asked) == _PULLED_AT_ONCE):
                self._receive(asked)
            try:
                self._tree.make_room(remote.size)
                in_place, have = self._signed(work, remote)
            except TreeError as error:
                self._failed(work.rel, error)
                continue
            self._remote.ask_for(work.rel, remote, have)
            asked.append((work, remote, in_place))
            if large:
                self._receive(asked)
        self._receive(asked)

    def _signed(self, work: Work, remote: Entry) -> tuple[Entry | None, Signature | None]:
        """Return what is in the file's place here, and its signature if that saves something."""
        in_place = _in_place(work.local)
        if in_place is None or min(in_place.size, remote.size) < MIN_SIGNED_BYTES:
            return in_place, None
        with self._tree.reading(work.rel, in_place) as descriptor:
            return in_place, sign(descriptor, in_place.size)

    def _receive(self, asked: list[tuple[Work, Entry, Entry | None]]) -> None:
        """Take what was asked for, in that order."""
        for work, expect, in_place in asked:
            wanted = partial(self._here, work.rel, in_place, fresh=expect.fresh)
            try:
                theirs, ours = self._remote.receive(
                    self._tree, self._small, work.rel, expect, wanted
                )
            except TreeError as error:
                self._failed(work.rel, error)
                continue
            if theirs.size <= SMALL_FILE_BYTES:
                self._advanced(theirs.size)
            taken = Entry(
                "file", theirs.size, theirs.mtime_ns, theirs.mode, theirs.inode, expect.fresh
            )
            self._done(work.rel, ours, taken)
        asked.clear()
        self._small.close()

    def _here(
        self, rel: str, in_place: Entry | None, found: Entry, *, fresh: bool
    ) -> tuple[Entry, Entry | None]:
        mode = local_mode(found, in_place, open_modes=self._remote.open_modes)
        wanted = Entry("file", found.size, found.mtime_ns, mode)
        taken = Entry("file", found.size, found.mtime_ns, found.mode, found.inode, fresh)
        self._journal.intend(rel, wanted, taken, "local")
        self._journal.flush()
        return wanted, in_place


def _in_place(entry: Entry | None) -> Entry | None:
    """Return what a file replaces; a folder has been removed by then."""
    return entry if entry is not None and entry.kind == "file" else None


def _size(work: Work) -> int:
    entry = work.local if work.action is Action.PUSH else work.remote
    return entry.size if entry is not None else 0
