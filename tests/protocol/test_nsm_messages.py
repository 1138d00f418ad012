import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.nsm_messages import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    AttestationReply,
    AttestationRequest,
    DescribeNsm,
    DescribePcr,
    ExtendPcr,
    GetRandom,
    LockPcr,
    LockPcrs,
    NsmDescription,
    NsmFailure,
    NsmMessageError,
    PcrExtended,
    PcrLocked,
    PcrsLocked,
    PcrState,
    RandomBytes,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

# Each with its bytes as FACTS writes the messages.
_REQUESTS: list[tuple[Request, object]] = [
    (DescribeNsm(), "DescribeNSM"),
    (GetRandom(), "GetRandom"),
    (DescribePcr(3), {"DescribePCR": {"index": 3}}),
    (ExtendPcr(16, b"data"), {"ExtendPCR": {"index": 16, "data": b"data"}}),
    (LockPcr(16), {"LockPCR": {"index": 16}}),
    (LockPcrs(32), {"LockPCRs": {"range": 32}}),
    (
        AttestationRequest(nonce=b"n"),
        {"Attestation": {"user_data": None, "nonce": b"n", "public_key": None}},
    ),
]
_RESPONSES: list[tuple[Response, object]] = [
    (PcrLocked(), "LockPCR"),
    (PcrsLocked(), "LockPCRs"),
    (PcrState(True, bytes(48)), {"DescribePCR": {"lock": True, "data": bytes(48)}}),
    (PcrExtended(bytes(48)), {"ExtendPCR": {"data": bytes(48)}}),
    (AttestationReply(b"doc"), {"Attestation": {"document": b"doc"}}),
    (RandomBytes(b"r"), {"GetRandom": {"random": b"r"}}),
    (NsmFailure("ReadOnlyIndex"), {"Error": "ReadOnlyIndex"}),
    (
        NsmDescription(version=(1, 0, 0), module_id="i-1", max_pcrs=32, locked_pcrs=(0, 1)),
        {
            "DescribeNSM": {
                "version_major": 1,
                "version_minor": 0,
                "version_patch": 0,
                "module_id": "i-1",
                "max_pcrs": 32,
                "locked_pcrs": [0, 1],
                "digest": "SHA384",
            }
        },
    ),
]


@pytest.mark.parametrize(("request_", "body"), _REQUESTS)
def test_request_bytes(request_: Request, body: object) -> None:
    assert cbor2.loads(encode_request(request_)) == body
    assert decode_request(cbor2.dumps(body)) == request_


@pytest.mark.parametrize(("response", "body"), _RESPONSES)
def test_response_bytes(response: Response, body: object) -> None:
    assert cbor2.loads(encode_response(response)) == body
    assert decode_response(cbor2.dumps(body)) == response


@pytest.mark.parametrize("name", ["user_data", "nonce", "public_key"])
def test_we_send_512_bytes_and_read_1024(name: str) -> None:
    encode_request(AttestationRequest(**{name: bytes(512)}))
    with pytest.raises(NsmMessageError, match=f"{name} has 513 bytes"):
        encode_request(AttestationRequest(**{name: bytes(513)}))
    body = {"Attestation": {name: bytes(1024)}}
    assert decode_request(cbor2.dumps(body)) == AttestationRequest(**{name: bytes(1024)})
    with pytest.raises(NsmMessageError):
        decode_request(cbor2.dumps({"Attestation": {name: bytes(1025)}}))


@pytest.mark.parametrize(
    "body",
    [
        "Reboot",
        {"DescribeNSM": {}},
        {"DescribePCR": {"index": -1}},
        {"DescribePCR": {"index": 0x10000}},
        {"DescribePCR": {"index": True}},
        {"DescribePCR": {"index": 1, "more": 1}},
        {"DescribePCR": {}},
        {"ExtendPCR": {"index": 16, "data": "text"}},
        {"Attestation": {"nonce": b"", "other": b""}},
        {"Attestation": None},
        {"LockPCR": {"index": 1}, "LockPCRs": {"range": 1}},
        {1: {"index": 1}},
        ["GetRandom"],
        None,
    ],
)
def test_refused_request(body: object) -> None:
    with pytest.raises(NsmMessageError):
        decode_request(cbor2.dumps(body))


@pytest.mark.parametrize(
    "body",
    [
        "GetRandom",
        {"Error": "Nonsense"},
        {"Attestation": {"document": "text"}},
        {"GetRandom": {"random": b""}},
        {"DescribePCR": {"lock": 1, "data": bytes(48)}},
        {"DescribePCR": {"lock": True, "data": bytes(65)}},
        {"DescribeNSM": {"module_id": "i", "locked_pcrs": [], "digest": "SHA256"}},
        {"DescribeNSM": {"module_id": "i", "locked_pcrs": ["0"], "digest": "SHA384"}},
    ],
)
def test_refused_response(body: object) -> None:
    with pytest.raises(NsmMessageError):
        decode_response(cbor2.dumps(body))


def test_limits() -> None:
    with pytest.raises(NsmMessageError, match="limit 4096"):
        encode_request(ExtendPcr(16, bytes(MAX_REQUEST_BYTES)))
    with pytest.raises(NsmMessageError, match="limit 12288"):
        encode_response(AttestationReply(bytes(MAX_RESPONSE_BYTES)))
    with pytest.raises(NsmMessageError, match="has 4097 bytes"):
        decode_request(bytes(MAX_REQUEST_BYTES + 1))
    with pytest.raises(NsmMessageError, match="has 12289 bytes"):
        decode_response(bytes(MAX_RESPONSE_BYTES + 1))


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except NsmMessageError as error:
            assert "\n" not in str(error)
