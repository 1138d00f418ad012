"""What provisioner and CLI ask the gateway, over `gateway.sock`: values only, no I/O.

One request and one reply per connection, each a frame (`enclave_protocol.frame`) of msgpack. A
client that hangs up before the reply withdraws its request. Requests that the supervisor answers
itself are those of `enclave_protocol.messages`.
"""

from typing import Annotated

import msgspec

from enclave_parent_gateway.egress.allowlist import MAX_RULES, Rule
from enclave_parent_gateway.errors import GatewayError
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    Attest,
    CurveKeys,
    Done,
    EnclaveStatus,
    Failed,
    KernelId,
    Shutdown,
    StatusRequest,
)

__all__ = [
    "MAX_API_BYTES",
    "ChangeEgress",
    "ChannelAttested",
    "ChannelTraffic",
    "EgressRules",
    "EgressStatus",
    "ForgetKernel",
    "GatewayStatus",
    "HoldSlot",
    "KeepRunning",
    "KernelState",
    "Launch",
    "Launched",
    "PollKernel",
    "Reply",
    "Request",
    "SignalSlot",
    "Slot",
    "SlotStatus",
    "WaitKernel",
    "decode_reply",
    "decode_request",
    "encode_message",
]

MAX_API_BYTES = MAX_CONTROL_BYTES

Slot = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f][0-9a-f-]{0,15}[0-9a-f]\Z")]
"""What Jupyter calls a kernel. It stays over restarts, and so do the channels' sockets; every
kernel process that runs in it has a `KernelId` of its own."""
_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What all messages share."""


class Launch(_Message, frozen=True, tag="launch"):
    """Start a kernel in the slot; one that still runs there is killed first.

    The limits are those of `enclave_protocol.messages.LaunchKernel`.
    """

    slot: Slot
    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=256)]
    signature_scheme: Annotated[str, msgspec.Meta(pattern=r"^hmac-sha(256|384|512)\Z")]
    cwd: _Text
    environ: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=256)]
    arguments: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)] = ()
    curve: CurveKeys | None = None

    def __repr__(self) -> str:
        return f"Launch(slot={self.slot!r}, ...)"


class Launched(_Message, frozen=True, tag="launched"):
    """Reply to `Launch`: the kernel runs, and its channels listen at `PREFIX-1` to `PREFIX-5`."""

    kernel_id: KernelId
    pid: int
    prefix: str


class PollKernel(_Message, frozen=True, tag="poll"):
    """How is this kernel? An unknown one counts as dead."""

    kernel_id: KernelId


class WaitKernel(_Message, frozen=True, tag="wait"):
    """The same, answered when it has ended."""

    kernel_id: KernelId


class KernelState(_Message, frozen=True, tag="kernel_state"):
    """Reply to both. `returncode` is None while it runs, else as in `subprocess`."""

    returncode: int | None
    reason: str


class SignalSlot(_Message, frozen=True, tag="signal"):
    """Send a signal to a kernel's process group. A dead kernel is fine."""

    kernel_id: KernelId
    signum: Annotated[int, msgspec.Meta(ge=1, le=64)]


class ForgetKernel(_Message, frozen=True, tag="forget"):
    """Kill the kernel in the slot if there is one, and close the slot's sockets."""

    slot: Slot


class HoldSlot(_Message, frozen=True, tag="hold"):
    """When the client hangs up, however it ends, the slot is as after `ForgetKernel`.

    Sent before `Launch` by whoever must not leave a kernel behind; not answered until the gateway
    ends.
    """

    slot: Slot


class KeepRunning(_Message, frozen=True, tag="keep_running"):
    """Stop the enclave after so many seconds without a kernel; 0 means never."""

    idle_timeout_s: Annotated[float, msgspec.Meta(ge=0)]


class ChangeEgress(_Message, frozen=True, tag="change_egress"):
    """Allow and deny destinations of the egress proxy; nothing of both only asks what is allowed.

    A connection that is open and not allowed any more is cut.
    """

    allow: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)] = ()
    deny: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=MAX_RULES)] = ()


class EgressRules(_Message, frozen=True, tag="egress_rules"):
    """Reply to `ChangeEgress`: what is allowed now, and how many connections are open."""

    rules: tuple[Rule, ...]
    connections: int


class ChannelTraffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes carried on one Jupyter channel."""

    channel: str
    bytes_to_kernel: int
    bytes_from_kernel: int


class SlotStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One slot: bytes carried to and from its kernels, connections open now."""

    slot: Slot
    kernel_id: KernelId
    returncode: int | None
    connections: int
    traffic: tuple[ChannelTraffic, ...]


class EgressStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The egress proxy since the gateway's start.

    `rules` are texts of the allowlist, the first 100 of `rule_count`; `problem` says why there are
    none, where the list cannot be read. `denied` were refused for where they were to go, `failed`
    for anything else.
    """

    rules: tuple[str, ...] = ()
    rule_count: int = 0
    problem: str | None = None
    connections: int = 0
    allowed: int = 0
    denied: int = 0
    failed: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


class GatewayStatus(_Message, frozen=True, tag="gateway_status"):
    """Reply to `StatusRequest`. `enclave` is None when the supervisor does not answer.

    Or, as `refusal` then says, when what answers did not prove that it is the enclave expected.
    `streams` counts those that were opened by what they carry, `traffic` the bytes of all kernels
    there were, both since the gateway's start.
    """

    enclave: EnclaveStatus | None
    slots: tuple[SlotStatus, ...]
    idle_timeout_s: float
    refusal: Failed | None = None
    egress: EgressStatus = EgressStatus()
    streams: dict[str, int] = {}
    traffic: tuple[ChannelTraffic, ...] = ()


class ChannelAttested(_Message, frozen=True, tag="channel_attested"):
    """Reply to `Attest`: the document, and the certificate that the enclave showed in TLS (DER).

    The gateway has verified it already; whoever asked can do it again, with its own nonce.
    """

    document: Annotated[bytes, msgspec.Meta(max_length=0x3000)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=4096)]


Request = (
    Launch
    | PollKernel
    | WaitKernel
    | SignalSlot
    | ForgetKernel
    | HoldSlot
    | KeepRunning
    | ChangeEgress
    | StatusRequest
    | Attest
    | Shutdown
)
Reply = Launched | KernelState | GatewayStatus | EgressRules | ChannelAttested | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode_message(message: Request | Reply) -> bytes:
    """Return the message as msgpack, without the frame's length."""
    return _encoder.encode(message)


def decode_request(payload: bytes) -> Request:
    """Return a client's request.

    Raises:
        GatewayError: It is not one; the text names the field, never its value.
    """
    try:
        return _request_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise GatewayError(f"the gateway does not take this request: {error}") from error


def decode_reply(payload: bytes) -> Reply:
    """Return the gateway's reply.

    Raises:
        GatewayError: It is not one: gateway and client are of different versions.
    """
    try:
        return _reply_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise GatewayError(
            "the running gateway is of another version; type: enclave down && enclave up"
        ) from error
