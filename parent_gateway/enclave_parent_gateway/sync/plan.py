"""What is to happen in a part of the tree, and in which order. Pure: entries in, work out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enclave_parent_gateway.sync.decisions import Action, decide
from enclave_parent_gateway.sync.ignore import IgnoreRules
from enclave_parent_gateway.sync.journal import Journal
from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import fold, is_reserved, parent_of

__all__ = ["Found", "Plan", "Work", "make_plan"]

_TRANSFERS = (Action.PUSH, Action.PULL)
_REMOVALS = (Action.DROP_LOCAL, Action.DROP_REMOTE, Action.FORGET)
_NOTHING_THERE = Entry("file", 0, 0, 0)
_RESERVED = "its name would have programs run it on the parent; such names do not leave the enclave"


@dataclass(frozen=True)
class Found:
    """One side of a part of the tree.

    Attributes:
        entries: By path.
        skipped: Paths that do not travel, with the reason: they and what is below are left alone.
    """

    entries: Mapping[str, Entry]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """What is to happen at one path."""

    rel: str
    action: Action
    local: Entry | None
    remote: Entry | None


@dataclass
class Plan:
    """Everything to be done, by kind; each list has folders before what is in them.

    Attributes:
        removals: Deletions, to be done backwards, last of all.
        early_removals: Those that make place for another kind of thing by that name.
        moves: Files that only have another name: old name, and work at the new one.
        waiting: Paths to be looked at again when they have come to rest.
        problems: Why something is not brought, by path.
    """

    noted: list[Work] = field(default_factory=list)
    conflicts: list[Work] = field(default_factory=list)
    folders: list[Work] = field(default_factory=list)
    moves: list[tuple[str, Work]] = field(default_factory=list)
    files: list[Work] = field(default_factory=list)
    metas: list[Work] = field(default_factory=list)
    removals: list[Work] = field(default_factory=list)
    early_removals: list[Work] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)


def make_plan(
    roots: Iterable[str],
    local: Found,
    remote: Found,
    journal: Journal,
    rules: IgnoreRules,
    impatient: frozenset[str],
) -> Plan:
    """Return what is to be done at `roots` and below.

    Args:
        roots: Paths that both sides were scanned at; "" is everything.
        local: What the parent has there.
        remote: What the enclave has there.
        journal: What was agreed on.
        rules: What is not mirrored.
        impatient: Paths that are taken although they change.
    """
    return _Planner(local, remote, journal, rules, impatient).plan(roots)


class _Planner:
    def __init__(
        self,
        local: Found,
        remote: Found,
        journal: Journal,
        rules: IgnoreRules,
        impatient: frozenset[str],
    ) -> None:
        self._rules = rules
        self._journal = journal
        self._impatient = impatient
        self._local, self._hollow_local = self._kept(local)
        self._remote, self._hollow_remote = self._kept(remote)
        self._plan = Plan()
        self._work: dict[str, Work] = {}
        self._blocked: set[str] = set()
        for found, where in ((local, "here"), (remote, "in the enclave")):
            for rel, reason in found.skipped.items():
                if not rules.ignores(rel, folder=False):
                    self._block(rel, f"{where}: {reason}")

    def _block(self, rel: str, reason: str) -> None:
        """Leave a path alone, and what is below."""
        self._blocked.add(rel)
        self._plan.problems[rel] = reason

    def _kept(self, found: Found) -> tuple[dict[str, Entry], set[str]]:
        """Return what is not ignored, and the folders in which everything is."""
        kept: dict[str, Entry] = {}
        crowded: set[str] = set()
        for rel, entry in found.entries.items():
            if self._rules.ignores(rel, folder=entry.kind == "folder"):
                crowded.add(parent_of(rel))
            else:
                kept[rel] = entry
        if not crowded:
            return kept, set()
        worth = {parent_of(rel) for rel in found.skipped}
        hollow: set[str] = set()
        for rel in sorted(kept, key=len, reverse=True):
            if rel in crowded and rel not in worth:
                hollow.add(rel)
            else:
                worth.add(parent_of(rel))
                continue
            # A folder that holds hollow ones only is hollow as well.
            crowded.add(parent_of(rel))
        return kept, hollow

    def plan(self, roots: Iterable[str]) -> Plan:
        """Decide about every path, then sort the work."""
        known = {
            rel for root in roots for rel in self._journal.under(root) if not self._is_ignored(rel)
        }
        for rel in sorted(self._local.keys() | self._remote.keys() | known):
            self._decide(rel)
        self._refuse_lookalikes()
        for rel in [rel for rel in self._work if self._is_below(rel, self._blocked)]:
            del self._work[rel]
        self._keep_folders()
        moved = self._find_moves()
        replaced = {work.rel for work in self._work.values() if _changes_kind(work)}
        for work in self._work.values():
            if work.rel not in moved:
                self._sort(work, replaced)
        return self._plan

    def _is_ignored(self, rel: str) -> bool:
        base = self._journal.get(rel)
        return self._rules.ignores(rel, folder=base is not None and base.local.kind == "folder")

    def _is_below(self, rel: str, paths: set[str]) -> bool:
        if not paths:
            return False
        while rel:
            if rel in paths:
                return True
            rel = parent_of(rel)
        return "" in paths

    def _decide(self, rel: str) -> None:
        local, remote = self._local.get(rel), self._remote.get(rel)
        base = self._journal.settle(rel, local, remote)
        reserved = is_reserved(rel)
        action = decide(local, remote, base, reserved=reserved, impatient=rel in self._impatient)
        if action is Action.PUSH and remote is None and rel in self._hollow_local:
            return
        if action is Action.PULL and local is None and rel in self._hollow_remote:
            return
        if action is Action.NOTHING and reserved and local is None and remote is not None:
            self._block(rel, _RESERVED)
            return
        self._work[rel] = Work(rel, action, local, remote)

    def _refuse_lookalikes(self) -> None:
        """Of new names that some file systems take for one, or for an older one, keep the first.

        Source: THREATS Y-05.
        """
        fresh = {
            parent_of(rel)
            for rel, work in self._work.items()
            if work.action in _TRANSFERS and self._journal.get(rel) is None
        }
        alike: dict[tuple[str, str], str] = {}
        for folder in fresh:
            for rel in self._journal.siblings(folder):
                known = self._work.get(rel)
                if known is None or known.action not in _REMOVALS:
                    alike[folder, fold(rel[len(folder) :])] = rel
        # What the parent has comes before what is to come.
        for rel, work in sorted(self._work.items(), key=lambda item: item[1].local is None):
            folder = parent_of(rel)
            if folder in fresh and work.action not in _REMOVALS:
                other = alike.setdefault((folder, fold(rel[len(folder) :])), rel)
                if other != rel:
                    self._block(rel, f"its name differs from {other!r} in case or form only")

    def _keep_folders(self) -> None:
        """Have every folder that something travels into; what is in the way gets another name."""
        for rel, work in list(self._work.items()):
            if work.action is Action.WAIT:
                self._wait(rel)
            elif work.action in _TRANSFERS:
                self._keep_folders_of(rel, work.action)
        conflicts = {rel for rel, work in self._work.items() if work.action is Action.CONFLICT}
        if conflicts:
            for rel in list(self._work):
                if self._is_below(parent_of(rel), conflicts):
                    # Looked at again under the name that it will have.
                    del self._work[rel]

    def _keep_folders_of(self, rel: str, action: Action) -> None:
        above = parent_of(rel)
        while above:
            work = self._work.get(above)
            if work is None:
                return
            here, there = (
                (work.remote, work.local) if action is Action.PUSH else (work.local, work.remote)
            )
            if here is None and there is not None and there.kind == "folder":
                self._work[above] = Work(above, action, work.local, work.remote)
            elif here is not None and here.kind == "file" and work.action is not action:
                self._work[above] = Work(above, Action.CONFLICT, work.local, work.remote)
            above = parent_of(above)

    def _wait(self, rel: str) -> None:
        self._plan.waiting.add(rel)
        above = parent_of(rel)
        while above:
            work = self._work.get(above)
            if work is not None and (work.action in _REMOVALS or _changes_kind(work)):
                self._work[above] = Work(above, Action.NOTHING, work.local, work.remote)
                self._plan.waiting.add(above)
            above = parent_of(above)

    def _find_moves(self) -> set[str]:
        """Find files that went to another name on one side and are unchanged on the other."""
        moved: set[str] = set()
        for action, removal in (
            (Action.PUSH, Action.DROP_REMOTE),
            (Action.PULL, Action.DROP_LOCAL),
        ):
            gone: dict[tuple[int, int, int, int], str] = {}
            for rel, work in self._work.items():
                base = self._journal.get(rel)
                if work.action is removal and base is not None and base.local.kind == "file":
                    was = base.local if action is Action.PUSH else base.remote
                    gone[_identity(was)] = rel
            if not gone:
                continue
            for rel, work in self._work.items():
                found, place = (
                    (work.local, work.remote)
                    if action is Action.PUSH
                    else (work.remote, work.local)
                )
                if work.action is action and found is not None and place is None:
                    old = gone.pop(_identity(found), None) if found.kind == "file" else None
                    if old is not None:
                        self._plan.moves.append((old, work))
                        moved |= {old, rel}
        return moved

    def _sort(self, work: Work, replaced: set[str]) -> None:
        plan = self._plan
        kind = (work.local or work.remote or _NOTHING_THERE).kind
        match work.action:
            case Action.NOTHING | Action.WAIT:
                return
            case Action.AGREE | Action.FORGET:
                plan.noted.append(work)
            case Action.CONFLICT | Action.COMPARE:
                plan.conflicts.append(work)
            case Action.PUSH | Action.PULL:
                source = work.local if work.action is Action.PUSH else work.remote
                if source is not None and source.kind == "folder":
                    plan.folders.append(work)
                else:
                    plan.files.append(work)
            case Action.PUSH_META | Action.PULL_META:
                (plan.folders if kind == "folder" else plan.metas).append(work)
            case Action.DROP_LOCAL | Action.DROP_REMOTE:
                early = self._is_below(parent_of(work.rel), replaced)
                (plan.early_removals if early else plan.removals).append(work)


def _changes_kind(work: Work) -> bool:
    return (
        work.action in _TRANSFERS
        and work.local is not None
        and work.remote is not None
        and work.local.kind != work.remote.kind
    )


def _identity(entry: Entry) -> tuple[int, int, int, int]:
    return entry.inode, entry.size, entry.mtime_ns, entry.mode
