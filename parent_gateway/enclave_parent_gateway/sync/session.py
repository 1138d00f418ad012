"""One connection of the mirror: first everything, then what changes, until the stream ends."""

import os
import select
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.sync.ignore import IGNORE_FILE, read_rules
from enclave_parent_gateway.sync.journal import Journal
from enclave_parent_gateway.sync.mirror import Mirror, Outcome, Totals
from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.workspace.messages import Changed, FromEnclave
from enclave_protocol.workspace.names import parent_of
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.tree import SETTLED_NS, Tree
from enclave_protocol.workspace.watch import TreeWatch

__all__ = ["MirrorSession", "Progress"]

_SETTLED_S: Final = SETTLED_NS / 1e9 + 0.002
_PATIENCE_S: Final = 1.0
"""What changes all the time (a log that is written to) is taken as it is after so long."""
_FIRST_RETRY_S: Final = 0.02
_MAX_RETRIES: Final = 8
_PROBLEM_RETRY_S: Final = 5.0
_BLIND_POLL_S: Final = 5.0


@dataclass
class Progress:
    """How far a mirror is.

    Attributes:
        totals: Of the pass that runs, or ran last.
        entries: Files and folders that both sides have.
        brought: Changes brought, in either direction.
        problems: What cannot be brought, and why, by path.
    """

    totals: Totals = field(default_factory=Totals)
    entries: int = 0
    brought: int = 0
    problems: dict[str, str] = field(default_factory=dict)


@dataclass
class _Pending:
    """A path to be looked at again: when, since when, how often it was not as expected."""

    due: float
    since: float
    attempts: int = 0
    changing: bool = False


