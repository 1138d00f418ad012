import pytest

from enclave_parent_gateway.egress.client_hello import MAX_HELLO_BYTES, check_client_hello
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.errors import ClientHelloError
from tests.support.egress import client_hello

GOOD = Destination("good.example", 443)


def records(hello: bytes, size: int) -> bytes:
    """Cut a hello, which is one record, into records of this size."""
    body = hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(hello[:3] + len(part).to_bytes(2, "big") + part for part in parts)


def with_extension(hello: bytes, kind: int, content: bytes) -> bytes:
    """Add an extension at the end."""
    added = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    length = int.from_bytes(hello[at : at + 2], "big") + len(added)
    body = hello[9:at] + length.to_bytes(2, "big") + hello[at + 2 :] + added
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return hello[:3] + len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_the_right_name(alpn: tuple[str, ...]) -> None:
    hello = client_hello("good.example", alpn)
    assert check_client_hello(hello, GOOD)
    assert check_client_hello(client_hello("Good.Example"), GOOD)
    for end in range(len(hello)):
        assert not check_client_hello(hello[:end], GOOD)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_in_many_records(size: int) -> None:
    hello = records(client_hello("good.example"), size)
    assert check_client_hello(hello, GOOD)
    # What follows in records of its own is TLS's business (early data).
    assert check_client_hello(hello + b"\x17\x03\x03\x00\x01x", GOOD)
    with pytest.raises(ClientHelloError, match="another"):
        check_client_hello(records(client_hello("evil.example"), size), GOOD)


def test_an_address_is_never_a_name() -> None:
    assert check_client_hello(client_hello(None), Destination("192.0.2.1", 443))
    with pytest.raises(ClientHelloError):
        check_client_hello(client_hello("evil.example"), Destination("192.0.2.1", 443))


@pytest.mark.parametrize("name", ["evil.example", "sub.good.example", "good.example.evil", None])
def test_another_name_or_none(name: str | None) -> None:
    with pytest.raises(ClientHelloError, match="another, or for none"):
        check_client_hello(client_hello(name), GOOD)


def test_encrypted_client_hello() -> None:
    hello = with_extension(client_hello("good.example"), 0xFE0D, b"\x00" * 20)
    with pytest.raises(ClientHelloError, match="encrypted"):
        check_client_hello(hello, GOOD)


def test_two_names() -> None:
    two = b"\x00\x00\x0cgood.example\x00\x00\x0cevil.example"
    content = len(two).to_bytes(2, "big") + two
    bare = client_hello(None)
    with pytest.raises(ClientHelloError, match="another"):
        check_client_hello(with_extension(bare, 0, content), GOOD)
    with pytest.raises(ClientHelloError, match="twice"):
        check_client_hello(with_extension(client_hello("good.example"), 0, content), GOOD)
    with pytest.raises(ClientHelloError, match="malformed"):
        check_client_hello(with_extension(bare, 0, content + b"x"), GOOD)
    with pytest.raises(ClientHelloError, match="unknown way"):
        check_client_hello(with_extension(bare, 0, b"\x00\x04\x01\x00\x01x"), GOOD)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x00\x00",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
        b"\x17\x03\x03\x00\x01x",
    ],
    ids=repr,
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(ClientHelloError):
        check_client_hello(data, GOOD)


def test_no_mutation_does_anything_but_pass_or_be_refused() -> None:
    hello = bytearray(client_hello("good.example"))
    for at in range(len(hello)):
        for value in (0, 1, 0x7F, 0xFF):
            changed = bytearray(hello)
            changed[at] = value
            try:
                check_client_hello(bytes(changed), GOOD)
            except ClientHelloError:
                continue


def test_a_hello_without_end() -> None:
    start = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc"
    assert not check_client_hello(start + b"\x00" * 100, GOOD)
    with pytest.raises(ClientHelloError, match="over"):
        check_client_hello(b"\x16\x03\x01\x00\x01\x01" * MAX_HELLO_BYTES, GOOD)
