"""One request to the gateway: connect, ask, read the reply. Imports nothing slow."""

import asyncio
import socket
from pathlib import Path
from typing import TypeVar

from enclave_parent_gateway.api import (
    MAX_API_BYTES,
    Reply,
    Request,
    decode_reply,
    encode_message,
)
from enclave_parent_gateway.errors import (
    EnclaveGoneError,
    EnclaveNotRunningError,
    EnclaveNotTrustedError,
    GatewayError,
    GatewayStoppingError,
    RefusedError,
)
from enclave_protocol import attestation_errors
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import Failed

__all__ = ["REQUEST_TIMEOUT_S", "ask", "ask_blocking"]

REQUEST_TIMEOUT_S = 10.0
"""For everything but a launch: the gateway answers these from memory or in one round trip."""

_PORTION_BYTES = 256 * 1024
_UNTRUSTED = frozenset({*attestation_errors.__all__, "NothingExpectedError", "ExpectedPcrsError"})
"""Kinds of `EnclaveNotTrustedError`, by the names of the errors behind it."""
_Answer = TypeVar("_Answer")


def _checked(payload: bytes, expected: type[_Answer]) -> _Answer:
    """Return the reply as what was expected, or raise what it reports."""
    reply: Reply = decode_reply(payload)
    if isinstance(reply, expected):
        return reply
    if isinstance(reply, Failed):
        for error in (EnclaveGoneError, GatewayStoppingError):
            if reply.kind == error.__name__:
                raise error(reply.message)
        if reply.kind in _UNTRUSTED:
            raise EnclaveNotTrustedError(reply.kind, reply.message)
        raise RefusedError(reply.kind, reply.message)
    raise GatewayError(
        f"the gateway answered with {type(reply).__name__}, expected {expected.__name__}; "
        "type: enclave down && enclave up"
    )


def _not_running(path: Path) -> EnclaveNotRunningError:
    return EnclaveNotRunningError(f"no enclave is up (nothing answers at {path}); type: enclave up")


def _unreachable(path: Path, error: OSError) -> GatewayError:
    """Return what a failed connection means: no gateway, or trouble on this side."""
    if isinstance(error, FileNotFoundError | ConnectionError):
        return _not_running(path)
    return GatewayError(f"the gateway at {path} cannot be asked: {error.strerror or error}")


async def ask(
    path: Path,
    request: Request,
    expected: type[_Answer],
    *,
    timeout_s: float | None = REQUEST_TIMEOUT_S,
) -> _Answer:
    """Send one request to the gateway and return its reply.

    Args:
        path: The gateway's socket.
        request: What to ask.
        expected: Type of the reply that means success.
        timeout_s: Seconds to wait, None for ever.

    Raises:
        EnclaveNotRunningError: Nothing listens there, or it went away before it answered.
        EnclaveGoneError: The gateway runs, the enclave does not.
        GatewayStoppingError: The enclave goes down right now.
        EnclaveNotTrustedError: What answers is not the enclave expected.
        RefusedError: The request failed.
        GatewayError: The connection failed on this side, or the gateway is of another version.
        TimeoutError: No answer in time.
    """
    async with asyncio.timeout(timeout_s):
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise _unreachable(path, error) from error
        try:
            writer.write(encode_frame(encode_message(request)))
            decoder = FrameDecoder(MAX_API_BYTES)
            while True:
                data = await reader.read(_PORTION_BYTES)
                if not data:
                    raise _not_running(path)
                if frames := decoder.feed(data):
                    return _checked(frames[0], expected)
        except OSError as error:
            raise _unreachable(path, error) from error
        finally:
            writer.close()


def ask_blocking(
    path: Path,
    request: Request,
    expected: type[_Answer],
    *,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> _Answer:
    """Do the same without an event loop, for the CLI.

    Raises:
        EnclaveNotRunningError: And the others, as in `ask`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            sock.sendall(encode_frame(encode_message(request)))
            decoder = FrameDecoder(MAX_API_BYTES)
            while data := sock.recv(_PORTION_BYTES):
                if frames := decoder.feed(data):
                    return _checked(frames[0], expected)
        except TimeoutError:
            raise
        except OSError as error:
            raise _unreachable(path, error) from error
    raise _not_running(path)
