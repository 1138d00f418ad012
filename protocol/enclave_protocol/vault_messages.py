"""Messages between a notebook's process and a vault, and between supervisor and vault.

Values only, no I/O. A call frame is a prefix, the sizes of its buffers, one message, and the
buffers as raw bytes; values inside messages are the value codec's. A control frame is an ordinary
frame (`frame.py`) that holds one message.

Source: docs/spec/vault_calls.md.
"""

import struct
from typing import Annotated, Final, Literal

import msgspec

from enclave_protocol.errors import ProtocolError
from enclave_protocol.output_text import MAX_TEXT_CHARS
from enclave_protocol.value_limits import DEFAULT_LIMITS

__all__ = [
    "BODY_CHUNK_BYTES",
    "CALLBACK_ERROR",
    "CALLBACK_TIMEOUT_S",
    "CALL_PREFIX_BYTES",
    "FRACTION_BAR",
    "KEY_BYTES",
    "MAX_BATCH_ITEMS",
    "MAX_CALL_MESSAGE_BYTES",
    "BodyChunk",
    "BodyEnd",
    "Call",
    "CallBack",
    "CallMethod",
    "CallbackFailed",
    "CallbackReturned",
    "Construct",
    "GetAttribute",
    "Items",
    "IteratorOpened",
    "LoadFailed",
    "Loaded",
    "NextItems",
    "Progress",
    "Raised",
    "Refused",
    "Release",
    "Result",
    "SessionMessage",
    "StartVault",
    "Text",
    "VaultFailed",
    "VaultMessage",
    "VaultMessageError",
    "VaultReady",
    "VaultStarted",
    "decode_call_prefix",
    "decode_call_sizes",
    "decode_control",
    "decode_session_message",
    "decode_vault_message",
    "encode_call_head",
    "encode_control",
]

BODY_CHUNK_BYTES: Final = 2 * 1024 * 1024
"""Size of one `BodyChunk`'s buffer: large enough that its message costs nothing."""
KEY_BYTES: Final = 32
"""The data key follows `StartVault` as raw bytes: a message would leave a copy nobody can wipe."""
MAX_CALL_MESSAGE_BYTES: Final = DEFAULT_LIMITS.header_bytes + 64 * 1024
"""The longest value header, and what a message has around it."""
CALLBACK_ERROR: Final = "CallbackError"
"""The `type_name` of a call that raised because a function of the user's did."""
CALLBACK_TIMEOUT_S: Final = 300.0
"""Seconds that a function of the user's may take: until then a call and its vault wait for it."""
MAX_BATCH_ITEMS: Final = 1024
"""Items of an iterator in one frame: then a round trip costs nothing beside them."""
FRACTION_BAR: Final = 0
"""The bar of a call that shows a share from 0 to 1 and counts nothing."""
_MAX_RELEASED: Final = 4096
_MAX_WALLS: Final = 32

_PREFIX: Final = struct.Struct(">II")
CALL_PREFIX_BYTES: Final = _PREFIX.size
_SEALED: Final = 1 << 31
"""Set in the number of buffers when they travel in a sealed memfd."""


