"""Messages of a workspace stream. Values only, no I/O.

The parent asks, the enclave's end answers every request in order, and tells of changes in between.
Each message is a frame (docs/spec/frame.md) of at most `MAX_MESSAGE_BYTES`.

Source: docs/spec/workspace.md, "Messages".
"""

from typing import Annotated, Final, Literal

import msgspec

from enclave_protocol.errors import ProtocolError

__all__ = [
    "DATA_BYTES",
    "MAX_BATCH",
    "MAX_BATCHES",
    "MAX_CHANGED",
    "MAX_EVENTS",
    "MAX_FILE_BYTES",
    "MAX_LISTED",
    "MAX_MESSAGE_BYTES",
    "MAX_ROOTS",
    "MAX_SKIPPED",
    "SMALL_FILE_BYTES",
    "WORKSPACE_VERSION",
    "Abandon",
    "Batch",
    "Begin",
    "Changed",
    "Commit",
    "Copy",
    "Data",
    "Digest",
    "DigestIs",
    "End",
    "Entry",
    "FromEnclave",
    "FromParent",
    "Hello",
    "Kind",
    "Listing",
    "MakeFolder",
    "Move",
    "Put",
    "Read",
    "Ready",
    "Reason",
    "Refused",
    "Remove",
    "Result",
    "Results",
    "Scan",
    "SetMeta",
    "Sign",
    "Signature",
    "Skipped",
    "Step",
    "Synced",
    "Welcome",
    "Whole",
    "WorkspaceError",
    "decode_from_enclave",
    "decode_from_parent",
    "encode_into",
]

WORKSPACE_VERSION: Final = 1
DATA_BYTES: Final = 512 * 1024
"""Of a file in one message."""
MAX_BATCHES: Final = 6
"""On their way at a time. Their results, 40 bytes a step, fit into a socket's buffer together."""
SMALL_FILE_BYTES: Final = 128 * 1024
"""A file up to this size travels whole, in a batch with others."""
MAX_MESSAGE_BYTES: Final = 1024 * 1024 + 64 * 1024
MAX_FILE_BYTES: Final = 2**42
"""4 TiB: over any enclave's memory, and no arithmetic on it overflows."""
MAX_ROOTS: Final = 1024
MAX_BATCH: Final = 512
MAX_LISTED: Final = 2048
"""Entries in one `Listing`: with names of ordinary length well under a message."""
MAX_SKIPPED: Final = 256
MAX_EVENTS: Final = 4
MAX_CHANGED: Final = 256
"""Paths in one event. With `MAX_EVENTS`: what is not asked for always fits into a socket's buffer,
so that two ends that send at once never wait for each other."""
_HASH_BYTES: Final = 32
_MAX_SIGNED_BLOCKS: Final = 16384


class WorkspaceError(ProtocolError):
    """The peer of a workspace stream broke its protocol."""


Kind = Literal["file", "folder"]
Reason = Literal["changed", "full", "name", "special", "denied", "occupied", "failed"]
"""Why something was not done: it is not as expected any more; no room; the name may not travel;
it is no plain file or folder; permissions; a folder is not empty, or a file is in the way; else."""

