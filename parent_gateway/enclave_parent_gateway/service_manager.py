"""Tells systemd that a service is ready, where systemd asked to be told (sd_notify(3))."""

import os
import socket
from contextlib import suppress

__all__ = ["say_ready"]


def say_ready() -> None:
    """Send READY=1 to the socket in NOTIFY_SOCKET; without one nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # Who does not listen any more does not wait either.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", address)
