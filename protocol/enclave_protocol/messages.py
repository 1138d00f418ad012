"""Messages on the streams between the gateway and the supervisor. Values only, no I/O.

A stream starts with one `Open` message from the gateway. On a channel stream the raw bytes of
one ZeroMQ connection follow. On a control stream TLS follows, in it one `Challenge` and the
enclave's `Attested`, and then both sides send `Envelope`s: requests and replies in either
direction, and events.

Source: docs/spec/control.md.
"""

from typing import Annotated

import msgspec

from enclave_protocol.enclave_usage import EnclaveCounts, VaultInfo
from enclave_protocol.errors import ProtocolError

__all__ = [
    "CHANNELS",
    "MAX_CHALLENGE_BYTES",
    "MAX_CONTROL_BYTES",
    "MAX_OPEN_BYTES",
    "MAX_PENDING_CELLS",
    "PROTOCOL_VERSION",
    "Attest",
    "Attested",
    "Body",
    "Challenge",
    "Credentials",
    "CredentialsRequest",
    "CurveKeys",
    "Done",
    "EgressTicket",
    "EgressWanted",
    "EnclaveStatus",
    "Envelope",
    "Failed",
    "KernelCells",
    "KernelEnded",
    "KernelId",
    "KernelInfo",
    "KernelLaunched",
    "LaunchKernel",
    "MessageError",
    "Open",
    "OpenChannel",
    "OpenControl",
    "OpenEgress",
    "OpenWorkspace",
    "PendingCell",
    "Ping",
    "PinnedKey",
    "PublisherKey",
    "Shutdown",
    "SignalKernel",
    "StatusRequest",
    "decode_attested",
    "decode_challenge",
    "decode_envelope",
    "decode_open",
    "encode",
]

PROTOCOL_VERSION = 4
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
"""The five Jupyter channels in the order of the ports 1 to 5 of an ipc connection file."""

MAX_OPEN_BYTES = 512
"""Limit of the first frame of a stream, read before anything is known about the peer."""
MAX_CHALLENGE_BYTES = 16 * 1024
"""Limit of the frames of challenge and answer: an attestation document has up to 12 KiB."""
MAX_CONTROL_BYTES = 1024 * 1024
"""Limit of a frame on the control stream: the largest is a launch with its environment."""
MAX_PENDING_CELLS = 64
"""Of one kernel that are told of; a front-end that runs a whole notebook asks for all at once."""


class MessageError(ProtocolError):
    """A frame does not hold a message of this protocol."""


KernelId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f][0-9a-f-]{0,62}[0-9a-f]\Z")]
"""What the gateway calls a kernel: lower-case hex and hyphens, so that it is safe in a path."""
_ChannelName = Annotated[str, msgspec.Meta(pattern=r"^(shell|iopub|stdin|control|hb)\Z")]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What all messages share: immutable, no unknown fields, tagged with their type."""


class OpenControl(_Message, frozen=True, tag="open_control"):
    """First frame of a control stream."""

    version: int


class OpenChannel(_Message, frozen=True, tag="open_channel"):
    """First frame of a stream that carries one ZeroMQ connection to one channel of one kernel."""

    kernel_id: KernelId
    channel: _ChannelName


class OpenWorkspace(_Message, frozen=True, tag="open_workspace"):
    """First frame of a workspace stream; what follows is `enclave_protocol.workspace.messages`."""

    version: int


EgressTicket = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""Chosen by the supervisor for one connection; nobody can guess it."""


class OpenEgress(_Message, frozen=True, tag="open_egress"):
    """First frame of a stream that carries one connection to the egress proxy.

    The bytes that follow are HTTP, from the enclave to the gateway.
    """

    ticket: EgressTicket


Open = OpenControl | OpenChannel | OpenEgress | OpenWorkspace


class StatusRequest(_Message, frozen=True, tag="status"):
    """Gateway to supervisor: what runs there?"""


class KernelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel as the supervisor sees it; sizes in bytes, times in seconds.

    Memory and processor are those of the kernel's process and what it started, without its
    vaults; `cpu_percent` is of one processor. None before the first look. `walled`: it found a
    boundary around itself before anything of the user's ran.
    """

    kernel_id: KernelId
    pid: int
    uptime_s: float
    vaults: Annotated[tuple[VaultInfo, ...], msgspec.Meta(max_length=64)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    cpu_percent: Annotated[int, msgspec.Meta(ge=0)] | None = None
    cpu_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    walled: bool = False


class EnclaveStatus(_Message, frozen=True, tag="enclave_status"):
    """Reply to `StatusRequest`. `pcrs` maps the index in decimal to lower-case hex.

    `vaults` is how many there are; at most `MAX_LISTED_VAULTS` of them are listed.
    """

    version: str
    module_id: str
    debug: bool
    uptime_s: float
    pcrs: dict[str, str]
    isolation: tuple[str, ...]
    kernels: Annotated[tuple[KernelInfo, ...], msgspec.Meta(max_length=512)]
    vaults: Annotated[int, msgspec.Meta(ge=0)] = 0
    counts: EnclaveCounts = EnclaveCounts()


class CurveKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The CurveZMQ key pair of one kernel, each Z85 text of 40 characters (ZeroMQ RFC 26 and 32).

    Jupyter's clients use the same pair as the kernel, so even the public key is a secret: whoever
    knows it can connect. It is made on the Jupyter side. `repr` shows neither.
    """

    public_key: Annotated[bytes, msgspec.Meta(min_length=40, max_length=40)]
    secret_key: Annotated[bytes, msgspec.Meta(min_length=40, max_length=40)]

    def __repr__(self) -> str:
        return "CurveKeys(...)"


class LaunchKernel(_Message, frozen=True, tag="launch_kernel"):
    """Gateway to supervisor: start a kernel process. Answered when its five sockets are bound.

    `key` is the Jupyter session's HMAC key (32 bytes and more); `environ` holds only what the
    gateway chose to pass on; `arguments` are command-line options of ipykernel's application.
    With `curve`, the kernel speaks to nobody who does not know the pair.
    `workspace` is the notebook's folder in the workspace, "" for the workspace itself; None: the
    notebook is not in it.
    """

    kernel_id: KernelId
    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=256)]
    signature_scheme: Annotated[str, msgspec.Meta(pattern=r"^hmac-sha(256|384|512)\Z")]
    cwd: _Text
    environ: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=256)]
    arguments: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)] = ()
    curve: CurveKeys | None = None
    workspace: _Text | None = None

    def __repr__(self) -> str:
        return f"LaunchKernel(kernel_id={self.kernel_id!r}, ...)"


class KernelLaunched(_Message, frozen=True, tag="kernel_launched"):
    """Reply to `LaunchKernel`."""

    pid: int


class SignalKernel(_Message, frozen=True, tag="signal_kernel"):
    """Gateway to supervisor: send a signal to the kernel's process group. A dead kernel is fine."""

    kernel_id: KernelId
    signum: Annotated[int, msgspec.Meta(ge=1, le=64)]


class KernelEnded(_Message, frozen=True, tag="kernel_ended"):
    """Event from the supervisor: a kernel process ended.

    `returncode` is as in `subprocess` (negative: the signal); `reason` is for people.
    """

    kernel_id: KernelId
    returncode: int
    reason: str


class PendingCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `execute_request` that a kernel has and has not answered: whose it is, nothing of it.

    `identities` are the ZeroMQ routing ids that lead back to the client, `message_id` and
    `session` those of the request's header. Of what is to be run nothing is told.
    """

    identities: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)], ...],
        msgspec.Meta(min_length=1, max_length=4),
    ]
    message_id: Annotated[str, msgspec.Meta(max_length=256)]
    session: Annotated[str, msgspec.Meta(max_length=256)]


class KernelCells(_Message, frozen=True, tag="kernel_cells"):
    """Event from the supervisor: the cells that a kernel has and has not answered, oldest first.

    All of them, in the place of what was told before. The kernel's own word: a notebook can lie
    about its own cells, and about nobody else's. Sent again with every `enclave_status`.
    """

    kernel_id: KernelId
    cells: Annotated[tuple[PendingCell, ...], msgspec.Meta(max_length=MAX_PENDING_CELLS)]


class CredentialsRequest(_Message, frozen=True, tag="credentials_request"):
    """Supervisor to gateway: AWS credentials for one call to KMS."""


class Credentials(_Message, frozen=True, tag="credentials"):
    """Reply to `CredentialsRequest`. Never stored, never logged; `repr` shows no secret."""

    access_key_id: _Text
    secret_access_key: _Text
    session_token: _Text | None = None

    def __repr__(self) -> str:
        return f"Credentials(access_key_id={self.access_key_id!r}, ...)"


class PublisherKey(_Message, frozen=True, tag="publisher_key"):
    """Supervisor to gateway: which key has this user pinned for a publisher?

    With `pin` the gateway pins this one first, if there is none.
    """

    publisher: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    pin: bool


class PinnedKey(_Message, frozen=True, tag="pinned_key"):
    """Reply to `PublisherKey`: the pinned fingerprint, "" for a publisher that is new."""

    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class EgressWanted(_Message, frozen=True, tag="egress_wanted"):
    """Event from the supervisor: open a stream with this ticket, something waits for the proxy.

    `kernel_id` says which notebook it is for; None: the enclave's own call to KMS.
    """

    ticket: EgressTicket
    kernel_id: KernelId | None = None


class Attest(_Message, frozen=True, tag="attest"):
    """Gateway to supervisor: a document as in answer to `Challenge`, with this nonce."""

    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Challenge(_Message, frozen=True, tag="challenge"):
    """First frame inside TLS: the gateway asks who is there, with a nonce it uses once.

    `gateway` is its public key, and `proof` what it signed for this stream (`gateway_proof`).
    """

    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    gateway: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    proof: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


class Attested(_Message, frozen=True, tag="attested"):
    """Answer to `Challenge`, reply to `Attest`: the document's bytes, as the NSM gave them."""

    document: Annotated[bytes, msgspec.Meta(max_length=0x3000)]


class Ping(_Message, frozen=True, tag="ping"):
    """Gateway to supervisor: are you there? Answered with `Done`."""


class Shutdown(_Message, frozen=True, tag="shutdown"):
    """Gateway to supervisor: end every kernel and vault, then yourself."""


class Done(_Message, frozen=True, tag="done"):
    """Reply to a request that asks for nothing back."""


class Failed(_Message, frozen=True, tag="failed"):
    """Reply to a request that failed. `kind` is the error's class name, `message` one line."""

    kind: _Text
    message: _Text


Body = (
    StatusRequest
    | EnclaveStatus
    | LaunchKernel
    | KernelLaunched
    | SignalKernel
    | KernelEnded
    | KernelCells
    | CredentialsRequest
    | Credentials
    | PublisherKey
    | PinnedKey
    | EgressWanted
    | Attest
    | Attested
    | Ping
    | Shutdown
    | Done
    | Failed
)


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels on the control stream.

    A request has `request_id` > 0, chosen by its sender and unique among its open requests. A
    reply repeats it in `reply_to`. An event has neither.
    """

    body: Body
    request_id: Annotated[int, msgspec.Meta(ge=0)] = 0
    reply_to: Annotated[int, msgspec.Meta(ge=0)] = 0


_encoder = msgspec.msgpack.Encoder()
_open_decoder: msgspec.msgpack.Decoder[Open] = msgspec.msgpack.Decoder(Open)
_challenge_decoder = msgspec.msgpack.Decoder(Challenge)
_attested_decoder = msgspec.msgpack.Decoder(Attested)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(message: Open | Challenge | Attested | Envelope) -> bytes:
    """Return the message as msgpack, without the frame's length."""
    return _encoder.encode(message)


def decode_open(payload: bytes) -> Open:
    """Return the first message of a stream.

    Raises:
        MessageError: It is not one.
    """
    try:
        return _open_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError("the stream does not start with an Open message") from error


def decode_challenge(payload: bytes) -> Challenge:
    """Return the first message inside TLS.

    Raises:
        MessageError: It is not a challenge.
    """
    try:
        return _challenge_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError("the control stream does not start with a Challenge") from error


def decode_attested(payload: bytes) -> Attested:
    """Return the enclave's answer to a challenge.

    Raises:
        MessageError: It is not one, or the document has more than 12 KiB.
    """
    try:
        return _attested_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError("the enclave's answer to the challenge is not one") from error


def decode_envelope(payload: bytes) -> Envelope:
    """Return one message of the control stream.

    Raises:
        MessageError: It is not one, or a field is out of its range.
    """
    try:
        return _envelope_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # The payload may hold credentials or a key: say nothing of what was in it.
        raise MessageError("a frame on the control stream does not hold a message") from error
