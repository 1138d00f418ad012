"""The head of a request to the proxy, parsed strictly: what has two readings has none.

Two kinds are carried: CONNECT, and one request in absolute-form to a plain HTTP server. Bytes in,
values out.

Source: RFC 9112 (HTTP/1.1) and RFC 9110 9.3.6 (CONNECT), less what they leave to the recipient;
THREATS N-05, N-09.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enclave_parent_gateway.egress.destination import Destination, parse_destination
from enclave_parent_gateway.egress.errors import (
    HeadTooLargeError,
    LengthRequiredError,
    RequestError,
)

__all__ = ["END_OF_HEAD", "MAX_HEAD_BYTES", "ProxyRequest", "parse_head"]

END_OF_HEAD: Final = b"\r\n\r\n"
MAX_HEAD_BYTES: Final = 16 * 1024
"""Large enough for signed AWS requests, whose heads take 2 KiB."""
_MAX_FIELDS: Final = 100
_HTTP_PORT: Final = 80

_LINE = re.compile(r"([A-Z]{3,20}) ([!-~]{1,8192}) HTTP/1\.([01])\Z")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([ -~\t]*)\Z")
_ABSOLUTE = re.compile(r"http://([^/?#]*)((?:/[^#]*)?)\Z")
_LENGTH = re.compile(r"[0-9]{1,15}\Z")
_ONCE: Final = frozenset({"host", "content-length", "transfer-encoding"})
_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "http2-settings", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "upgrade"),
    }
)
_METADATA: Final = frozenset(
    {
        *("metadata", "metadata-flavor", "x-google-metadata-request"),
        *("x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"),
    }
)
"""What metadata services want to see; no other server needs it."""


@dataclass(frozen=True)
class ProxyRequest:
    """What the notebook asks for.

    Attributes:
        destination: Where to.
        forward: The head to send there; None for CONNECT.
        body_bytes: How many bytes follow the head; 0 for CONNECT.
    """

    destination: Destination
    forward: bytes | None
    body_bytes: int


def parse_head(head: bytes) -> ProxyRequest:
    """Return what a head asks for.

    Args:
        head: All of it, with the empty line at its end.

    Raises:
        RequestError: It is not one request with one meaning; its `status` says more.
    """
    if len(head) > MAX_HEAD_BYTES:
        raise HeadTooLargeError(f"the request's head is over {MAX_HEAD_BYTES} bytes")
    if not head.endswith(END_OF_HEAD):
        raise RequestError("the request's head does not end")
    try:
        lines = head[: -len(END_OF_HEAD)].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise RequestError("the request's head is not in ASCII") from None
    line = _LINE.match(lines[0])
    if line is None:
        raise RequestError("the first line is no HTTP/1 request to a proxy")
    method, target, minor = line.groups()
    fields = _fields(lines[1:])
    if method == "CONNECT":
        return _connect(target, fields)
    return _absolute(method, target, minor, fields)


def _fields(lines: Sequence[str]) -> list[tuple[str, str]]:
    if len(lines) > _MAX_FIELDS:
        raise HeadTooLargeError(f"the request has over {_MAX_FIELDS} header fields")
    fields: list[tuple[str, str]] = []
    for line in lines:
        field = _FIELD.match(line)
        if field is None:
            raise RequestError("a header field is malformed, folded, or has control characters")
        fields.append((field[1], field[2].rstrip(" \t")))
    names = [name.lower() for name, _ in fields]
    if any(names.count(name) > 1 for name in _ONCE):
        raise RequestError("a header field that decides about the request is there twice")
    return fields


def _value(fields: Sequence[tuple[str, str]], wanted: str) -> str | None:
    return next((value for name, value in fields if name.lower() == wanted), None)


def _check_host(fields: Sequence[tuple[str, str]], destination: Destination, default: int) -> None:
    """See that Host names the same server; it may leave out the port that goes without saying."""
    host = _value(fields, "host")
    if host is None:
        return
    try:
        named = parse_destination(host, default_port=destination.port)
        usual = parse_destination(host, default_port=default)
    except RequestError:
        raise RequestError("the field Host is no host") from None
    if destination not in (named, usual):
        raise RequestError("the field Host names another server than the first line")


def _connect(target: str, fields: Sequence[tuple[str, str]]) -> ProxyRequest:
    destination = parse_destination(target)
    _check_host(fields, destination, destination.port)
    if _value(fields, "transfer-encoding") is not None:
        raise RequestError("CONNECT has no body, and a field says that it has one")
    if _value(fields, "content-length") not in (None, "0"):
        raise RequestError("CONNECT has no body, and a field says that it has one")
    return ProxyRequest(destination, None, 0)


def _absolute(
    method: str, target: str, minor: str, fields: Sequence[tuple[str, str]]
) -> ProxyRequest:
    if "\\" in target:
        raise RequestError("the URL has a backslash, which two programs read differently")
    url = _ABSOLUTE.match(target)
    if url is None:
        raise RequestError("a proxy takes CONNECT HOST:PORT, or a URL that begins with http://")
    destination = parse_destination(url[1], default_port=_HTTP_PORT)
    _check_host(fields, destination, _HTTP_PORT)
    length = _value(fields, "content-length")
    if _value(fields, "transfer-encoding") is not None:
        if length is not None:
            raise RequestError("the request has both Content-Length and Transfer-Encoding")
        raise LengthRequiredError("a request in chunks is not carried; send Content-Length")
    if length is not None and not _LENGTH.match(length):
        raise RequestError("Content-Length is no number")
    dropped = _HOP_BY_HOP | _METADATA | _named_by_connection(fields)
    port = "" if destination.port == _HTTP_PORT else f":{destination.port}"
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    lines = [f"{method} {url[2] or '/'} HTTP/1.{minor}", f"Host: {host}{port}"]
    for name, value in fields:
        if name.lower() != "host" and name.lower() not in dropped:
            lines.append(f"{name}: {value}")
    # One request for each connection: nothing behind this one can be meant for another server.
    lines.append("Connection: close")
    forward = "\r\n".join(lines).encode("ascii") + END_OF_HEAD
    return ProxyRequest(destination, forward, int(length or 0))


def _named_by_connection(fields: Sequence[tuple[str, str]]) -> frozenset[str]:
    named: set[str] = set()
    for name, value in fields:
        if name.lower() == "connection":
            named |= {word.strip().lower() for word in value.split(",")}
    if named & _ONCE:
        raise RequestError("the field Connection names a field that decides about the request")
    return frozenset(named)