class VaultMessageError(ProtocolError):
    """Bytes on a vault's socket are no message, or exceed a limit."""


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Wall = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
_RequestId = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Callbacks = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=16)]
_Value = Annotated[bytes, msgspec.Meta(max_length=DEFAULT_LIMITS.header_bytes)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What all messages share. As arrays: a call is to cost microseconds."""


class BodyChunk(_Message, frozen=True, tag=1):
    """The next bytes of the encrypted file's body; they are the frame's one buffer."""


class BodyEnd(_Message, frozen=True, tag=2):
    """The file is at its end. Answered with `Loaded` or `LoadFailed`."""


class Call(_Message, frozen=True, tag=3):
    """Call an exported function.

    Attributes:
        callbacks: Names of parameters whose arguments, nil among `arguments`, are functions of the
            user's; the vault calls them with `CallBack`.
    """

    request_id: _RequestId
    function: _Name
    arguments: _Value
    callbacks: _Callbacks = ()


class Construct(_Message, frozen=True, tag=4):
    """Make an object of an exported class; the result is its handle."""

    request_id: _RequestId
    class_name: _Name
    arguments: _Value
    callbacks: _Callbacks = ()


class CallMethod(_Message, frozen=True, tag=5):
    """Call a declared method of an object."""

    request_id: _RequestId
    handle: _Number
    method: _Name
    arguments: _Value
    callbacks: _Callbacks = ()


class GetAttribute(_Message, frozen=True, tag=6):
    """Read a declared attribute of an object."""

    request_id: _RequestId
    handle: _Number
    attribute: _Name


class Release(_Message, frozen=True, tag=7):
    """The notebook forgot these objects. Not answered; unknown numbers are ignored."""

    handles: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=_MAX_RELEASED)]


class NextItems(_Message, frozen=True, tag=8):
    """Take the next items of an iterator; answered with `Items`."""

    request_id: _RequestId
    handle: _Number


class CallbackReturned(_Message, frozen=True, tag=9):
    """The user's function returned this value."""

    number: _Number
    value: _Value


class CallbackFailed(_Message, frozen=True, tag=10):
    """The user's function raised, or was not called; what it raised stays with the user.

    Attributes:
        interrupted: The user interrupted it.
    """

    number: _Number
    interrupted: bool


SessionMessage = (
    BodyChunk
    | BodyEnd
    | Call
    | Construct
    | CallMethod
    | GetAttribute
    | Release
    | NextItems
    | CallbackReturned
    | CallbackFailed
)


class Loaded(_Message, frozen=True, tag=21):
    """The whole body verified and the package's module is imported."""


class LoadFailed(_Message, frozen=True, tag=22):
    """Nothing of the package can be used. `kind` is an error class of this project."""

    kind: _Name
    message: _Text


class Result(_Message, frozen=True, tag=23):
    """A call returned this value."""

    request_id: _RequestId
    value: _Value


class Raised(_Message, frozen=True, tag=24):
    """A call raised.

    `type_name` is a built-in exception's or `CALLBACK_ERROR`, never the package's own class.
    `message` is there only where the owner's policy allows it; `incident` stands for everything
    that is not said.
    """

    request_id: _RequestId
    type_name: _Name
    message: Annotated[str, msgspec.Meta(max_length=500)] | None
    incident: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]


class Refused(_Message, frozen=True, tag=25):
    """The vault did not make the call; the message is about the notebook's own data."""

    request_id: _RequestId
    kind: _Name
    message: _Text


class Progress(_Message, frozen=True, tag=26):
    """How far a call is: numbers and nothing else, so that no label of the owner's can come along.

    Attributes:
        bar: Which of the call's bars; `FRACTION_BAR` is the one of `vault.progress`.
        done: How much is done, of `total` if that is known.
        rate: How much of it a second; None where that is not known.
        state: 0 it goes on, 1 it is finished and stays to be seen, 2 it is to be taken away.
    """

    request_id: _RequestId
    bar: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    done: float
    total: float | None
    rate: float | None
    state: Literal[0, 1, 2]


class Text(_Message, frozen=True, tag=27):
    """What a call printed, without escapes and control characters; line feeds and tabs stay.

    `stderr` is that of scripts whose owner shows it.
    """

    request_id: _RequestId
    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
    stream: Literal["stdout", "stderr"] = "stdout"


class IteratorOpened(_Message, frozen=True, tag=28):
    """A call returned an iterator, which stays in the vault under this handle."""

    request_id: _RequestId
    handle: _Number


class Items(_Message, frozen=True, tag=29):
    """The next items of an iterator; none only if it has ended, or an interrupt came.

    Attributes:
        values: One for each item.
        buffer_counts: How many of the frame's buffers are of which item, in the same order.
        ended: There are no more, and the handle is gone.
    """

    request_id: _RequestId
    values: Annotated[tuple[_Value, ...], msgspec.Meta(max_length=MAX_BATCH_ITEMS)]
    buffer_counts: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=MAX_BATCH_ITEMS)]
    ended: bool


class CallBack(_Message, frozen=True, tag=30):
    """Call a function of the user's; answered with `CallbackReturned` or `CallbackFailed`.

    Attributes:
        number: Of this question; a call's are ascending.
        parameter: The one that the function was passed for.
        arguments: A list, with a value for each parameter of the schema, in its order.
    """

    request_id: _RequestId
    number: _Number
    parameter: _Name
    arguments: _Value


VaultMessage = (
    Loaded
    | LoadFailed
    | Result
    | Raised
    | Refused
    | Progress
    | Text
    | IteratorOpened
    | Items
    | CallBack
)


class VaultReady(_Message, frozen=True, tag=41):
    """Vault to supervisor: locked down, empty, waiting.

    `walls` is what its self-check found standing, in words for `enclave status`.
    """

    walls: Annotated[tuple[_Wall, ...], msgspec.Meta(max_length=_MAX_WALLS)] = ()


