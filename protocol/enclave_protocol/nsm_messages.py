"""Requests to and responses from the Nitro Secure Module, in the CBOR form of its driver.

Both directions, because the software NSM reads what the client writes.
Source: FACTS, "Nitro Secure Module"; aws-nitro-enclaves-nsm-api, src/api/mod.rs.
"""

from typing import Any, Final

import cbor2
import msgspec

from enclave_protocol.attestation_document import DIGEST, MAX_DOCUMENT_BYTES, MAX_FIELD_BYTES
from enclave_protocol.errors import ProtocolError
from enclave_protocol.strict_cbor import StrictCborError, decode_item

__all__ = [
    "EMIT_FIELD_BYTES",
    "ERROR_CODES",
    "MAX_REQUEST_BYTES",
    "MAX_RESPONSE_BYTES",
    "AttestationReply",
    "AttestationRequest",
    "DescribeNsm",
    "DescribePcr",
    "ExtendPcr",
    "GetRandom",
    "LockPcr",
    "LockPcrs",
    "NsmDescription",
    "NsmFailure",
    "NsmMessageError",
    "PcrExtended",
    "PcrLocked",
    "PcrState",
    "PcrsLocked",
    "RandomBytes",
    "Request",
    "Response",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

MAX_REQUEST_BYTES: Final = 0x1000
MAX_RESPONSE_BYTES: Final = MAX_DOCUMENT_BYTES
EMIT_FIELD_BYTES: Final = 512  # what we send; up to MAX_FIELD_BYTES is accepted
_MAX_INDEX = 0xFFFF  # u16 in the driver; the module itself knows 32 PCRs
_MAX_PCR_BYTES = 64  # the largest digest the API names (SHA512)
ERROR_CODES: Final = frozenset(
    {
        *("Success", "InvalidArgument", "InvalidIndex", "InvalidResponse", "ReadOnlyIndex"),
        *("InvalidOperation", "BufferTooSmall", "InputTooLarge", "InternalError"),
    }
)


class NsmMessageError(ProtocolError):
    """Bytes to or from the NSM are not one of its messages."""


class DescribeNsm(msgspec.Struct, frozen=True):
    """Ask for version, module id and locked PCRs."""


class GetRandom(msgspec.Struct, frozen=True):
    """Ask for random bytes; the module decides how many (256)."""


class DescribePcr(msgspec.Struct, frozen=True):
    """Read PCR `index`."""

    index: int


class ExtendPcr(msgspec.Struct, frozen=True):
    """PCR = SHA384(PCR || data)."""

    index: int
    data: bytes


class LockPcr(msgspec.Struct, frozen=True):
    """Make PCR `index` read-only until the enclave ends."""

    index: int


class LockPcrs(msgspec.Struct, frozen=True):
    """Make PCRs 0 to `range` - 1 read-only."""

    range: int


class AttestationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a signed document; each field at most 512 bytes when sent, 1024 when read."""

    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


class NsmDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the module says about itself."""

    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]


class PcrState(msgspec.Struct, frozen=True):
    """One PCR's value, and whether it is read-only."""

    locked: bool
    data: bytes


class PcrExtended(msgspec.Struct, frozen=True):
    """The PCR's new value."""

    data: bytes


class PcrLocked(msgspec.Struct, frozen=True):
    """`LockPcr` succeeded."""


class PcrsLocked(msgspec.Struct, frozen=True):
    """`LockPcrs` succeeded."""


class AttestationReply(msgspec.Struct, frozen=True):
    """A signed attestation document, still to be verified by whoever relies on it."""

    document: bytes


class RandomBytes(msgspec.Struct, frozen=True):
    """Random bytes from the module."""

    random: bytes


class NsmFailure(msgspec.Struct, frozen=True):
    """The module refused; `code` is one of `ERROR_CODES`."""

    code: str


Request = (
    DescribeNsm | GetRandom | DescribePcr | ExtendPcr | LockPcr | LockPcrs | AttestationRequest
)
Response = (
    NsmDescription
    | PcrState
    | PcrExtended
    | PcrLocked
    | PcrsLocked
    | AttestationReply
    | RandomBytes
    | NsmFailure
)


def encode_request(request: Request) -> bytes:
    """Return the request's bytes, at most 4 KiB.

    Raises:
        NsmMessageError: A field is over 512 bytes, or the whole over 4 KiB.
    """
    match request:
        case DescribeNsm():
            body: object = "DescribeNSM"
        case GetRandom():
            body = "GetRandom"
        case DescribePcr(index):
            body = {"DescribePCR": {"index": index}}
        case ExtendPcr(index, data):
            body = {"ExtendPCR": {"index": index, "data": data}}
        case LockPcr(index):
            body = {"LockPCR": {"index": index}}
        case LockPcrs(count):
            body = {"LockPCRs": {"range": count}}
        case AttestationRequest():
            fields = msgspec.structs.asdict(request)
            for name, value in fields.items():
                if value is not None and len(value) > EMIT_FIELD_BYTES:
                    raise NsmMessageError(
                        f"{name} has {len(value)} bytes, the NSM takes {EMIT_FIELD_BYTES}"
                    )
            body = {"Attestation": fields}
    encoded = cbor2.dumps(body)
    if len(encoded) > MAX_REQUEST_BYTES:
        raise NsmMessageError(f"NSM request has {len(encoded)} bytes, limit {MAX_REQUEST_BYTES}")
    return encoded