class MirrorSession:
    """A mirror over one stream.

    Args:
        folder: The parent's, by its real path.
        journal: Path of the journal's file.
        stream: To the enclave's end.
        report: Called as work goes on.

    Raises:
        EnclaveError: The stream is none, the folder or its `.enclaveignore` cannot be used.
        OSError: The same, or there is no inotify.
    """

    def __init__(
        self,
        folder: Path,
        journal: Path,
        stream: MessageStream[FromEnclave],
        report: Callable[[Progress], None],
    ) -> None:
        self.progress = Progress()
        self._folder = folder
        self._report = report
        self._pending: dict[str, _Pending] = {}
        self._events: list[Changed] = []
        self._retry_problems_at = 0.0
        self._retry: set[str] = set()
        with ExitStack() as stack:
            self._tree = Tree(folder)
            stack.callback(self._tree.close)
            # Before anything is looked at: what happens from here on is seen.
            self._watch = TreeWatch(self._tree)
            stack.callback(self._watch.close)
            self._remote = RemoteTree(stream)
            self._journal = Journal(journal, self._remote.workspace, str(folder))
            stack.callback(self._journal.close)
            rules = read_rules(folder)
            self._mirror = Mirror(self._tree, self._remote, self._journal, rules, self._advanced)
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Close everything but the stream."""
        self._resources.close()

    def _advanced(self, totals: Totals) -> None:
        self.progress.totals = totals
        self._report(self.progress)

    def first_pass(self) -> None:
        """Bring both sides together, until nothing is left that could be brought.

        Raises:
            EnclaveError: The stream ended, or the enclave broke the protocol.
        """
        self._run([""])
        while self._pending:
            self._sleep_until_due()
            self._run(self._due())

    def follow(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Bring what changes, on either side, as it changes.

        Args:
            stopping: Asked again and again; ends it.

        Raises:
            EnclaveError: The stream ended, the enclave broke the protocol, or the folder is gone.
        """
        poll = select.poll()
        poll.register(self._remote.stream, select.POLLIN)
        poll.register(self._watch.descriptor, select.POLLIN)
        while not stopping():
            # What came behind an answer was read with it.
            self._remote.take_events(read=False)
            timeout = 0 if self._remote.events else self._timeout_ms()
            ready = {number for number, _ in poll.poll(timeout)}
            roots = self._due()
            if self._watch.descriptor in ready:
                roots |= self._changed_here()
            elif self._watch.blind and not ready:
                roots = {""}
            if self._remote.stream.fileno() in ready:
                self._remote.take_events()
            while self._remote.events:
                event = self._remote.events.popleft()
                self._events.append(event)
                for rel in event.doubted:
                    self._mirror.doubt(rel)
                roots |= set(event.rels) or {""}
            if roots:
                self._check_folder()
                self._run(roots)
            self._confirm()

    # When to look at what

    def _due(self) -> set[str]:
        now = time.monotonic()
        due = {rel for rel, pending in self._pending.items() if pending.due <= now}
        if self._retry and now >= self._retry_problems_at:
            due |= self._retry
        return due

    def _timeout_ms(self) -> float | None:
        times = [pending.due for pending in self._pending.values()]
        if self._retry:
            times.append(self._retry_problems_at)
        if self._watch.blind:
            times.append(time.monotonic() + _BLIND_POLL_S)
        if not times:
            return None
        return max(0.0, min(times) - time.monotonic()) * 1000

    def _sleep_until_due(self) -> None:
        time.sleep((self._timeout_ms() or 0.0) / 1000)

    def _changed_here(self) -> set[str]:
        changed = self._watch.read()
        if changed is None:
            return {""}
        if IGNORE_FILE in changed:
            rules = read_rules(self._folder)
            if rules != self._mirror.rules:
                self._mirror.rules = rules
                return {""}
        # What this process wrote itself needs no question to the enclave.
        return {rel for rel in self._mirror.unsettled(changed) if not self._is_ignored(rel)}

    def _is_ignored(self, rel: str) -> bool:
        above = parent_of(rel)
        return bool(above) and self._mirror.rules.ignores(above, folder=True)

    def _check_folder(self) -> None:
        # An empty folder that is there is a wish; one that was taken away is an accident.
        if os.fstat(self._tree.root).st_nlink == 0:
            raise GatewayError(f"{self._folder} is gone; nothing was removed in the enclave")

    # What came of it

    def _run(self, roots: Iterable[str]) -> None:
        wanted = set(roots)
        now = time.monotonic()
        impatient = frozenset(
            rel
            for rel, pending in self._pending.items()
            if pending.changing and now - pending.since > _PATIENCE_S
        )
        outcome = self._mirror.run(wanted, impatient)
        self._take(wanted, outcome)
        self.progress.entries = len(self._journal)
        self.progress.brought += outcome.brought
        self._report(self.progress)

    def _take(self, roots: set[str], outcome: Outcome) -> None:
        now = time.monotonic()
        everything = "" in roots
        for known in (self.progress.problems, self._pending):
            for rel in [rel for rel in known if everything or _is_below(rel, roots)]:
                if known is self.progress.problems:
                    del self.progress.problems[rel]
        before = self._pending
        self._pending = {
            rel: pending
            for rel, pending in before.items()
            if not (everything or _is_below(rel, roots))
        }
        for rel in outcome.waiting:
            since = before[rel].since if rel in before and before[rel].changing else now
            taken = now - since > _PATIENCE_S
            # One that was taken while it changed is looked at again when it may rest.
            self._pending[rel] = _Pending(now + (1.0 if taken else _SETTLED_S), since, 0, True)
        for rel, reason in outcome.again.items():
            attempts = before[rel].attempts + 1 if rel in before else 1
            if attempts > _MAX_RETRIES:
                outcome.problems[rel] = reason
                outcome.retry.add(rel)
            else:
                due = now + _FIRST_RETRY_S * (2 ** (attempts - 1) - 1)
                self._pending[rel] = _Pending(due, now, attempts)
        self.progress.problems |= outcome.problems
        self._retry = {
            rel for rel in self._retry if not (everything or _is_below(rel, roots))
        } | outcome.retry
        self._retry_problems_at = now + _PROBLEM_RETRY_S

    def _confirm(self) -> None:
        """Tell the enclave which of its changes have come."""
        still: list[Changed] = []
        for event in self._events:
            roots = set(event.rels)
            if any(not roots or _is_below(rel, roots) for rel in self._pending):
                still.append(event)
            else:
                self._remote.confirm(event)
        self._events = still


def _is_below(rel: str, roots: set[str]) -> bool:
    while rel:
        if rel in roots:
            return True
        rel = parent_of(rel)
    return "" in roots
