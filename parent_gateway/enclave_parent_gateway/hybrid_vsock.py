"""Hybrid vsock: a stream to a port of a virtual machine, begun over a Unix socket of its device.

The side that connects writes `CONNECT <port>` and a line feed; `OK <number>` and a line feed come
back when a process of the machine has accepted. From then on the socket is the stream.
Source: FACTS, "vsock"; Firecracker, docs/vsock.md.
"""

import re
import socket
from typing import Final

__all__ = ["connect_hybrid"]

_MAX_ANSWER_BYTES: Final = 32
_OK: Final = re.compile(rb"OK [0-9]{1,10}\n")


def connect_hybrid(path: str, port: int, *, timeout_s: float) -> socket.socket:
    """Return a connected, blocking stream to a port of the machine.

    Args:
        path: The device's Unix socket.
        port: Of a listener in the machine.
        timeout_s: For each step: reaching the device, and its answer.

    Raises:
        OSError: There is no device, no listener in the machine, or no answer in time.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
        sock.sendall(b"CONNECT %d\n" % port)
        answer = b""
        # Byte by byte: what follows the line belongs to the stream.
        while not answer.endswith(b"\n"):
            byte = sock.recv(1)
            if not byte:
                raise ConnectionRefusedError(None, f"nobody listens on port {port} of the machine")
            answer += byte
            if len(answer) > _MAX_ANSWER_BYTES:
                break
        if not _OK.fullmatch(answer):
            raise ConnectionError(None, f"the vsock device answered {answer[:32]!r}")
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock
