import msgspec
import pytest

from enclave_parent_gateway import api
from enclave_parent_gateway.errors import GatewayError
from enclave_protocol.messages import Attest, Done, Failed, Shutdown, StatusRequest

_SLOT = "5a5d4b0e-00001111"
_REQUESTS: list[api.Request] = [
    api.Launch(_SLOT, b"k" * 32, "hmac-sha256", "/work", {"LANG": "C"}),
    api.PollKernel(f"{_SLOT}-0011aabb"),
    api.WaitKernel("aa"),
    api.SignalSlot("aa", 2),
    api.ForgetKernel(_SLOT),
    api.KeepRunning(0.0),
    StatusRequest(),
    Attest(b"n" * 32),
    Shutdown(),
]


@pytest.mark.parametrize("request_", _REQUESTS, ids=lambda request: type(request).__name__)
def test_requests_round_trip(request_: api.Request) -> None:
    assert api.decode_request(api.encode_message(request_)) == request_


@pytest.mark.parametrize(
    "reply",
    [
        api.Launched("aa", 7, "/run/x"),
        api.KernelState(None, "running"),
        api.GatewayStatus(
            None,
            (api.SlotStatus("aa", "aa-bb", None, 5, (api.ChannelTraffic("shell", 1, 2),)),),
            300.0,
            streams={"shell": 5},
        ),
        Done(),
        Failed("X", "y"),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_replies_round_trip(reply: api.Reply) -> None:
    assert api.decode_reply(api.encode_message(reply)) == reply


@pytest.mark.parametrize(
    "change",
    [
        {"slot": "../x"},
        {"slot": "A" * 8},
        {"slot": "a" * 18},
        {"key": b"k" * 31},
        {"signature_scheme": "none"},
        {"cwd": "x" * 4097},
        {"environ": {"A": "x" * 4097}},
        {"environ": {f"A{i}": "" for i in range(257)}},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_launch_outside_its_limits_is_refused(change: dict[str, object]) -> None:
    fields = msgspec.to_builtins(_REQUESTS[0], builtin_types=(bytes,)) | change
    with pytest.raises(GatewayError) as caught:
        api.decode_request(msgspec.msgpack.encode(fields))
    assert "kkkk" not in str(caught.value)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"type": "x"})])
def test_what_is_no_message(payload: bytes) -> None:
    with pytest.raises(GatewayError):
        api.decode_request(payload)
    with pytest.raises(GatewayError, match="another version"):
        api.decode_reply(payload)
