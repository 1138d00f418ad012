"""What both sides had in common at each path when they last agreed: on disk, for the next start.

An append-only file of frames. Before a file is written to one side, what it is to be there is noted
as intended: whoever is killed between writing and noting finds out which of the two it is.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from enclave_protocol.errors import ProtocolError
from enclave_protocol.frame import FrameDecoder
from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import parent_of

__all__ = ["Base", "Journal", "Side"]

Side = Literal["local", "remote"]
_LENGTH: Final = struct.Struct(">I")
_COMPACT_BYTES: Final = 64 * 1024 * 1024
_MAX_RECORD_BYTES: Final = 64 * 1024


class Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One path as both sides had it; `fresh` in an entry: taken while it changed."""

    local: Entry
    remote: Entry


class _Header(msgspec.Struct, frozen=True, array_like=True, tag="workspace"):
    version: int
    workspace: str
    folder: str


class _Agreed(msgspec.Struct, frozen=True, array_like=True, tag="agreed", gc=False):
    rel: str
    base: Base


class _Intended(msgspec.Struct, frozen=True, array_like=True, tag="intended", gc=False):
    rel: str
    base: Base
    target: Side


class _Dropped(msgspec.Struct, frozen=True, array_like=True, tag="dropped", gc=False):
    rel: str


_Record = _Header | _Agreed | _Intended | _Dropped
_VERSION: Final = 1
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Record)


class Journal:
    """The agreements between one folder and one enclave's workspace.

    Args:
        path: The file; made when it is not there.
        workspace: Name of the enclave's workspace: what an earlier one had is forgotten, or its
            end would look as if everything had been deleted.
        folder: The folder on the parent, by its real path.
    """

    def __init__(self, path: Path, workspace: str, folder: str) -> None:
        self._path = path
        self._header = _Header(_VERSION, workspace, folder)
        self._bases: dict[str, Base] = {}
        self._intended: dict[str, _Intended] = {}
        self._below: dict[str, set[str]] = {}
        self._unwritten = bytearray()
        self._file_bytes = 0
        self._load()
        self._descriptor = -1
        self.compact()

    def __len__(self) -> int:
        return len(self._bases)

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        # Killed while writing: what is whole counts.
        try:
            records = [_decoder.decode(raw) for raw in FrameDecoder(_MAX_RECORD_BYTES).feed(data)]
        except (msgspec.MsgspecError, ValueError, ProtocolError):
            return
        if not records or records[0] != self._header:
            return
        for record in records[1:]:
            if isinstance(record, _Agreed):
                self._set(record.rel, record.base)
            elif isinstance(record, _Intended):
                self._intended[record.rel] = record
            elif isinstance(record, _Dropped):
                self._drop(record.rel)

    def compact(self) -> None:
        """Write the file anew, without what does not count any more."""
        self._unwritten.clear()
        self._append(self._header)
        for rel, base in self._bases.items():
            self._append(_Agreed(rel, base))
        for intended in self._intended.values():
            self._append(intended)
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file_bytes = 0
        previous, self._descriptor = self._descriptor, descriptor
        if previous >= 0:
            os.close(previous)
        self.flush()
        temporary.replace(self._path)

    def _append(self, record: _Record) -> None:
        encoded = _encoder.encode(record)
        self._unwritten += _LENGTH.pack(len(encoded))
        self._unwritten += encoded

    def flush(self) -> None:
        """Hand everything noted so far to the system: it outlives this process."""
        view = memoryview(bytes(self._unwritten))
        self._unwritten.clear()
        self._file_bytes += len(view)
        while view:
            view = view[os.write(self._descriptor, view) :]
        if self._file_bytes > _COMPACT_BYTES + 400 * len(self._bases):
            self._file_bytes = 0
            self.compact()

    def close(self) -> None:
        """Write the rest and close."""
        self.compact()
        os.close(self._descriptor)

    def get(self, rel: str) -> Base | None:
        """Return what was agreed on at a path."""
        return self._bases.get(rel)

    def settle(self, rel: str, local: Entry | None, remote: Entry | None) -> Base | None:
        """Return what was agreed on, after finding out what became of an intention.

        Args:
            rel: The path.
            local: What is there now.
            remote: The same.
        """
        intended = self._intended.pop(rel, None)
        if intended is not None:
            found, wanted = (
                (local, intended.base.local)
                if intended.target == "local"
                else (remote, intended.base.remote)
            )
            if wanted.same_state(found):
                self.agree(rel, intended.base)
        return self._bases.get(rel)

    def intend(self, rel: str, local: Entry, remote: Entry, target: Side) -> None:
        """Note what a path is going to be on the `target` side."""
        self._append(_Intended(rel, Base(local, remote), target))

    def agree(self, rel: str, base: Base) -> None:
        """Note what both sides have."""
        self._set(rel, base)
        self._append(_Agreed(rel, base))

    def _set(self, rel: str, base: Base) -> None:
        self._intended.pop(rel, None)
        if rel not in self._bases:
            self._below.setdefault(parent_of(rel), set()).add(rel)
        self._bases[rel] = base

    def drop(self, rel: str) -> None:
        """Note that neither side has it."""
        if rel in self._bases:
            self._drop(rel)
            self._append(_Dropped(rel))

    def _drop(self, rel: str) -> None:
        self._intended.pop(rel, None)
        if self._bases.pop(rel, None) is not None:
            above = self._below[parent_of(rel)]
            above.discard(rel)
            if not above:
                del self._below[parent_of(rel)]

    def under(self, root: str) -> Iterator[str]:
        """Yield every path that is known at `root` and below; "" is everything."""
        if not root:
            yield from list(self._bases)
            return
        waiting = [root]
        while waiting:
            rel = waiting.pop()
            if rel in self._bases:
                yield rel
            waiting += self._below.get(rel, ())

    def siblings(self, folder: str) -> set[str]:
        """Return the paths that are known right below a folder."""
        return self._below.get(folder, set())
