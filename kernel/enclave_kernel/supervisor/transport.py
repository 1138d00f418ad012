"""The one listening endpoint of the enclave: AF_VSOCK, or a Unix socket for the local backend."""

import socket
from pathlib import Path

from enclave_protocol.errors import EnclaveError

__all__ = ["EndpointError", "is_parent", "listen"]

_BACKLOG = 128
_PARENT_CIDS = (2, 3)
"""The parent of a Nitro enclave is CID 3, a VM's host is CID 2 (FACTS, vsock)."""
_FIRST_UNPRIVILEGED_PORT = 1024


class EndpointError(EnclaveError):
    """The endpoint is malformed, or cannot be listened on."""


def listen(endpoint: str) -> socket.socket:
    """Return a listening, non-blocking stream socket.

    Args:
        endpoint: `vsock:PORT` with a port below 1024, which no unprivileged process of the
            enclave can take (THREATS V-03), or `unix:PATH` in a directory only its owner enters.

    Raises:
        EndpointError: It is neither, or the system refuses it.
    """
    kind, _, rest = endpoint.partition(":")
    try:
        if kind == "vsock":
            sock = _listen_vsock(rest)
        elif kind == "unix" and rest:
            sock = _listen_unix(Path(rest))
        else:
            raise EndpointError(f"the endpoint {endpoint!r} is neither vsock:PORT nor unix:PATH")
    except OSError as error:
        raise EndpointError(f"cannot listen on {endpoint}: {error}") from error
    sock.setblocking(False)
    return sock


def _listen_vsock(port: str) -> socket.socket:
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < _FIRST_UNPRIVILEGED_PORT:
        raise EndpointError(f"the vsock port is {port!r}, expected 1 to 1023")
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((socket.VMADDR_CID_ANY, int(port)))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def is_parent(sock: socket.socket, address: object) -> bool:
    """Say whether an accepted connection comes from the parent instance.

    On vsock only the parent's CID may connect: not the enclave's own, not a sibling's (THREATS
    V-02, V-05). A Unix socket's directory has kept everybody else out already.
    """
    if sock.family != getattr(socket, "AF_VSOCK", None):
        return True
    return isinstance(address, tuple) and bool(address) and address[0] in _PARENT_CIDS
