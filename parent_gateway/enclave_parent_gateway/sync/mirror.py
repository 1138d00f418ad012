"""Brings two trees together: looks at both, decides, and does what was decided."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

import msgspec

from enclave_parent_gateway.sync.decisions import Action, local_mode, remote_mode
from enclave_parent_gateway.sync.file_transfers import FileTransfers
from enclave_parent_gateway.sync.ignore import IgnoreRules
from enclave_parent_gateway.sync.journal import Base, Journal
from enclave_parent_gateway.sync.plan import Found, Plan, Work, make_plan
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.workspace.blocks import digest_of
from enclave_protocol.workspace.messages import (
    MAX_BATCH,
    MAX_BATCHES,
    Entry,
    MakeFolder,
    Move,
    Remove,
    Result,
    SetMeta,
    Step,
)
from enclave_protocol.workspace.names import parent_of
from enclave_protocol.workspace.scan import scan
from enclave_protocol.workspace.small_files import SmallFiles
from enclave_protocol.workspace.tree import Tree, TreeError

__all__ = ["Mirror", "Outcome", "Totals"]

_MAX_CONFLICTS: Final = 100


@dataclass
class Totals:
    """Files and bytes of one pass: to be brought, and brought so far; removals count as files."""

    files: int = 0
    bytes: int = 0
    files_done: int = 0
    bytes_done: int = 0


@dataclass
class Outcome:
    """What a pass left to do.

    Attributes:
        waiting: Paths that were changing: look again when they may have come to rest.
        again: Paths that were not as expected, to be looked at again at once, and in what way.
        problems: Paths that cannot be brought, and why.
        retry: Those of them that may go better later: no room, no permission.
        brought: Files and folders that were written or removed on either side.
    """

    waiting: set[str] = field(default_factory=set)
    again: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    retry: set[str] = field(default_factory=set)
    brought: int = 0


class Mirror:
    """One folder here and one workspace there.

    Args:
        tree: The folder.
        remote: The workspace.
        journal: What both had.
        rules: What is not mirrored.
        report: Called as work goes on.
    """

    def __init__(
        self,
        tree: Tree,
        remote: RemoteTree,
        journal: Journal,
        rules: IgnoreRules,
        report: Callable[[Totals], None],
    ) -> None:
        self._tree = tree
        self._remote = remote
        self._journal = journal
        self.rules = rules
        self._report = report

    def unsettled(self, rels: Iterable[str]) -> set[str]:
        """Return which of these paths are not here what was agreed on: the others need no question.

        A folder is never settled: it stands for all that is below it.
        """
        small = SmallFiles(self._tree)
        try:
            return {rel for rel in sorted(rels) if not self._is_settled(small, rel)}
        finally:
            small.close()

    def _is_settled(self, small: SmallFiles, rel: str) -> bool:
        base = self._journal.get(rel)
        try:
            found = small.look(rel)
        except TreeError:
            return False
        if base is None or found is None:
            return base is None and found is None
        return found.kind == "file" and not base.local.fresh and found.same_state(base.local)

    def doubt(self, rel: str) -> None:
        """Have a file of the enclave's compared, although its state may be what it was."""
        base = self._journal.get(rel)
        if base is not None and base.remote.kind == "file":
            remote = msgspec.structs.replace(base.remote, fresh=True)
            self._journal.agree(rel, Base(base.local, remote))

    def run(self, roots: Iterable[str], impatient: frozenset[str] = frozenset()) -> Outcome:
        """Bring both sides together at these paths and below.

        Args:
            roots: Paths; "" is everything.
            impatient: Paths that are taken although they change all the time.

        Raises:
            ProtocolError: The enclave broke the protocol, or the stream ended.
            TreeError: There are too many files, or a tree cannot be looked at.
            OSError: The journal cannot be written.
        """
        wanted = self._known_places(roots)
        local = self._look_here(wanted)
        entries, skipped = self._remote.scan(wanted)
        remote = Found(entries, {item.rel: item.reason for item in skipped})
        plan = make_plan(wanted, local, remote, self._journal, self.rules, impatient)
        return _Pass(self._tree, self._remote, self._journal, plan, self._report).run()

    def _known_places(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Go up from each path to where both sides have the folder that it is in."""
        places: set[str] = set()
        for root in roots:
            rel = root
            while rel and (above := parent_of(rel)) and self._journal.get(above) is None:
                rel = above
            places.add(rel)
        if "" in places:
            return ("",)
        return tuple(sorted(rel for rel in places if not _has_above(rel, places)))

    def _look_here(self, roots: Iterable[str]) -> Found:
        entries: dict[str, Entry] = {}
        skipped: dict[str, str] = {}
        for rel, found in scan(self._tree, roots):
            if isinstance(found, Entry):
                entries[rel] = found
            else:
                skipped[rel] = found
        return Found(entries, skipped)


def _has_above(rel: str, places: set[str]) -> bool:
    while rel := parent_of(rel):
        if rel in places:
            return True
    return False


class _Pass:
    """The doing of one plan."""

    def __init__(
        self,
        tree: Tree,
        remote: RemoteTree,
        journal: Journal,
        plan: Plan,
        report: Callable[[Totals], None],
    ) -> None:
        self._tree = tree
        self._remote = remote
        self._journal = journal
        self._plan = plan
        self._report = report
        self._outcome = Outcome(waiting=plan.waiting, problems=plan.problems)
        self._totals = Totals()

    def run(self) -> Outcome:
        """Do all of it, and return what became of it."""
        plan = self._plan
        sizes = [(work.local if work.action is Action.PUSH else work.remote) for work in plan.files]
        self._totals.bytes = sum(entry.size for entry in sizes if entry is not None)
        self._totals.files = len(plan.files) + len(plan.moves) + len(plan.removals)
        self._report(self._totals)
        for work in plan.noted:
            self._note(work.rel, work.local, work.remote)
        self._journal.flush()
        for work in plan.conflicts:
            self._attempt(work.rel, self._resolve, work)
        self._removals(plan.early_removals, early=True)
        self._replace_kinds([*plan.folders, *plan.files])
        self._folders(plan.folders)
        self._moves(plan.moves)
        self._metas(plan.metas)
        FileTransfers(
            self._tree,
            self._remote,
            self._journal,
            done=self._done,
            failed=self._failed,
            advanced=self._advanced,
        ).run(plan.files)
        self._removals(plan.removals)
        self._journal.flush()
        self._report(self._totals)
        return self._outcome

    # What became of a path

    def _note(self, rel: str, local: Entry | None, remote: Entry | None) -> None:
        if local is None or remote is None:
            self._journal.drop(rel)
        else:
            self._journal.agree(rel, Base(local, remote))

    def _intend(self, rel: str, local: Entry, remote: Entry) -> None:
        """Note what the enclave is going to have, before it has it."""
        self._journal.intend(rel, local, remote, "remote")
        self._journal.flush()

    def _done(self, rel: str, local: Entry | None, remote: Entry | None) -> None:
        self._note(rel, local, remote)
        self._outcome.brought += 1
        self._totals.files_done += 1
        if local is not None and remote is not None and (local.fresh or remote.fresh):
            self._outcome.waiting.add(rel)
        if self._totals.files_done % 64 == 0:
            self._report(self._totals)

    def _advanced(self, size: int) -> None:
        self._totals.bytes_done += size
        self._report(self._totals)

    def _failed(self, rel: str, error: TreeError) -> None:
        if error.reason in ("changed", "occupied"):
            self._outcome.again[rel] = str(error)
        else:
            self._outcome.problems[rel] = str(error)
            self._outcome.retry.add(rel)

    def _again(self, *rels: str) -> None:
        for rel in rels:
            self._outcome.again[rel] = "it changed meanwhile"

    def _attempt(self, rel: str, do: Callable[[Work], None], work: Work) -> None:
        try:
            do(work)
        except TreeError as error:
            self._failed(rel, error)

    def _batch(self, steps: list[Step], take: Callable[[int, Result], None]) -> None:
        """Have steps done in the enclave, several batches on their way at a time."""
        sent: list[range] = []
        for start in range(0, len(steps), MAX_BATCH):
            if len(sent) == MAX_BATCHES:
                self._take_batch(sent.pop(0), take)
            part = range(start, min(start + MAX_BATCH, len(steps)))
            self._journal.flush()
            self._remote.send_steps(steps[part.start : part.stop])
            sent.append(part)
        for part in sent:
            self._take_batch(part, take)

    def _take_batch(self, part: range, take: Callable[[int, Result], None]) -> None:
        for index, result in zip(part, self._remote.results(), strict=True):
            take(index, result)

    def _take_refused(self, rel: str, result: Result) -> bool:
        if result.refused is None:
            return False
        self._failed(rel, TreeError(result.refused.reason, result.refused.text))
        return True

    # Conflicts

    def _resolve(self, work: Work) -> None:
        """Note that both have the same, or give the enclave's another name; then look again."""
        local, remote = work.local, work.remote
        if remote is None:
            raise TreeError("changed", "it is gone")
        self._outcome.again[work.rel] = "both sides changed it"
        if (
            work.action is Action.COMPARE
            and local is not None
            and self._is_same(work.rel, local, remote)
        ):
            wanted = _wanted_there(local, self._remote)
            if not wanted.same_state(remote):
                self._intend(work.rel, local, wanted)
                found = self._remote.do(SetMeta(work.rel, wanted, remote))
                remote = found or remote
            self._note(work.rel, local, remote)
            return
        for rel in list(self._journal.under(work.rel)):
            self._journal.drop(rel)
        # Before the step: were it noted after, and were this process ended in between, what is
        # here would look like something that had been deleted there.
        self._journal.flush()
        for number in range(1, _MAX_CONFLICTS):
            name = _conflict_name(work.rel, number)
            try:
                if self._tree.look(name) is None:
                    self._remote.do(Move(work.rel, name, remote))
                    break
            except TreeError as error:
                if error.reason != "changed" or number + 1 == _MAX_CONFLICTS:
                    raise
        self._outcome.again[name] = "both sides changed it"
        self._outcome.brought += 1

    def _is_same(self, rel: str, local: Entry, remote: Entry) -> bool:
        with self._tree.reading(rel, local) as descriptor:
            mine = digest_of(descriptor, local.size)
            self._tree.check_same(descriptor, local)
        return mine == self._remote.digest(rel, remote)

    # Folders, names, times

    def _replace_kinds(self, works: Iterable[Work]) -> None:
        """Remove a file where a folder comes, or a folder, empty by now, where a file comes."""
        for work in works:
            local, remote = work.local, work.remote
            if local is None or remote is None or local.kind == remote.kind:
                continue
            try:
                if work.action is Action.PUSH:
                    self._remote.do(Remove(work.rel, remote))
                else:
                    self._tree.remove(work.rel, local)
                self._journal.drop(work.rel)
            except TreeError as error:
                self._failed(work.rel, error)

    def _folders(self, works: list[Work]) -> None:
        there: list[Work] = []
        for work in works:
            if work.action in (Action.PUSH, Action.PUSH_META):
                there.append(work)
            elif work.remote is not None:
                in_place = work.local if work.local and work.local.kind == "folder" else None
                try:
                    mode = self._mode_here(work.remote, in_place)
                    found = self._tree.make_folder(work.rel, mode)
                    self._done(work.rel, found, work.remote)
                except TreeError as error:
                    self._failed(work.rel, error)
        steps: list[Step] = []
        for work in there:
            wanted = _wanted_there(work.local, self._remote)
            if work.local is not None:
                self._journal.intend(work.rel, work.local, wanted, "remote")
            steps.append(MakeFolder(work.rel, wanted.mode))

        def take(index: int, result: Result) -> None:
            work = there[index]
            if not self._take_refused(work.rel, result):
                self._done(work.rel, work.local, result.entry)

        self._batch(steps, take)

    def _mode_here(self, remote: Entry, in_place: Entry | None) -> int:
        return local_mode(remote, in_place, open_modes=self._remote.open_modes)

    def _moves(self, moves: list[tuple[str, Work]]) -> None:
        there: list[tuple[str, Work]] = []
        steps: list[Step] = []
        for old, work in moves:
            base = self._journal.get(old)
            if base is None:
                self._again(old, work.rel)
            elif work.action is Action.PUSH and work.local is not None:
                self._journal.intend(work.rel, work.local, base.remote, "remote")
                there.append((old, work))
                steps.append(Move(old, work.rel, base.remote))
            elif work.remote is not None:
                self._journal.intend(work.rel, base.local, work.remote, "local")
                self._journal.flush()
                try:
                    found = self._tree.move(old, work.rel, base.local)
                    self._moved(old, work.rel, found, work.remote)
                except TreeError as error:
                    self._failed(work.rel, error)
                    self._again(old)

        def take(index: int, result: Result) -> None:
            old, work = there[index]
            if self._take_refused(work.rel, result):
                self._again(old, work.rel)
            else:
                self._moved(old, work.rel, work.local, result.entry)

        self._batch(steps, take)

    def _moved(self, old: str, new: str, local: Entry | None, remote: Entry | None) -> None:
        self._journal.drop(old)
        self._done(new, local, remote)

    def _metas(self, works: list[Work]) -> None:
        for work in works:
            local, remote = work.local, work.remote
            if local is None or remote is None:
                continue
            try:
                if work.action is Action.PUSH_META:
                    wanted = _wanted_there(local, self._remote)
                    self._intend(work.rel, local, wanted)
                    self._done(work.rel, local, self._remote.do(SetMeta(work.rel, wanted, remote)))
                else:
                    mode = self._mode_here(remote, local)
                    wanted = Entry("file", remote.size, remote.mtime_ns, mode)
                    self._done(work.rel, self._tree.set_meta(work.rel, wanted, local), remote)
            except TreeError as error:
                self._failed(work.rel, error)

    # Removals

    def _removals(self, works: list[Work], *, early: bool = False) -> None:
        backwards = works[::-1]
        there = [work for work in backwards if work.action is Action.DROP_REMOTE]
        for work in backwards:
            if work.action is Action.DROP_LOCAL and work.local is not None:
                try:
                    self._tree.remove(work.rel, work.local)
                    self._done(work.rel, None, None)
                except TreeError as error:
                    self._not_removed(work.rel, error, early)
        steps: list[Step] = [
            Remove(work.rel, work.remote) for work in there if work.remote is not None
        ]

        def take(index: int, result: Result) -> None:
            rel = there[index].rel
            if result.refused is None:
                self._done(rel, None, None)
            else:
                error = TreeError(result.refused.reason, result.refused.text)
                self._not_removed(rel, error, early)

        self._batch(steps, take)

    def _not_removed(self, rel: str, error: TreeError, early: bool) -> None:
        # Early there may be files in it that are about to move elsewhere.
        if error.reason == "occupied" and not early:
            # Something new is in it, or something that is not mirrored: it is new from now on.
            self._journal.drop(rel)
            self._again(rel)
        else:
            self._failed(rel, error)


def _wanted_there(local: Entry | None, remote: RemoteTree) -> Entry:
    """Return what something of ours is to be in the enclave."""
    if local is None:
        raise TreeError("changed", "it is gone")
    mode = remote_mode(local, open_modes=remote.open_modes)
    return Entry(local.kind, local.size, local.mtime_ns, mode)


def _conflict_name(rel: str, number: int) -> str:
    """Return `name (conflict DATE enclave).ext`, from the second on with its number."""
    path = PurePosixPath(rel)
    extra = "" if number == 1 else f" {number}"
    label = f" (conflict {time.strftime('%Y-%m-%d')} enclave{extra})"
    stem, suffix = path.stem, path.suffix
    # A name of 255 bytes has no room for it.
    while len(os.fsencode(stem + label + suffix)) > 255:
        stem = stem[:-1]
    return str(path.with_name(stem + label + suffix))
