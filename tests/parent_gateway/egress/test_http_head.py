import pytest

from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.errors import RequestError
from enclave_parent_gateway.egress.http_head import MAX_HEAD_BYTES, parse_head


def head(first: str, *fields: str) -> bytes:
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "request_head",
    [
        head("CONNECT a.example:443 HTTP/1.1", "Host: a.example:443"),
        head("CONNECT a.example:443 HTTP/1.0"),
        head("CONNECT A.example:443 HTTP/1.1", "Host: a.example", "User-Agent: pip/23 {x}"),
        head("CONNECT a.example:443 HTTP/1.1", "Proxy-Connection: keep-alive", "Content-Length: 0"),
    ],
)
def test_connect(request_head: bytes) -> None:
    found = parse_head(request_head)
    assert found.destination == Destination("a.example", 443)
    assert found.forward is None and found.body_bytes == 0


def test_absolute_form_is_sent_on_in_origin_form() -> None:
    found = parse_head(
        head(
            "POST http://a.example:8080/x?y=1 HTTP/1.1",
            "host: A.example:8080",
            "Accept: */*",
            "content-length: 5",
            "Connection: keep-alive, X-Hop",
            "X-Hop: secret",
            "Proxy-Authorization: Basic eDp5",
            "Proxy-Connection: keep-alive",
            "Upgrade: h2c",
            "TE: trailers",
            "X-aws-ec2-metadata-token: t",
            "Metadata-Flavor: Google",
        )
    )
    assert found.destination == Destination("a.example", 8080)
    assert found.body_bytes == 5
    assert found.forward == head(
        "POST /x?y=1 HTTP/1.1",
        "Host: a.example:8080",
        "Accept: */*",
        "content-length: 5",
        "Connection: close",
    )


def test_absolute_form_without_port_and_path() -> None:
    found = parse_head(head("GET http://a.example HTTP/1.1", "Host: a.example"))
    assert found.destination == Destination("a.example", 80)
    assert (found.forward or b"").startswith(b"GET / HTTP/1.1\r\nHost: a.example\r\n")


CONNECT = "CONNECT a.example:443 HTTP/1.1"
GET = "GET http://a.example/ HTTP/1.1"


@pytest.mark.parametrize(
    "bad",
    [
        b"\r\n\r\n",
        head("GET / HTTP/1.1", "Host: a.example"),
        head("OPTIONS * HTTP/1.1", "Host: a.example"),
        head("PRI * HTTP/2.0"),
        head("CONNECT a.example:443 HTTP/2"),
        head("CONNECT a.example:443"),
        head("connect a.example:443 HTTP/1.1"),
        head("CONNECT  a.example:443 HTTP/1.1"),
        head("CONNECT\ta.example:443 HTTP/1.1"),
        head(" CONNECT a.example:443 HTTP/1.1"),
        head("CONNECT a.example:443 HTTP/1.1 "),
        head("CONNECT a.example HTTP/1.1"),
        head("CONNECT http://a.example:443/ HTTP/1.1"),
        head("CONNECT good.example@evil.example:443 HTTP/1.1"),
        head(CONNECT, "Host: evil.example:443"),
        head(CONNECT, "Host: a.example:444"),
        head(CONNECT, "Host: a.example:443", "Host: a.example:443"),
        head(CONNECT, "Transfer-Encoding: chunked"),
        head(CONNECT, "Content-Length: 5"),
        head(CONNECT, "Content-Length: 0", "Content-Length: 0"),
        head(CONNECT, " folded: x"),
        head(CONNECT, "X: a", "\tb"),
        head(CONNECT, "X : a"),
        head(CONNECT, "X"),
        head(CONNECT, ": a"),
        head(CONNECT, "X: a\x00b"),
        head(CONNECT, "X: a\rb"),
        head(CONNECT, "X: a\nY: b"),
        head(CONNECT, "X: \xe4"),
        head(CONNECT, "X: \x7f"),
        head("CONNECT a.example:443\x0b HTTP/1.1"),
        head("CONNECT a.example\r\n:443 HTTP/1.1"),
        head("GET https://a.example/ HTTP/1.1"),
        head("GET ftp://a.example/ HTTP/1.1"),
        head("GET HTTP://a.example/ HTTP/1.1"),
        head("GET http:a.example/ HTTP/1.1"),
        head("GET http:///x HTTP/1.1"),
        head("GET http://u:p@a.example/ HTTP/1.1"),
        head("GET http://a.example\\@evil.example/ HTTP/1.1"),
        head("GET http://a.example#@evil.example/ HTTP/1.1"),
        head("GET http://a.example?@evil.example/ HTTP/1.1"),
        head(GET, "Host: evil.example"),
        head(GET, "Host: a.example, evil.example"),
        head(GET, "Host:"),
        head(GET, "Transfer-Encoding: chunked", "Content-Length: 3"),
        head(GET, "Transfer-Encoding: xchunked"),
        head(GET, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        head(GET, "Content-Length: 3", "content-length: 4"),
        head(GET, "Content-Length: +3"),
        head(GET, "Content-Length: 3, 3"),
        head(GET, "Content-Length: 0x3"),
        head(GET, "Connection: close, Content-Length", "Content-Length: 3"),
        head(GET, "Connection: host"),
    ],
    ids=lambda bad: bad.decode("latin-1").encode("unicode_escape").decode()[:60],
)
def test_what_is_refused(bad: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        parse_head(bad)
    assert refused.value.status in (400, 411)


def test_limits() -> None:
    for bad in (
        head(CONNECT, "X: " + "a" * MAX_HEAD_BYTES),
        head(CONNECT, *[f"X{number}: a" for number in range(101)]),
    ):
        with pytest.raises(RequestError) as refused:
            parse_head(bad)
        assert refused.value.status == 431