def decode_request(data: bytes) -> Request:
    """Return the request that `data` is.

    Raises:
        NsmMessageError: Over 4 KiB, not strict CBOR, or not a request of the NSM.
    """
    name, fields = _decode(data, MAX_REQUEST_BYTES, "request")
    match name, fields:
        case "DescribeNSM", None:
            return DescribeNsm()
        case "GetRandom", None:
            return GetRandom()
        case "DescribePCR", {"index": index, **rest} if not rest:
            return DescribePcr(_index(index))
        case "ExtendPCR", {"index": index, "data": bytes(content), **rest} if not rest:
            return ExtendPcr(_index(index), content)
        case "LockPCR", {"index": index, **rest} if not rest:
            return LockPcr(_index(index))
        case "LockPCRs", {"range": count, **rest} if not rest:
            return LockPcrs(_index(count))
        case "Attestation", dict() if fields.keys() <= {"user_data", "nonce", "public_key"}:
            for value in fields.values():
                if value is not None and (type(value) is not bytes or len(value) > MAX_FIELD_BYTES):
                    raise NsmMessageError(f"a field is not null or up to {MAX_FIELD_BYTES} bytes")
            return AttestationRequest(**fields)
    raise NsmMessageError(f"unknown NSM request {name!r:.60}")


def encode_response(response: Response) -> bytes:
    """Return the response's bytes.

    Raises:
        NsmMessageError: More than 12 KiB, which the driver could not deliver.
    """
    match response:
        case NsmDescription():
            major, minor, patch = response.version
            body: object = {
                "DescribeNSM": {
                    "version_major": major,
                    "version_minor": minor,
                    "version_patch": patch,
                    "module_id": response.module_id,
                    "max_pcrs": response.max_pcrs,
                    "locked_pcrs": list(response.locked_pcrs),
                    "digest": DIGEST,
                }
            }
        case PcrState(locked, data):
            body = {"DescribePCR": {"lock": locked, "data": data}}
        case PcrExtended(data):
            body = {"ExtendPCR": {"data": data}}
        case PcrLocked():
            body = "LockPCR"
        case PcrsLocked():
            body = "LockPCRs"
        case AttestationReply(document):
            body = {"Attestation": {"document": document}}
        case RandomBytes(random):
            body = {"GetRandom": {"random": random}}
        case NsmFailure(code):
            body = {"Error": code}
    encoded = cbor2.dumps(body)
    if len(encoded) > MAX_RESPONSE_BYTES:
        raise NsmMessageError(f"NSM response has {len(encoded)} bytes, limit {MAX_RESPONSE_BYTES}")
    return encoded


def decode_response(data: bytes) -> Response:
    """Return the response that `data` is.

    Raises:
        NsmMessageError: Over 12 KiB, not strict CBOR, or not a response of the NSM.
    """
    name, fields = _decode(data, MAX_RESPONSE_BYTES, "response")
    match name, fields:
        case "LockPCR", None:
            return PcrLocked()
        case "LockPCRs", None:
            return PcrsLocked()
        case "Error", str(code) if code in ERROR_CODES:
            return NsmFailure(code)
        case "DescribePCR", {"lock": bool(locked), "data": bytes(value)}:
            return PcrState(locked, _pcr(value))
        case "ExtendPCR", {"data": bytes(value)}:
            return PcrExtended(_pcr(value))
        case "Attestation", {"document": bytes(document)}:
            return AttestationReply(document)
        case "GetRandom", {"random": bytes(random)} if random:
            return RandomBytes(random)
        case "DescribeNSM", {"module_id": str(module_id), "locked_pcrs": list(locked_pcrs)}:
            if fields.get("digest") != DIGEST:
                raise NsmMessageError(f"the NSM's digest is not {DIGEST}")
            return NsmDescription(
                version=(
                    _index(fields.get("version_major")),
                    _index(fields.get("version_minor")),
                    _index(fields.get("version_patch")),
                ),
                module_id=module_id,
                max_pcrs=_index(fields.get("max_pcrs")),
                locked_pcrs=tuple(_index(value) for value in locked_pcrs),
            )
    raise NsmMessageError(f"unknown or malformed NSM response {name!r:.60}")


def _decode(data: bytes, limit: int, kind: str) -> tuple[str, Any]:
    """Split a message into its name and its fields (None for a bare name)."""
    if not 0 < len(data) <= limit:
        raise NsmMessageError(f"NSM {kind} has {len(data)} bytes, expected 1 to {limit}")
    try:
        body = decode_item(bytes(data))
    except StrictCborError as error:
        raise NsmMessageError(f"NSM {kind}: {error}") from error
    if type(body) is str:
        return body, None
    if type(body) is dict and len(body) == 1:
        name, fields = next(iter(body.items()))
        if type(name) is str:
            return name, fields
    raise NsmMessageError(f"NSM {kind} is neither a name nor a map of one name")


def _index(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INDEX:
        raise NsmMessageError(f"NSM message: {value!r:.40} is not a number from 0 to {_MAX_INDEX}")
    return value


def _pcr(value: bytes) -> bytes:
    if not 0 < len(value) <= _MAX_PCR_BYTES:
        raise NsmMessageError(f"NSM response: a PCR has {len(value)} bytes")
    return value
