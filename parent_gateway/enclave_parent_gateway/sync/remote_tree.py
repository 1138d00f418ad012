"""The enclave's workspace as the parent sees it: requests out, checked answers in.

Nothing that comes back is believed beyond what it can do: names are checked again, sizes are those
that were asked for, and nothing is written here but by `IncomingFile`, below the root.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from enclave_protocol.workspace.messages import (
    MAX_EVENTS,
    MAX_ROOTS,
    WORKSPACE_VERSION,
    Abandon,
    Batch,
    Begin,
    Changed,
    Commit,
    Copy,
    Data,
    Digest,
    DigestIs,
    End,
    Entry,
    FromEnclave,
    Hello,
    Listing,
    Read,
    Ready,
    Refused,
    Result,
    Results,
    Scan,
    Sign,
    Signature,
    Skipped,
    Step,
    Synced,
    Welcome,
    Whole,
    WorkspaceError,
)
from enclave_protocol.workspace.names import NameRefusedError, check_rel
from enclave_protocol.workspace.scan import MAX_ENTRIES
from enclave_protocol.workspace.small_files import SmallFiles
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.transfer import IncomingFile, pieces
from enclave_protocol.workspace.tree import Tree, TreeError

__all__ = ["RemoteTree", "Wanted"]

Wanted = Callable[[Entry], tuple[Entry, Entry | None]]
_Answer = TypeVar("_Answer")
_MAX_KEPT_SKIPPED: Final = 10_000


class RemoteTree:
    """Asks the enclave's end.

    Args:
        stream: To it.

    Attributes:
        workspace: Name of the workspace, as it says.
        open_modes: See `Welcome`.
        events: Changes it told of, to be confirmed.
        moved: Told of the bytes of large files as they go by, either way.
    """

    def __init__(self, stream: MessageStream[FromEnclave]) -> None:
        self.stream = stream
        self.events: deque[Changed] = deque()
        self.moved: Callable[[int], None] = _nobody
        self._waiting: deque[int] = deque()
        stream.send(Hello(WORKSPACE_VERSION))
        welcome = self._answer(Welcome)
        if welcome.version != WORKSPACE_VERSION:
            raise WorkspaceError(f"the enclave speaks version {welcome.version} of the protocol")
        self.workspace = welcome.workspace
        self.open_modes = welcome.open_modes

    def _next(self) -> FromEnclave:
        """Return the next message that is no event."""
        while True:
            message = self.stream.receive()
            if not isinstance(message, Changed):
                return message
            self._note(message)

    def _note(self, event: Changed) -> None:
        if len(self.events) >= MAX_EVENTS:
            raise WorkspaceError("the enclave tells of more changes at once than it may")
        for rel in (*event.rels, *event.doubted):
            _checked(rel)
        self.events.append(event)

    def take_events(self, *, read: bool = True) -> None:
        """Take note of what the enclave says without being asked.

        Args:
            read: There is something to be read; else only what was read already is looked at.
        """
        if read:
            self.stream.fill()
        while (message := self.stream.next()) is not None:
            if not isinstance(message, Changed):
                raise WorkspaceError("the enclave answers without being asked")
            self._note(message)

    def confirm(self, event: Changed) -> None:
        """Say that what an event told of has come."""
        self.stream.send(Synced(event.number))

    def _answer(self, kind: type[_Answer]) -> _Answer:
        message = self._next()
        if isinstance(message, kind):
            return message
        if isinstance(message, Refused):
            raise TreeError(message.reason, message.text)
        raise WorkspaceError(f"the enclave answers with {type(message).__name__}")

    def scan(self, roots: Iterable[str]) -> tuple[dict[str, Entry], list[Skipped]]:
        """Return what is at these paths and below, and what of it does not travel.

        Raises:
            TreeError: There is too much of it.
            ProtocolError: The answer is none, or the stream ended.
        """
        entries: dict[str, Entry] = {}
        skipped: list[Skipped] = []
        wanted = tuple(roots)
        listed = 0
        for start in range(0, len(wanted), MAX_ROOTS):
            part = wanted[start : start + MAX_ROOTS]
            self.stream.send(Scan(part))
            everything, exact = "" in part, frozenset(part)
            more = True
            while more:
                listing = self._answer(Listing)
                more = listing.more
                if more and not (listing.entries or listing.skipped):
                    raise WorkspaceError("the enclave lists nothing, and more of it")
                listed += len(listing.entries) + len(listing.skipped)
                skipped += listing.skipped[: _MAX_KEPT_SKIPPED - len(skipped)]
                for rel, entry in listing.entries:
                    _checked(rel)
                    if not everything and not _is_below(rel, exact):
                        raise WorkspaceError("the enclave lists what it was not asked for")
                    entries[rel] = entry
                if listed > MAX_ENTRIES:
                    raise TreeError("full", f"it has more than {MAX_ENTRIES} files and folders")
        return entries, skipped

    # Steps

    def send_steps(self, steps: Iterable[Step]) -> None:
        """Have steps done; `results` returns what became of the earliest that were sent.

        At most `MAX_BATCHES` may wait, so that two ends that send never wait for each other.
        """
        batch = Batch(tuple(steps))
        self._waiting.append(len(batch.steps))
        self.stream.send(batch)

    def results(self) -> tuple[Result, ...]:
        """Return the results of the oldest batch that waits for them."""
        items = self._answer(Results).items
        if len(items) != self._waiting.popleft():
            raise WorkspaceError("the enclave answers more or less than it was asked")
        return items

    def do(self, step: Step) -> Entry | None:
        """Have one step done; return what it left.

        Raises:
            TreeError: It was not done.
        """
        self.send_steps((step,))
        (result,) = self.results()
        if result.refused is not None:
            raise TreeError(result.refused.reason, result.refused.text)
        return result.entry

    # Files

    def digest(self, rel: str, expect: Entry) -> bytes:
        """Return the SHA-256 of a file there.

        Raises:
            TreeError: It changed, or cannot be read.
        """
        self.stream.send(Digest(rel, expect))
        return self._answer(DigestIs).digest

    def sign(self, rel: str, expect: Entry) -> Signature:
        """Return the signature of a file there.

        Raises:
            TreeError: It changed, or cannot be read.
        """
        self.stream.send(Sign(rel, expect))
        return self._answer(Signature)

    def push(
        self,
        rel: str,
        descriptor: int,
        wanted: Entry,
        expect: Entry | None,
        *,
        have: Signature | None,
        still: Callable[[int], None],
    ) -> Entry:
        """Send a file of any size; return what it became there.

        Args:
            rel: Its place.
            descriptor: Our file.
            wanted: Its size, and what else it is to be there.
            expect: What is in its place there.
            have: Signature of that.
            still: Raises when our file changed meanwhile.

        Raises:
            TreeError: There is no room, its place is not as expected, or it changed.
        """
        self.stream.send(Begin(rel, wanted, expect))
        self._answer(Ready)
        try:
            for piece in pieces(descriptor, wanted.size, have):
                self.stream.send(piece)
                self.moved(_length(piece))
            still(descriptor)
        except (TreeError, OSError):
            self.stream.send(Abandon())
            raise
        self.stream.send(Commit())
        (result,) = self._answer(Results).items
        if result.refused is not None or result.entry is None:
            refused = result.refused or Refused("failed", "it is not there")
            raise TreeError(refused.reason, refused.text)
        return result.entry

    def ask_for(self, rel: str, expect: Entry, have: Signature | None = None) -> None:
        """Ask for a file; `receive` takes it. Several may be asked for before."""
        self.stream.send(Read(rel, expect, have))

    def receive(
        self, tree: Tree, small: SmallFiles, rel: str, expect: Entry, wanted: Wanted
    ) -> tuple[Entry, Entry]:
        """Take the file that was asked for first, and put it into its place here.

        Args:
            tree: Ours.
            small: Of it.
            rel: Its place.
            expect: As it was when asked for.
            wanted: Says what it is to be here, and what is in its place.

        Returns:
            What it was there, and what it is here.

        Raises:
            TreeError: It changed or cannot be read there, or cannot be written here.
            WorkspaceError: What comes is not that file.
        """
        message = self._next()
        if isinstance(message, Refused):
            raise TreeError(message.reason, message.text)
        if isinstance(message, Whole):
            found = _as_expected(message.entry, expect)
            if len(message.data) != found.size:
                raise WorkspaceError("a file has another size than it is said to have")
            entry, in_place = wanted(found)
            return found, small.write(rel, entry, in_place, message.data)
        if not isinstance(message, Ready) or message.entry is None:
            raise WorkspaceError(f"the enclave sends {type(message).__name__} for a file")
        found = _as_expected(message.entry, expect)
        incoming: IncomingFile | None = None
        failure: TreeError | None = None
        try:
            entry, in_place = wanted(found)
            incoming = IncomingFile(tree, rel, entry, in_place)
        except TreeError as error:
            # The file is on its way already: it is read to its end.
            failure = error
        try:
            position = 0
            while not isinstance(piece := self._next(), End):
                if isinstance(piece, Refused):
                    raise TreeError(piece.reason, piece.text)
                if not isinstance(piece, Data | Copy):
                    raise WorkspaceError(f"the enclave sends {type(piece).__name__} for a file")
                if piece.offset < position or piece.offset >= found.size:
                    raise WorkspaceError("the enclave sends more of a file than there is")
                position = piece.offset + 1
                self.moved(_length(piece))
                if incoming is not None and failure is None:
                    try:
                        incoming.take(piece)
                    except TreeError as error:
                        failure = error
            if failure is not None or incoming is None:
                raise failure or TreeError("failed", "it cannot be written")
            return found, incoming.commit()
        finally:
            if incoming is not None:
                incoming.abandon()


def _as_expected(found: Entry, expect: Entry) -> Entry:
    if found.kind != "file" or not (expect.fresh or found.same_state(expect)):
        raise WorkspaceError("the enclave sends another file than it was asked for")
    return found


def _checked(rel: str) -> None:
    try:
        check_rel(rel)
    except NameRefusedError as error:
        raise WorkspaceError(f"the enclave sends a name that may not travel: {error}") from error


def _is_below(rel: str, roots: frozenset[str]) -> bool:
    while rel:
        if rel in roots:
            return True
        rel = rel.rpartition("/")[0]
    return False


def _length(piece: Data | Copy) -> int:
    return len(piece.data) if isinstance(piece, Data) else piece.size


def _nobody(size: int) -> None:
    """Nobody wants to know."""
    del size
