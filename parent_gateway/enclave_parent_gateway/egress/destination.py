"""A host and a port, read strictly: names that a resolver would take for numbers are none.

`getaddrinfo` takes 2852039166, 0xA9FEA9FE and 0251.0376.0251.0376 for 169.254.169.254, so what
looks like a number must be the one usual form of an address (THREATS N-03).
"""

import ipaddress
import re
from dataclasses import dataclass

from enclave_parent_gateway.egress.errors import RequestError

__all__ = ["Destination", "parse_destination"]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_MAX_BYTES = 260


@dataclass(frozen=True)
class Destination:
    """Where a connection goes.

    Attributes:
        host: A name in lower case without a final dot, or an address in its usual form.
        port: 1 to 65535.
    """

    host: str
    port: int

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an address; None if it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_destination(text: str, *, default_port: int | None = None) -> Destination:
    """Return what `HOST:PORT` means.

    Args:
        text: As a stranger wrote it; an IPv6 address is in brackets.
        default_port: The port if there is none.

    Raises:
        RequestError: It is no host and port, or a form that hides which host it is.
    """
    if len(text) > _MAX_BYTES or not text.isascii():
        raise RequestError("the host is too long or not in ASCII")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or "%" in host:
            raise RequestError("the IPv6 address between brackets is none")
        host = _canonical_ipv6(host)
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
        host = _checked_host(host.lower())
    if not rest and default_port is not None:
        return Destination(host, default_port)
    if not rest.startswith(":") or not _PORT.match(rest[1:]) or int(rest[1:]) > 65535:
        raise RequestError("the port is missing, or not a number from 1 to 65535")
    return Destination(host, int(rest[1:]))


def _canonical_ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise RequestError("the IPv6 address between brackets is none") from None


def _checked_host(host: str) -> str:
    if not _NAME.match(host):
        raise RequestError("the host is neither a name nor an address")
    if _NUMBER.match(host.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise RequestError(
                "the host is a number in an unusual form; write an IPv4 address as 192.0.2.1"
            ) from None
    return host
