"""The first flight of a TLS client, read as far as the name it asks for. Bytes in, values out.

Source: RFC 8446 4.1.2 and 5.1 (TLS 1.3), RFC 6066 3 (server_name), draft-ietf-tls-esni (Encrypted
Client Hello); THREATS N-06.
"""

from typing import Final

from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.errors import ClientHelloError

__all__ = ["MAX_HELLO_BYTES", "UNRECOGNISED_NAME_ALERT", "check_client_hello"]

MAX_HELLO_BYTES: Final = 16 * 1024
"""A hello takes 200 to 2000 bytes; with post-quantum key shares a little more."""
UNRECOGNISED_NAME_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal alert (RFC 8446 6.2): the client's library says so instead of "connection reset"."""

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_MAX_RECORD_BYTES: Final = 2**14
_SERVER_NAME, _ENCRYPTED_CLIENT_HELLO = 0, 0xFE0D
_HOST_NAME = 0


class _Cursor:
    """Reads fields off a message; short is malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if len(self._data) - self._at < count:
            raise ClientHelloError("the TLS ClientHello is malformed")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        """Return the unsigned number in the next `width` bytes, big-endian."""
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        """Return the bytes whose count is in the next `width` bytes (RFC 8446, section 3.4)."""
        return self.take(self.number(width))

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)


def check_client_hello(data: bytes, destination: Destination) -> bool:
    """Say whether a whole ClientHello for this destination is there.

    Args:
        data: All that the client sent so far.
        destination: What the tunnel was opened to.

    Returns:
        True: it is. False: so far so good, more has to come.

    Raises:
        ClientHelloError: It is no ClientHello, is for another server, or hides for which.
    """
    hello = _message(data)
    if hello is None:
        if len(data) >= MAX_HELLO_BYTES:
            raise ClientHelloError(f"the TLS ClientHello is over {MAX_HELLO_BYTES} bytes")
        return False
    names, encrypted = _names(hello)
    if encrypted:
        raise ClientHelloError("the TLS ClientHello is encrypted: who it is for cannot be seen")
    if destination.address is not None:
        # RFC 6066: a literal address is never sent as a name.
        expected: list[str] = []
    else:
        expected = [destination.host]
    if names != expected:
        raise ClientHelloError(
            "the tunnel was opened to one server and TLS asks for another, or for none by name"
        )
    return True


def _message(data: bytes) -> bytes | None:
    """Return the ClientHello's body, put together from its records; None until all is there."""
    message = b""
    at = 0
    while True:
        head = data[at : at + _RECORD_HEADER]
        if (head and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != 3):
            raise ClientHelloError("port 443 is for TLS, and this is none")
        if len(head) < _RECORD_HEADER:
            return None
        size = int.from_bytes(head[3:], "big")
        if not 0 < size <= _MAX_RECORD_BYTES:
            raise ClientHelloError("the TLS ClientHello is malformed")
        message += data[at + _RECORD_HEADER : at + _RECORD_HEADER + size]
        at += _RECORD_HEADER + size
        if message[0:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise ClientHelloError("TLS does not start with a ClientHello")
        if len(message) >= _MESSAGE_HEADER:
            end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
            if end > MAX_HELLO_BYTES:
                raise ClientHelloError(f"the TLS ClientHello is over {MAX_HELLO_BYTES} bytes")
            if len(message) > end:
                raise ClientHelloError("something follows the TLS ClientHello in its record")
            if len(message) == end:
                return message[_MESSAGE_HEADER:]
        if at > len(data):
            return None


def _names(hello: bytes) -> tuple[list[str], bool]:
    """Return the names it asks for, in lower case, and whether a part of it is encrypted."""
    cursor = _Cursor(hello)
    cursor.take(2 + 32)  # legacy version, random
    cursor.vector(1)  # session id
    cursor.vector(2)  # cipher suites
    cursor.vector(1)  # compression methods
    extensions = _Cursor(cursor.vector(2) if not cursor.at_end else b"")
    if not cursor.at_end:
        raise ClientHelloError("the TLS ClientHello is malformed")
    names: list[str] = []
    seen: set[int] = set()
    while not extensions.at_end:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise ClientHelloError("the TLS ClientHello has an extension twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            names += _server_names(content)
    return names, _ENCRYPTED_CLIENT_HELLO in seen


def _server_names(content: bytes) -> list[str]:
    outer = _Cursor(content)
    entries = _Cursor(outer.vector(2))
    if not outer.at_end:
        raise ClientHelloError("the TLS ClientHello is malformed")
    names: list[str] = []
    while not entries.at_end:
        if entries.number(1) != _HOST_NAME:
            raise ClientHelloError("the TLS ClientHello names its server in an unknown way")
        names.append(entries.vector(2).decode("latin-1").lower())
    return names
