"""Answers the parent's requests on one workspace stream, and tells it what changed.

One thread: requests are answered in order, and changes are told of when nothing is asked.
"""

import select
import time
from collections.abc import Callable
from itertools import islice
from typing import Final

from enclave_protocol.workspace.blocks import digest_of, sign
from enclave_protocol.workspace.messages import (
    MAX_CHANGED,
    MAX_EVENTS,
    MAX_LISTED,
    MAX_SKIPPED,
    SMALL_FILE_BYTES,
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
    FromParent,
    Hello,
    Listing,
    MakeFolder,
    Move,
    Put,
    Read,
    Ready,
    Refused,
    Remove,
    Result,
    Results,
    Scan,
    SetMeta,
    Sign,
    Skipped,
    Step,
    Synced,
    Welcome,
    Whole,
    WorkspaceError,
)
from enclave_protocol.workspace.names import MAX_REL_CHARS
from enclave_protocol.workspace.scan import scan
from enclave_protocol.workspace.small_files import SmallFiles
from enclave_protocol.workspace.stream import MessageStream, StreamEndedError
from enclave_protocol.workspace.transfer import IncomingFile, pieces, read_small
from enclave_protocol.workspace.tree import Tree, TreeError, reason_for
from enclave_protocol.workspace.watch import TreeWatch

__all__ = ["WorkspaceServer"]

_MAX_EVENT_CHARS: Final = 8 * 1024
_MAX_LISTING_CHARS: Final = 128 * 1024
"""At 4 bytes a character half a message."""
_MAX_OWN: Final = 200_000
_BLIND_POLL_MS: Final = 5000
_LOOK_INTERVAL_S: Final = 0.1
"""The kernel keeps 16 384 events; a stream makes some thousand in this time."""
_MAX_TEXT: Final = 512


