import pytest

from enclave_parent_gateway.egress.destination import Destination, parse_destination
from enclave_parent_gateway.egress.errors import RequestError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org:443", "example.org", 443),
        ("EXAMPLE.org:1", "example.org", 1),
        ("a-1.b2.example:65535", "a-1.b2.example", 65535),
        ("192.0.2.7:80", "192.0.2.7", 80),
        ("[2001:DB8::1]:443", "2001:db8::1", 443),
        ("localhost:8080", "localhost", 8080),
    ],
)
def test_what_is_a_destination(text: str, host: str, port: int) -> None:
    found = parse_destination(text)
    assert found == Destination(host, port)
    assert parse_destination(str(found)) == found


def test_a_default_port() -> None:
    assert parse_destination("example.org", default_port=80) == Destination("example.org", 80)
    assert parse_destination("[::1]", default_port=80) == Destination("::1", 80)
    with pytest.raises(RequestError, match="port"):
        parse_destination("example.org")


@pytest.mark.parametrize(
    "text",
    [
        *("", ":443", "example.org:", "example.org:0", "example.org:65536", "example.org:+443"),
        *("example.org:443 ", " example.org:443", "example.org:44a", "example.org:0443"),
        *("user@example.org:443", "good.example:443@evil.example:443", "a:b@example.org:443"),
        *("example.org.:443", ".example.org:443", "a..b:443", "-a.example:443", "a-.example:443"),
        *("exa mple.org:443", "example.org\r\n:443", "example.org\x00:443", "exämple.org:443"),
        *("example.org/:443", "example.org\\:443", "example.org%2e:443", "*.example.org:443"),
        *("[::1:443", "[::1]443", "::1:443", "[fe80::1%eth0]:443", "[127.0.0.1]:443", "[]:443"),
        *("2852039166:80", "0xA9FEA9FE:80", "0251.0376.0251.0376:80", "169.254.43518:80"),
        *("127.1:80", "0:80", "1.2.3.4.5:80", "example.0x7f:80", "256.1.1.1:80", "01.2.3.4:80"),
        *("a" * 64 + ".org:443", "a." * 127 + "org:443", "①②⑦.⓪.⓪.①:80"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(RequestError):
        parse_destination(text)
