"""Messages: what is written is read, everything else is refused without quoting it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.messages import (
    Credentials,
    Envelope,
    LaunchKernel,
    MessageError,
    OpenChannel,
    OpenControl,
    SignalKernel,
    decode_envelope,
    decode_open,
    encode,
)

_LAUNCH = LaunchKernel(
    kernel_id="ab-12",
    key=bytes(32),
    signature_scheme="hmac-sha256",
    cwd="/home/user",
    environ={"LANG": "C.UTF-8"},
)


@pytest.mark.parametrize("message", [OpenControl(version=1), OpenChannel("ab12", "iopub")])
def test_open_messages_round_trip(message: OpenControl | OpenChannel) -> None:
    assert decode_open(encode(message)) == message


@pytest.mark.parametrize("body", [_LAUNCH, SignalKernel("ab", 2), Credentials("AK", "secret")])
def test_envelopes_round_trip(body: LaunchKernel | SignalKernel | Credentials) -> None:
    envelope = Envelope(body=body, request_id=7)
    assert decode_envelope(encode(envelope)) == envelope


def _altered(**changes: object) -> bytes:
    body = {**msgspec.to_builtins(_LAUNCH, builtin_types=(bytes,)), **changes}
    return msgspec.msgpack.encode({"body": body, "request_id": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_id": "../../etc"},
        {"kernel_id": "a/b"},
        {"kernel_id": ""},
        {"key": b"short"},
        {"key": b""},
        {"signature_scheme": "none"},
        {"environ": {str(i): "" for i in range(257)}},
        {"cwd": "x" * 5000},
        {"surprise": 1},
        {"type": "no_such_message"},
    ],
)
def test_a_launch_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_envelope(_altered(**changes))


def test_the_unchanged_launch_is_accepted() -> None:
    assert decode_envelope(_altered()).body == _LAUNCH


@pytest.mark.parametrize("signum", [0, -1, 65])
def test_signals_out_of_range_are_refused(signum: int) -> None:
    payload = msgspec.msgpack.encode(
        {"body": {"type": "signal_kernel", "kernel_id": "ab", "signum": signum}, "request_id": 1}
    )
    with pytest.raises(MessageError):
        decode_envelope(payload)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_message_error(payload: bytes) -> None:
    for decode in (decode_open, decode_envelope):
        try:
            decode(payload)
        except MessageError as error:
            assert "\n" not in str(error)


def test_a_deeply_nested_payload_is_refused() -> None:
    with pytest.raises(MessageError):
        decode_envelope(b"\x91" * 100_000)


def test_credentials_do_not_show_their_secret() -> None:
    shown = repr(Credentials("AKID", "the-secret", "the-token"))
    assert "AKID" in shown
    assert "the-secret" not in shown
    assert "the-token" not in shown
