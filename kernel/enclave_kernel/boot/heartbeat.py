"""Tells the parent that the image booted. Source: FACTS, "vsock"."""

import socket
from typing import Final

from enclave_protocol.errors import EnclaveError
from enclave_protocol.vsock_ports import HEARTBEAT_BYTE, HEARTBEAT_PORT

__all__ = ["HeartbeatError", "send_heartbeat"]

_TIMEOUT_S: Final = 5.0


class HeartbeatError(EnclaveError):
    """Nobody at the parent waits for the image, or the answer is another."""


def send_heartbeat(parent_cid: int) -> None:
    """Send the byte and wait for it to come back.

    Raises:
        HeartbeatError: It does not.
    """
    sign = bytes([HEARTBEAT_BYTE])
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.connect((parent_cid, HEARTBEAT_PORT))
            sock.sendall(sign)
            answer = sock.recv(1)
    except OSError as error:
        raise HeartbeatError(f"no heartbeat at the parent (CID {parent_cid}): {error}") from error
    if answer != sign:
        raise HeartbeatError(f"the parent answered the heartbeat with {answer.hex() or 'nothing'}")