class StartVault(_Message, frozen=True, tag=42):
    """Supervisor to vault: serve the package with this header. `KEY_BYTES` raw bytes follow.

    `now_ms`: what time it is, in milliseconds since 1970, for policies that expire.
    """

    header: bytes
    now_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class VaultStarted(_Message, frozen=True, tag=43):
    """Vault to supervisor: the header is sound and the key is taken; the body may come."""


class VaultFailed(_Message, frozen=True, tag=44):
    """Vault to supervisor: it will end. `kind` is an error class of this project."""

    kind: _Name
    message: _Text


ControlMessage = VaultReady | StartVault | VaultStarted | VaultFailed

_encoder: Final = msgspec.msgpack.Encoder()
_session_decoder: msgspec.msgpack.Decoder[SessionMessage] = msgspec.msgpack.Decoder(SessionMessage)
_vault_decoder: msgspec.msgpack.Decoder[VaultMessage] = msgspec.msgpack.Decoder(VaultMessage)
_control_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)


def encode_call_head(
    message: msgspec.Struct,
    buffers: tuple[memoryview, ...] = (),
    *,
    sealed: bool = False,
    file_bytes: int | None = None,
) -> bytes:
    """Return what goes in front of `buffers`: prefix, their sizes in bytes, and the message.

    Args:
        message: The frame's message.
        buffers: The frame's buffers; they are not part of what is returned.
        sealed: Whether they travel in one sealed memfd, and not in the stream.
        file_bytes: Size of the one buffer that comes from a file, in place of `buffers`.
    """
    payload = _encoder.encode(message)
    lengths = list(map(len, buffers)) if file_bytes is None else [file_bytes]
    sizes = b"".join(length.to_bytes(8, "big") for length in lengths)
    count = len(lengths) | _SEALED if sealed else len(lengths)
    return _PREFIX.pack(len(payload), count) + sizes + payload


def decode_call_prefix(prefix: bytes | bytearray | memoryview) -> tuple[int, int, bool]:
    """Return the message's length in bytes, the number of buffers, and if they are in a memfd.

    Args:
        prefix: At least `CALL_PREFIX_BYTES` bytes; more are ignored.

    Raises:
        VaultMessageError: One of them is over its limit: nothing is to be read for it.
    """
    length, buffers = _PREFIX.unpack_from(prefix)
    sealed = bool(buffers & _SEALED)
    buffers &= ~_SEALED
    if sealed and not buffers:
        raise VaultMessageError("a memfd was announced for no buffers")
    if length > MAX_CALL_MESSAGE_BYTES or buffers > DEFAULT_LIMITS.buffers:
        raise VaultMessageError(
            f"a message of {length} bytes with {buffers} buffers was announced, at most "
            f"{MAX_CALL_MESSAGE_BYTES} and {DEFAULT_LIMITS.buffers} fit"
        )
    return length, buffers, sealed


def decode_call_sizes(data: bytes | bytearray | memoryview, max_bulk_bytes: int) -> tuple[int, ...]:
    """Return the sizes of a frame's buffers.

    Args:
        data: The sizes, 8 bytes each, big-endian.
        max_bulk_bytes: What the buffers may have together.

    Raises:
        VaultMessageError: They have more: nothing is to be allocated for them.
    """
    sizes = struct.unpack(f">{len(data) // 8}Q", data)
    if sum(sizes) > max_bulk_bytes:
        raise VaultMessageError(
            f"buffers of {sum(sizes)} bytes were announced, at most {max_bulk_bytes} fit"
        )
    return sizes


def decode_session_message(payload: bytes | memoryview) -> SessionMessage:
    """Return a message that a notebook's process sent.

    Raises:
        VaultMessageError: It is none.
    """
    try:
        return _session_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise VaultMessageError("a frame from the notebook holds no message") from None


def decode_vault_message(payload: bytes | memoryview) -> VaultMessage:
    """Return a message that a vault sent to a notebook's process.

    Raises:
        VaultMessageError: It is none.
    """
    try:
        return _vault_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise VaultMessageError("a frame from the vault holds no message") from None


def encode_control(message: ControlMessage) -> bytes:
    """Return a message of the control socket, without the frame's length."""
    return _encoder.encode(message)


def decode_control(payload: bytes) -> ControlMessage:
    """Return a message of the control socket.

    Raises:
        VaultMessageError: It is none.
    """
    try:
        return _control_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise VaultMessageError("a frame on a vault's control socket holds no message") from None
