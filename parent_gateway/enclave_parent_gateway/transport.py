"""The seam between the gateway and an enclave: an endpoint's text in, a connected socket out.

And TLS as the gateway speaks it: who is at the other end is for the attestation document to say.
"""

import os
import re
import socket
import ssl
from typing import cast

from enclave_parent_gateway.errors import TransportError
from enclave_parent_gateway.runtime_dir import MAX_SOCKET_PATH_BYTES
from enclave_protocol.vsock_socket import capped

__all__ = ["CONNECT_TIMEOUT_S", "connect", "tls_context"]

CONNECT_TIMEOUT_S = 5.0
"""Connecting never leaves the machine: longer means that nobody accepts."""

_VSOCK = re.compile(r"vsock:([0-9]{1,10}):([0-9]{1,10})")


def connect(endpoint: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Return a connected, blocking stream socket; one of AF_VSOCK never writes over 32 KiB.

    Args:
        endpoint: `unix:PATH` or `vsock:CID:PORT`.
        timeout_s: Seconds to wait for a connection.

    Raises:
        TransportError: The endpoint is neither, or nothing listens there.
    """
    if endpoint.startswith("unix:"):
        address: str | tuple[int, int] = endpoint.removeprefix("unix:")
        if len(os.fsencode(cast(str, address))) > MAX_SOCKET_PATH_BYTES:
            raise TransportError(
                f"a Unix socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes: {address}"
            )
        family = socket.AF_UNIX
    elif match := _VSOCK.fullmatch(endpoint):
        family = socket.AF_VSOCK
        address = (int(match[1]), int(match[2]))
    else:
        raise TransportError(f"{endpoint!r} is not an endpoint; write unix:PATH or vsock:CID:PORT")
    sock = capped(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        sock.settimeout(None)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise TransportError(f"nothing answers at {endpoint}: {reason}") from error
    return sock


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
