"""Messages of `enclave run`: there and back, and what is none."""

import msgspec
import pytest

from enclave_protocol.messages import MessageError
from enclave_protocol.run_messages import (
    BeginRun,
    BodyPiece,
    Interrupt,
    OutputPiece,
    PackageOpened,
    RunBar,
    RunEnded,
    RunFailed,
    RunText,
    StartScript,
    Taken,
    decode_from_run,
    decode_to_run,
    encode,
)

_BEGIN = BeginRun("a.encrypted", "run", ("-x",), ("data",), ("output",), {"A": "b"}, False, 1.5)


def test_there_and_back() -> None:
    for message in (_BEGIN, BodyPiece(), StartScript(), Interrupt(), Taken()):
        assert decode_to_run(encode(message)) == message
    for reply in (
        *(PackageOpened(True), RunText("stderr", "x"), RunBar(1, 0.5, None, 0), OutputPiece()),
        *(RunEnded(None, "died", "why", 1.0, 5), RunFailed("KmsError", "why"), Taken()),
    ):
        assert decode_from_run(encode(reply)) == reply


_FIELDS = msgspec.to_builtins(_BEGIN)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xc1", b"\x91" * 100_000, {"type": "unknown"}, {"type": "text"}, ["begin"]),
        *({"type": "interrupt", "more": 1}, _FIELDS | {"timeout_s": 0.0}),
        *(_FIELDS | {"timeout_s": float("nan")}, _FIELDS | {"arguments": ["x"] * 1025}),
        *(_FIELDS | {"arguments": ["x" * 8193]}, _FIELDS | {"folders": ["x"] * 1025}),
        *(_FIELDS | {"environ": {str(n): "" for n in range(65)}}, _FIELDS | {"script": ""}),
        {key: value for key, value in _FIELDS.items() if key != "unsigned"},
    ],
)
def test_what_is_no_message_of_the_command(payload: object) -> None:
    data = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
    with pytest.raises(MessageError):
        decode_to_run(data)


@pytest.mark.parametrize(
    "payload",
    [
        *({"type": "text", "stream": "stdlog", "text": ""}, {"type": "begin"}),
        {"type": "text", "stream": "stdout", "text": "x" * 40_000},
        {"type": "ended", "exit_code": 256, "how": "exit", "reason": "", "seconds": 1.0},
        {"type": "ended", "exit_code": -1, "how": "exit", "reason": "", "seconds": 1.0},
        {"type": "bar", "bar": -1, "done": 1.0, "total": None, "state": 0},
    ],
)
def test_what_is_no_message_of_the_enclave(payload: object) -> None:
    with pytest.raises(MessageError):
        decode_from_run(msgspec.msgpack.encode(payload))