_Rel = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
_Root = Annotated[str, msgspec.Meta(max_length=2048)]
_Text = Annotated[str, msgspec.Meta(max_length=512)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
# Years 1823 to 2116.
_Nanoseconds = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
_Inode = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A file or folder as found.

    `inode` tells a renamed file from a new one, on one side. `fresh`: it changed so recently that
    another change might not show in its time (`tree.SETTLED_NS`). A folder has size and time 0.
    """

    kind: Kind
    size: _Size
    mtime_ns: _Nanoseconds
    mode: _Mode
    inode: _Inode = 0
    fresh: bool = False

    def same_state(self, other: "Entry | None") -> bool:
        """Say whether the other is alike in kind, size, time and mode."""
        return (
            other is not None
            and self.mtime_ns == other.mtime_ns
            and self.size == other.size
            and self.mode == other.mode
            and self.kind == other.kind
        )


class _Message(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag_field="type",
    gc=False,
):
    """What all messages share."""


# From the parent. `expect` is how the parent saw it; what is not so any more stays untouched.


class Hello(_Message, frozen=True, tag="hello"):
    """First message of the parent; answered with `Welcome`."""

    version: int


class Scan(_Message, frozen=True, tag="scan"):
    """What is at these paths and below; "" is everything. Answered with `Listing`s."""

    roots: Annotated[tuple[_Root, ...], msgspec.Meta(max_length=MAX_ROOTS)]


class Signature(_Message, frozen=True, tag="signature"):
    """SHA-256 of every block of a file, the last one perhaps shorter."""

    block_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE_BYTES)]
    digests: Annotated[bytes, msgspec.Meta(max_length=_MAX_SIGNED_BLOCKS * _HASH_BYTES)]


class Read(_Message, frozen=True, tag="read"):
    """A file, please: answered with `Whole` if it is small; else with `Ready`, `Data` and `Copy`,
    then `End`; or `Refused`, at any point.

    With `have`, blocks that are the same are not sent, but said to be copied. One that is
    expected to be `fresh` may change all the while: `Ready` says what it was at the start.
    """

    rel: _Rel
    expect: Entry
    have: Signature | None = None


class Sign(_Message, frozen=True, tag="sign"):
    """Answered with a file's `Signature`, or `Refused`."""

    rel: _Rel
    expect: Entry


class Digest(_Message, frozen=True, tag="digest"):
    """Answered with `DigestIs` of a file, or `Refused`."""

    rel: _Rel
    expect: Entry


class Put(_Message, frozen=True, tag="put"):
    """A whole file of at most `SMALL_FILE_BYTES`."""

    rel: _Rel
    entry: Entry
    expect: Entry | None
    data: Annotated[memoryview, msgspec.Meta(max_length=SMALL_FILE_BYTES)]


class MakeFolder(_Message, frozen=True, tag="folder"):
    """A folder; one that is there already gets the mode."""

    rel: _Rel
    mode: _Mode


class SetMeta(_Message, frozen=True, tag="meta"):
    """Time and mode of a file, mode of a folder, as in `entry`."""

    rel: _Rel
    entry: Entry
    expect: Entry


class Remove(_Message, frozen=True, tag="remove"):
    """Remove a file, or a folder that is empty."""

    rel: _Rel
    expect: Entry


class Move(_Message, frozen=True, tag="move"):
    """Rename a file or folder to a name that is free."""

    source: _Rel
    target: _Rel
    expect: Entry


Step = Put | MakeFolder | SetMeta | Remove | Move


class Batch(_Message, frozen=True, tag="batch"):
    """Steps, done in order; one that fails keeps none of the others. Answered with `Results`."""

    steps: Annotated[tuple[Step, ...], msgspec.Meta(max_length=MAX_BATCH)]


class Begin(_Message, frozen=True, tag="begin"):
    """A file of any size begins: answered with `Ready` or `Refused`.

    After `Ready` come `Data` and `Copy` (from the file that is there, as `expect` says), then
    `Commit`, answered with `Results`; or `Abandon`, not answered. What neither fills is a hole.
    """

    rel: _Rel
    entry: Entry
    expect: Entry | None


class Data(_Message, frozen=True, tag="data"):
    """Bytes of the file that travels, in ascending order of offsets."""

    offset: _Size
    data: Annotated[memoryview, msgspec.Meta(max_length=DATA_BYTES)]


class Copy(_Message, frozen=True, tag="copy"):
    """The same bytes as at this place of the file that the receiver has."""

    offset: _Size
    size: _Size


class Commit(_Message, frozen=True, tag="commit"):
    """The file that travels is whole."""


class Abandon(_Message, frozen=True, tag="abandon"):
    """It changed while it travelled: forget it."""


class Synced(_Message, frozen=True, tag="synced"):
    """What the `Changed` of this number told of is on the parent's disk, or cannot come there."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


FromParent = (
    Hello | Scan | Read | Sign | Digest | Batch | Begin | Data | Copy | Commit | Abandon | Synced
)


# From the enclave's end.


class Welcome(_Message, frozen=True, tag="welcome"):
    """Reply to `Hello`.

    `workspace` names this workspace for as long as its files exist. `open_modes`: groups and
    others have the owner's permissions in there, for want of mounts that map users.
    """

    version: int
    workspace: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    open_modes: bool


class Skipped(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Something that is there and does not travel, and why, for people."""

    rel: _Root
    reason: _Text


class Listing(_Message, frozen=True, tag="listing"):
    """Part of the answer to `Scan`; `more` follow, or it is the last one."""

    entries: Annotated[tuple[tuple[_Rel, Entry], ...], msgspec.Meta(max_length=MAX_LISTED)]
    skipped: Annotated[tuple[Skipped, ...], msgspec.Meta(max_length=MAX_SKIPPED)]
    more: bool


class DigestIs(_Message, frozen=True, tag="digest_is"):
    """SHA-256 of a file."""

    digest: Annotated[bytes, msgspec.Meta(min_length=_HASH_BYTES, max_length=_HASH_BYTES)]


class Whole(_Message, frozen=True, tag="whole"):
    """A small file that was read, as `entry` says."""

    entry: Entry
    data: Annotated[memoryview, msgspec.Meta(max_length=SMALL_FILE_BYTES)]


class End(_Message, frozen=True, tag="end"):
    """The file that was read is whole, and was the same all the while if it was to be."""


class Ready(_Message, frozen=True, tag="ready"):
    """To `Begin`: there is room. To `Read`: the file is like this, and follows."""

    entry: Entry | None = None


class Refused(_Message, frozen=True, tag="refused"):
    """Not done. `text` is for people."""

    reason: Reason
    text: _Text


class Result(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a step left at its path (a `Move`: at the target), or why it was not done."""

    entry: Entry | None
    refused: Refused | None = None


class Results(_Message, frozen=True, tag="results"):
    """One for each step of a `Batch`; one for a `Commit`."""

    items: Annotated[tuple[Result, ...], msgspec.Meta(max_length=MAX_BATCH)]


class Changed(_Message, frozen=True, tag="changed"):
    """Event: look at these paths again, with all that is below; answered with `Synced`.

    () means everything: it is not known what changed. Those in `doubted` were written to in a way
    that may have left no trace in their state. At most `MAX_EVENTS` wait for an answer.
    """

    number: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    rels: Annotated[tuple[_Root, ...], msgspec.Meta(max_length=MAX_CHANGED)]
    doubted: Annotated[tuple[_Root, ...], msgspec.Meta(max_length=MAX_CHANGED)] = ()


FromEnclave = (
    Welcome
    | Listing
    | Signature
    | DigestIs
    | Data
    | Copy
    | End
    | Ready
    | Refused
    | Results
    | Whole
    | Changed
)

_encoder = msgspec.msgpack.Encoder()
_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)
_from_enclave: msgspec.msgpack.Decoder[FromEnclave] = msgspec.msgpack.Decoder(FromEnclave)


def encode_into(message: FromParent | FromEnclave, buffer: bytearray, offset: int) -> None:
    """Write the message as msgpack to `buffer` from `offset` on; it gets as long as needed."""
    _encoder.encode_into(message, buffer, offset)


def decode_from_parent(payload: bytes | memoryview) -> FromParent:
    """Return a message of the parent's; bytes in it are views of `payload`.

    Raises:
        WorkspaceError: It is none, or a field is out of its range.
    """
    try:
        return _from_parent.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WorkspaceError("the parent sent a frame that holds no workspace message") from error


def decode_from_enclave(payload: bytes | memoryview) -> FromEnclave:
    """Return a message of the enclave's; bytes in it are views of `payload`.

    Raises:
        WorkspaceError: It is none, or a field is out of its range.
    """
    try:
        return _from_enclave.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WorkspaceError("the enclave sent a frame that holds no workspace message") from error
