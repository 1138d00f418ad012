"""Messages between `enclave-owner try` and its two processes."""

import pytest

from enclave_protocol.trial_messages import (
    CannotTry,
    Compared,
    CompareValue,
    Ended,
    NotedCall,
    OpenForUser,
    OpenPlain,
    RunCell,
    RunTrialScript,
    TrialMessageError,
    clipped,
    decode_trial_reply,
    decode_trial_request,
    encode_trial,
)


@pytest.mark.parametrize(
    "message",
    [
        OpenForUser("/proc/self/fd/3", "a-1.encrypted", bytes(32), "/home", "/results", True),
        OpenPlain("/home/a", "a", ("f",), {"C": ("__init__", "m")}),
        RunCell("<cell 1>", "f()"),
        RunTrialScript("a.py", ("-d", "/data")),
        CompareValue(b"header", (b"one", b"")),
    ],
)
def test_requests(message: RunCell) -> None:
    assert decode_trial_request(encode_trial(message)) == message
    with pytest.raises(TrialMessageError):
        decode_trial_reply(encode_trial(message))


@pytest.mark.parametrize(
    "message",
    [
        Ended(),
        Ended(output="x", value=(b"h", (b"b",)), calls=(NotedCall("f", "E: x", "0f", "T"),)),
        Compared(("a",), ()),
        CannotTry("no module"),
    ],
)
def test_replies(message: Ended) -> None:
    assert decode_trial_reply(encode_trial(message)) == message
    with pytest.raises(TrialMessageError):
        decode_trial_request(encode_trial(message))


def test_too_much_for_a_frame() -> None:
    with pytest.raises(TrialMessageError, match="does not fit"):
        encode_trial(CompareValue(b"", (bytes(17 * 2**20),)))


def test_long_texts_are_cut_in_their_middle() -> None:
    assert clipped("short \udc80") == "short \\udc80"
    text = clipped("a" * 100_000 + "z" * 100_000)
    assert len(text) < 70_000
    assert text.startswith("aaa") and text.endswith("zzz")
    assert f"{200_000 - 65_536} characters left out" in text
