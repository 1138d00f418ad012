"""Messages of `enclave run`, as either end meets them."""

import contextlib

from enclave_protocol.messages import MessageError
from enclave_protocol.run_messages import (
    BeginRun,
    FromRun,
    Interrupt,
    OutputPiece,
    PackageOpened,
    RunBar,
    RunEnded,
    RunFailed,
    RunText,
    Taken,
    ToRun,
    decode_from_run,
    decode_to_run,
    encode,
)

__all__ = ["run_messages", "run_seeds"]


def run_messages(data: bytes) -> None:
    """Decode a message of either end; what was accepted is the same when it is sent again."""
    with contextlib.suppress(MessageError):
        _same(decode_to_run(data), decode_to_run)
    with contextlib.suppress(MessageError):
        _same(decode_from_run(data), decode_from_run)


def _same(message: ToRun | FromRun, decode: object) -> None:
    assert callable(decode)
    again = decode(encode(message))
    # Not `==`: a number that is none is not equal to itself.
    if repr(again) != repr(message):
        raise AssertionError(f"{again!r} came of {message!r}")


def run_seeds() -> list[bytes]:
    """Return messages of each kind."""
    begin = BeginRun("a", "run", ("-x", "/d"), ("d",), ("output",), {"MODE": "1"}, True, 1.5)
    messages = (
        *(begin, Interrupt(), Taken(), PackageOpened(True), RunText("stderr", "x"), OutputPiece()),
        *(RunBar(1, 0.5, None, 0), RunEnded(0, "exit", "", 1.0, 5), RunFailed("KmsError", "why")),
    )
    return [encode(message) for message in messages]
