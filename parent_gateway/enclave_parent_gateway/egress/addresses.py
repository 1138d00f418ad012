"""Which IP addresses the proxy may connect to: decided on the resolved address, never on a text.

Own lists, because `ipaddress.is_global` of Python 3.11.2 is true for NAT64, IPv4-compatible and
multicast forms (THREATS N-02).

Source: IANA special-purpose address registries (RFC 6890 and its updates).
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from enclave_parent_gateway.egress.errors import AddressRefusedError

__all__ = ["Address", "AddressPolicy", "Network", "parse_private_network"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_DENIED: Final = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "a cloud's metadata service"),
    ("169.254.0.0/16", "link-local, with the metadata service"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "for documentation"),
    ("192.31.196.0/24", "reserved"),
    ("192.52.193.0/24", "reserved"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "reserved"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("::/96", "loopback or IPv4-compatible"),
    ("fd00:ec2::/32", "a cloud's own, with the metadata service"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("2001::/32", "Teredo"),
    ("2001::/23", "reserved"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "6to4"),
    ("2620:4f:8000::/48", "reserved"),
    ("3fff::/20", "for documentation"),
)
_PRIVATE: Final = ("private", "carrier-grade NAT")
"""What a rule may allow: all else stays refused, whoever asks."""
_NETWORKS: Final = tuple((ip_network(text), word) for text, word in _DENIED)
_IPV6_UNICAST: Final = IPv6Network("2000::/3")
"""All that IANA gives out; everything else is reserved."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""Upper half of an interface identifier with an IPv4 address in the lower one (RFC 5214)."""


def parse_private_network(text: str) -> Network:
    """Return the network that a person means, for instance a VPC's 10.0.0.0/16.

    Raises:
        ValueError: It is none, or not altogether private.
    """
    network = ip_network(text)
    # The first that it is in says what it is, as for addresses.
    kinds = [kind for denied, kind in _NETWORKS if _within(network, denied)]
    if kinds and kinds[0] in _PRIVATE:
        return network
    raise ValueError(f"{text} is not a private network")


def _within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version
        and network.prefixlen >= other.prefixlen
        and network.network_address in other
    )


class AddressPolicy:
    """Refuses what is not a public unicast address.

    Args:
        reachable: Networks that may be reached all the same, whatever they are. Only code can name
            them: no option, variable or file leads here.
    """

    def __init__(self, *, reachable: Iterable[Network] = ()) -> None:
        self._reachable = tuple(reachable)

    def check(self, address: Address, private: Iterable[Network] = ()) -> None:
        """Return if the proxy may connect to this address.

        Args:
            address: As resolved.
            private: Private networks that the destination's rule names.

        Raises:
            AddressRefusedError: It may not; says what kind of address it is.
        """
        kind = self._kind_refused(address)
        if kind in _PRIVATE and any(address in network for network in private):
            return
        if kind in _PRIVATE:
            raise AddressRefusedError(
                f"its address {address} is {kind}; if it is one of your own network, allow it with "
                "--private NETWORK"
            )
        if kind is not None:
            raise AddressRefusedError(
                f"its address {address} is {kind}: the proxy connects to public addresses only"
            )

    def _kind_refused(self, address: Address) -> str | None:
        if any(address in network for network in self._reachable):
            return None
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return "bound to an interface"
        for network, kind in _NETWORKS:
            if address in network:
                return kind
        if isinstance(address, IPv6Address):
            if address not in _IPV6_UNICAST:
                return "reserved"
            if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
                return "ISATAP"
        return None