class WorkspaceServer:
    """Serves one stream until it ends.

    Args:
        tree: The workspace.
        stream: From the parent.
        workspace: Name of the workspace, for as long as its files exist.
        open_modes: As in `Welcome`.
        chrooted: The workspace is this process's root.
        on_synced: Told whenever nothing is left that the parent has not got.
    """

    def __init__(
        self,
        tree: Tree,
        stream: MessageStream[FromParent],
        *,
        workspace: str,
        open_modes: bool,
        chrooted: bool = False,
        on_synced: Callable[[], None] = lambda: None,
    ) -> None:
        self._tree = tree
        self._stream = stream
        self._workspace = workspace
        self._open_modes = open_modes
        self._chrooted = chrooted
        self._on_synced = on_synced
        self._watch: TreeWatch | None = None
        self._incoming: IncomingFile | None = None
        self._failure: TreeError | None = None
        self._changed: dict[str, None] = {}
        self._doubted: set[str] = set()
        self._everything_changed = False
        self._unsynced: list[int] = []
        self._last_event = 0
        self._own: dict[str, Entry] = {}
        self._room = 0
        self._small = SmallFiles(tree)

    @property
    def is_synced(self) -> bool:
        """Whether the parent has everything that is known to have changed."""
        return not (self._unsynced or self._changed or self._everything_changed)

    def run(self, control: int = -1, on_control: Callable[[], None] = lambda: None) -> None:
        """Serve until the stream ends.

        Args:
            control: A descriptor to look at as well, or -1.
            on_control: Called when it is readable, after all changes so far were seen.

        Raises:
            ProtocolError: The parent broke the protocol.
        """
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        if control >= 0:
            poll.register(control, select.POLLIN)
        watched = -1
        look_at = 0.0
        try:
            while True:
                if watched < 0 and self._watch is not None:
                    watched = self._watch.descriptor
                    poll.register(watched, select.POLLIN)
                blind = self._watch is not None and self._watch.blind
                ready = {number for number, _ in poll.poll(_BLIND_POLL_MS if blind else None)}
                if self._stream.fileno() in ready:
                    self._stream.fill()
                    while (message := self._stream.next()) is not None:
                        self._handle(message)
                elif blind and not ready:
                    self._everything_changed = True
                # Not between two requests that come one upon the other, but in time for the queue.
                busy = self._stream.fileno() in ready and time.monotonic() < look_at
                if control in ready or (watched in ready and not busy):
                    self.look_for_changes()
                    look_at = time.monotonic() + _LOOK_INTERVAL_S
                if control in ready:
                    on_control()
                self._tell()
        except StreamEndedError:
            return
        finally:
            self._drop_incoming()
            if self._watch is not None:
                self._watch.close()

    # Events

    def look_for_changes(self) -> None:
        """Take note of what happened in the workspace until now."""
        changed = self._watch.read() if self._watch is not None else set()
        if changed is None:
            self._everything_changed = True
            return
        closed: set[str] = set()
        if self._watch is not None:
            closed, self._watch.closed = self._watch.closed, closed
        for rel in sorted(closed):
            found = self._look_at(rel)
            # An ordinary writer's time is fresh; a memory map's may be that of its first write.
            if found is not None and found.kind == "file" and not found.fresh:
                self._doubted.add(rel)
        for rel in sorted(changed):
            own = self._own.get(rel)
            if own is not None:
                if own.kind == "file" and self._small.is_still(rel, own):
                    # Our own writing, and nobody's since.
                    continue
                del self._own[rel]
            self._changed[rel] = None
        self._small.close()

    def _look_at(self, rel: str) -> Entry | None:
        try:
            return self._small.look(rel)
        except TreeError:
            return None

    def _tell(self) -> None:
        while not self.is_synced and self._incoming is None:
            if len(self._unsynced) >= MAX_EVENTS:
                return
            if not (self._changed or self._everything_changed):
                return
            rels: list[str] = []
            if self._everything_changed:
                self._everything_changed = False
                self._changed.clear()
            else:
                size = 0
                for rel in islice(self._changed, MAX_CHANGED):
                    size += len(rel)
                    if rels and size > _MAX_EVENT_CHARS:
                        break
                    rels.append(rel)
                for rel in rels:
                    del self._changed[rel]
            self._last_event += 1
            self._unsynced.append(self._last_event)
            doubted = tuple(rel for rel in rels if rel in self._doubted)
            self._doubted.difference_update(doubted)
            self._stream.send(Changed(self._last_event, tuple(rels), doubted))

    # Requests

    def _handle(self, message: FromParent) -> None:
        if self._incoming is not None or self._failure is not None:
            if isinstance(message, Data | Copy | Commit | Abandon):
                self._continue(message)
                return
            if not isinstance(message, Synced):
                raise WorkspaceError("the parent asks for something in the middle of a file")
        match message:
            case Batch(steps):
                self._batch(steps)
            case Begin():
                self._begin(message)
            case Scan(roots):
                self._list(roots)
            case Read():
                self._read(message)
            case Sign(rel, expect) | Digest(rel, expect):
                self._hash(rel, expect, isinstance(message, Sign))
            case Synced(number):
                if number not in self._unsynced:
                    raise WorkspaceError("the parent confirms what it was not told")
                self._unsynced.remove(number)
                if self.is_synced:
                    self._on_synced()
            case Hello(version):
                self._welcome(version)
            case _:
                raise WorkspaceError("the parent sends a piece of no file")

    def _welcome(self, version: int) -> None:
        if self._watch is not None or version != WORKSPACE_VERSION:
            raise WorkspaceError(f"the parent speaks version {version} of the workspace's protocol")
        self._watch = TreeWatch(self._tree, chrooted=self._chrooted)
        self._stream.send(Welcome(WORKSPACE_VERSION, self._workspace, self._open_modes))

    def _list(self, roots: tuple[str, ...]) -> None:
        entries: list[tuple[str, Entry]] = []
        skipped: list[Skipped] = []
        size = 0
        try:
            for rel, found in scan(self._tree, roots):
                if isinstance(found, Entry):
                    entries.append((rel, found))
                else:
                    skipped.append(Skipped(_shown(rel), found[:_MAX_TEXT]))
                size += len(rel)
                full = len(entries) == MAX_LISTED or len(skipped) == MAX_SKIPPED
                if full or size > _MAX_LISTING_CHARS:
                    self._stream.send(Listing(tuple(entries), tuple(skipped), True))
                    entries.clear()
                    skipped.clear()
                    size = 0
        except TreeError as error:
            self._refuse(error)
            return
        self._stream.send(Listing(tuple(entries), tuple(skipped), False))

    def _refuse(self, error: TreeError) -> None:
        self._stream.send(Refused(error.reason, str(error)[:_MAX_TEXT]))

    def _hash(self, rel: str, expect: Entry, blocks: bool) -> None:
        try:
            with self._tree.reading(rel, expect) as descriptor:
                if blocks:
                    answer: object = sign(descriptor, expect.size)
                else:
                    answer = DigestIs(digest_of(descriptor, expect.size))
                self._tree.check_same(descriptor, expect)
        except TreeError as error:
            self._refuse(error)
        else:
            self._stream.send(answer)  # type: ignore[arg-type]

    def _read(self, request: Read) -> None:
        try:
            with self._tree.reading(request.rel, request.expect) as descriptor:
                entry = self._tree.entry(descriptor)
                if entry.size <= SMALL_FILE_BYTES and request.have is None:
                    data = read_small(descriptor, entry.size)
                    self._tree.check_same(descriptor, request.expect)
                    self._stream.send(Whole(entry, memoryview(data)))
                    return
                self._stream.send(Ready(entry))
                for piece in pieces(descriptor, entry.size, request.have):
                    self._stream.send(piece)
                self._tree.check_same(descriptor, request.expect)
                self._stream.send(End())
        except TreeError as error:
            self._refuse(error)

    def _batch(self, steps: tuple[Step, ...]) -> None:
        self._room = self._tree.free_bytes()
        try:
            results = [self._do(step) for step in steps]
        finally:
            self._small.close()
        self._stream.send(Results(tuple(results)))

    def _do(self, step: Step) -> Result:
        try:
            if not isinstance(step, Put):
                self._small.close()
            match step:
                case Put(rel, entry, expect, data):
                    return Result(self._noted(rel, self._put(rel, entry, expect, data)))
                case MakeFolder(rel, mode):
                    return Result(self._tree.make_folder(rel, mode))
                case SetMeta(rel, entry, expect):
                    return Result(self._noted(rel, self._tree.set_meta(rel, entry, expect)))
                case Remove(rel, expect):
                    self._own.pop(rel, None)
                    self._tree.remove(rel, expect)
                    return Result(None)
                case Move(source, target, expect):
                    self._own.pop(source, None)
                    return Result(self._noted(target, self._tree.move(source, target, expect)))
        except OSError as error:
            failed = reason_for(error)
        except TreeError as error:
            failed = error
        return Result(None, Refused(failed.reason, str(failed)[:_MAX_TEXT]))

    def _put(self, rel: str, entry: Entry, expect: Entry | None, data: memoryview) -> Entry:
        if len(data) != entry.size:
            raise WorkspaceError("a file has another size than it is said to have")
        self._room -= len(data)
        if self._room < 0:
            self._room = self._tree.free_bytes()
            self._tree.make_room(len(data))
        return self._small.write(rel, entry, expect, data)

    def _noted(self, rel: str, entry: Entry) -> Entry:
        if len(self._own) >= _MAX_OWN:
            self._own.clear()
        self._own[rel] = entry
        return entry

    # A file that comes in pieces

    def _begin(self, request: Begin) -> None:
        try:
            self._incoming = IncomingFile(self._tree, request.rel, request.entry, request.expect)
        except TreeError as error:
            self._refuse(error)
            return
        self._rel = request.rel
        self._stream.send(Ready())

    def _continue(self, message: Data | Copy | Commit | Abandon) -> None:
        if isinstance(message, Abandon):
            self._drop_incoming()
        elif isinstance(message, Commit):
            self._commit()
        elif self._incoming is not None:
            try:
                self._incoming.take(message)
            except TreeError as error:
                # The rest of it is on its way already: it is told at the end.
                self._drop_incoming()
                self._failure = error

    def _commit(self) -> None:
        result: Result
        try:
            if self._failure is not None:
                raise self._failure
            if self._incoming is None:
                raise WorkspaceError("the parent ends no file")
            result = Result(self._noted(self._rel, self._incoming.commit()))
        except TreeError as error:
            result = Result(None, Refused(error.reason, str(error)[:_MAX_TEXT]))
        self._drop_incoming()
        self._stream.send(Results((result,)))

    def _drop_incoming(self) -> None:
        self._failure = None
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None


def _shown(rel: str) -> str:
    """Return a path as it is, or with escapes if it is no text or too long to travel."""
    try:
        rel.encode()
    except UnicodeEncodeError:
        rel = ascii(rel)[1:-1]
    return rel[:MAX_REL_CHARS]
