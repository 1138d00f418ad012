"""The seam between the gateway and an enclave: an endpoint's text in, a connected socket out.

And TLS as the gateway speaks it: who is at the other end is for the attestation document to say.
"""

import os
import re
import socket
import ssl

from enclave_parent_gateway.errors import TransportError
from enclave_parent_gateway.hybrid_vsock import connect_hybrid
from enclave_parent_gateway.runtime_dir import MAX_SOCKET_PATH_BYTES
from enclave_protocol.vsock_socket import capped

__all__ = ["CONNECT_TIMEOUT_S", "connect", "tls_context"]

CONNECT_TIMEOUT_S = 5.0
"""Connecting never leaves the machine: longer means that nobody accepts."""

_VSOCK = re.compile(r"vsock:([0-9]{1,10}):([0-9]{1,10})")
_HYBRID = re.compile(r"hybrid:([0-9]{1,10}):(/.+)", re.DOTALL)


def connect(endpoint: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Return a connected, blocking stream socket; one of AF_VSOCK never writes over 32 KiB.

    Args:
        endpoint: `unix:PATH`, `vsock:CID:PORT`, or `hybrid:PORT:PATH` for a port of the virtual
            machine whose vsock device has that Unix socket.
        timeout_s: Seconds to wait for a connection.

    Raises:
        TransportError: The endpoint is none of them, or nothing listens there.
    """
    try:
        if endpoint.startswith("unix:"):
            path = _checked_path(endpoint.removeprefix("unix:"))
            return _connected(socket.AF_UNIX, path, timeout_s)
        if match := _VSOCK.fullmatch(endpoint):
            return _connected(socket.AF_VSOCK, (int(match[1]), int(match[2])), timeout_s)
        if match := _HYBRID.fullmatch(endpoint):
            return connect_hybrid(_checked_path(match[2]), int(match[1]), timeout_s=timeout_s)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TransportError(f"nothing answers at {endpoint}: {reason}") from error
    raise TransportError(
        f"{endpoint!r} is not an endpoint; write unix:PATH, vsock:CID:PORT or hybrid:PORT:PATH"
    )


def _connected(family: int, address: str | tuple[int, int], timeout_s: float) -> socket.socket:
    sock = capped(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _checked_path(path: str) -> str:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise TransportError(
            f"a Unix socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes: {path}"
        )
    return path


def tls_context() -> ssl.SSLContext:
    """Return TLS 1.3 as a client that takes any certificate.

    Its key is checked afterwards, against the attestation document and before anything else is
    sent (`enclave_protocol.channel_binding`). No session is ever resumed: Python's ssl does not
    unless it is handed one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    return context
