import ipaddress

import pytest

from enclave_parent_gateway.egress.addresses import AddressPolicy, parse_private_network
from enclave_parent_gateway.egress.errors import AddressRefusedError


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "52.94.5.1", "172.32.0.1", "100.128.0.1", "2600:1f18::1", "2a05:d018::1"],
)
def test_public_addresses(text: str) -> None:
    AddressPolicy().check(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("0.0.0.1", "this network"), ("10.1.2.3", "private"), ("100.64.0.1", "carrier")),
        *(("127.0.0.1", "loopback"), ("127.255.255.255", "loopback"), ("172.31.0.1", "private")),
        *(("169.254.169.254", "metadata"), ("169.254.170.2", "metadata")),
        *(("192.168.1.1", "private"), ("192.0.0.8", "reserved"), ("168.63.129.16", "metadata")),
        *(("192.88.99.1", "6to4"), ("198.18.0.1", "benchmarks"), ("224.0.0.1", "multicast")),
        *(("239.255.255.250", "multicast"), ("240.0.0.1", "reserved"), ("255.255.255.255", "res")),
        *(("::", "loopback"), ("::1", "loopback"), ("::169.254.169.254", "IPv4-compatible")),
        *(("::ffff:169.254.169.254", "mapped"), ("::ffff:1.1.1.1", "mapped")),
        *(("64:ff9b::a9fe:a9fe", "NAT64"), ("64:ff9b:1::a9fe:a9fe", "NAT64")),
        *(("2002:a9fe:a9fe::", "6to4"), ("2001:0:a9fe:a9fe::1", "Teredo")),
        *(("fd00:ec2::254", "metadata"), ("fd12::1", "private")),
        *(("fe80::1", "link-local"), ("fec0::1", "reserved")),
        *(("ff02::1", "multicast"), ("100::1", "reserved"), ("4000::1", "reserved")),
        *(("2001:db8::1", "documentation"), ("3fff::1", "documentation"), ("2001:2::1", "res")),
        *(("2600::5efe:a9fe:a9fe", "ISATAP"), ("2600:1f18:1:1:200:5efe:7f00:1", "ISATAP")),
        *(("fe80::1%2", "interface"), ("2600::1%2", "interface"), ("::ffff:0:1.1.1.1", "res")),
    ],
)
def test_what_is_refused(text: str, kind: str) -> None:
    with pytest.raises(AddressRefusedError, match=kind):
        AddressPolicy().check(ipaddress.ip_address(text))


def test_what_code_makes_reachable() -> None:
    policy = AddressPolicy(reachable=[ipaddress.ip_network("127.0.0.0/8")])
    policy.check(ipaddress.ip_address("127.0.0.1"))
    for text in ("10.0.0.1", "::1", "::ffff:127.0.0.1"):
        with pytest.raises(AddressRefusedError):
            policy.check(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/16", "10.0.3.4", "10.1.0.1"),
        ("192.168.7.0/24", "192.168.7.9", "192.168.8.9"),
        ("172.16.0.0/12", "172.31.255.255", "10.0.0.1"),
        ("100.64.0.0/10", "100.64.0.1", "10.0.0.1"),
        ("fd12:3456::/32", "fd12:3456::1", "fd12:3457::1"),
        ("fc00::/7", "fd12::1", "fd00:ec2::254"),
        ("10.0.0.0/8", "10.255.0.1", "169.254.169.254"),
    ],
)
def test_what_a_rule_may_allow(network: str, inside: str, outside: str) -> None:
    private = (parse_private_network(network),)
    AddressPolicy().check(ipaddress.ip_address(inside), private)
    with pytest.raises(AddressRefusedError):
        AddressPolicy().check(ipaddress.ip_address(inside))
    for text in (outside, "127.0.0.1", "::1", "169.254.169.254", f"::ffff:{outside}"[:45]):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        with pytest.raises(AddressRefusedError):
            AddressPolicy().check(address, private)


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0/0", "::/0", "10.0.0.0/7", "10.0.0.1/8", "127.0.0.0/8", "169.254.0.0/16"),
        *("8.8.8.0/24", "fe80::/10", "::1/128", "fd00:ec2::/32", "fc00::/6", "mars", ""),
    ],
)
def test_what_is_no_private_network(text: str) -> None:
    with pytest.raises(ValueError):
        parse_private_network(text)
