"""Which destinations the user allows: rules, and the names that stand for sets of hosts.

kms            AWS KMS in every region; kms/eu-west-1: in one
s3             S3 in every region, every bucket; s3/eu-west-1: in one
pypi           the package index and its file store, as pip on the parent is set
HOST:PORT      that one
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from enclave_parent_gateway.egress.addresses import Network, parse_private_network
from enclave_parent_gateway.egress.destination import Destination, parse_destination
from enclave_parent_gateway.egress.errors import AllowlistError, RequestError

__all__ = [
    "DEFAULT_RULES",
    "MAX_RULES",
    "NAMED_SETS",
    "PACKAGE_INDEX",
    "Allowlist",
    "Rule",
    "parse_rule",
    "suggested_rule",
    "with_private",
]

PACKAGE_INDEX: Final = "pypi"
NAMED_SETS: Final = ("kms", "s3", PACKAGE_INDEX)
MAX_RULES: Final = 1024

_REGION = r"[a-z]{2}(?:-[a-z]+){1,3}-[0-9]{1,2}"
_SUFFIX = r"amazonaws\.com(?:\.cn)?"
_REGION_NAME = re.compile(rf"{_REGION}\Z")
_TLS_PORT: Final = 443


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of an allowlist.

    Args:
        text: `HOST:PORT`, or the name of a set with or without `/REGION`.
        hosts: What the set stands for, as `HOST:PORT`, where it was looked up when the rule was
            made (`pypi`).
        private: Private networks, as `10.0.0.0/16`, that its hosts may have addresses in: a VPC
            endpoint's, or a server's of one's own.
    """

    text: str
    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    def allows(self, destination: Destination) -> bool:
        """Return whether this entry allows to connect there."""
        if str(destination) in (self.text, *self.hosts):
            return True
        name, _, region = self.text.partition("/")
        pattern = _pattern(name, region)
        if pattern is None or destination.port != _TLS_PORT:
            return False
        return re.fullmatch(pattern, destination.host) is not None


DEFAULT_RULES: Final = (Rule("kms"),)


def _pattern(name: str, region: str) -> str | None:
    """Return a pattern of the hosts that a set stands for, None for what is no such set."""
    where = re.escape(region) or _REGION
    if name == "kms":
        return rf"kms(?:-fips)?\.{where}\.{_SUFFIX}"
    if name == "s3":
        regional = rf"(?:\.dualstack)?\.{where}"
        # The endpoint without a region is that of us-east-1.
        regional = rf"(?:{regional})?" if region in ("", "us-east-1") else regional
        return rf"(?:[a-z0-9][a-z0-9.-]*\.)?s3(?:-fips)?{regional}\.{_SUFFIX}"
    return None


def parse_rule(text: str) -> Rule:
    """Return the rule that a person means; `pypi` comes without its hosts.

    Raises:
        AllowlistError: It is neither a set's name nor HOST:PORT.
    """
    name, slash, region = text.partition("/")
    if name in NAMED_SETS:
        if slash and (name == PACKAGE_INDEX or not _REGION_NAME.match(region)):
            raise AllowlistError(f"{text!r} names no AWS region; write for example s3/eu-west-1")
        return Rule(text)
    try:
        return Rule(str(parse_destination(text)))
    except RequestError as error:
        raise AllowlistError(
            f"{text!r} is not allowed: {error}; write HOST:PORT, or one of {', '.join(NAMED_SETS)}"
        ) from None


def with_private(rule: Rule, networks: Iterable[str]) -> Rule:
    """Return the rule with private networks that its hosts may be in, as a person typed them.

    Raises:
        AllowlistError: One is no private network.
    """
    try:
        private = tuple(str(parse_private_network(text)) for text in networks)
    except ValueError:
        raise AllowlistError(
            f"{', '.join(networks)}: write private networks, for example --private 10.0.0.0/16"
        ) from None
    return msgspec.structs.replace(rule, private=private)


def suggested_rule(destination: Destination) -> str:
    """Return the shortest rule that allows this destination, for a message."""
    for name in ("kms", "s3"):
        if Rule(name).allows(destination):
            return name
    return str(destination)


class Allowlist:
    """All rules together; nothing else is allowed.

    Args:
        rules: At most 1024.

    Raises:
        AllowlistError: They are more.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        if len(self.rules) > MAX_RULES:
            raise AllowlistError(f"an allowlist has at most {MAX_RULES} rules")

    def allows(self, destination: Destination) -> bool:
        """Return whether a rule allows this destination."""
        return any(rule.allows(destination) for rule in self.rules)

    def private_networks(self, destination: Destination) -> tuple[Network, ...]:
        """Return the private networks in which this destination may be."""
        return tuple(
            parse_private_network(text)
            for rule in self.rules
            if rule.private and rule.allows(destination)
            for text in rule.private
        )

    def with_changes(self, allow: Iterable[Rule], deny: Iterable[str]) -> "Allowlist":
        """Return the list with some rules added (the newer of two with one text), others removed.

        Raises:
            AllowlistError: They become too many.
        """
        rules = {rule.text: rule for rule in self.rules}
        rules |= {rule.text: rule for rule in allow}
        for text in deny:
            rules.pop(text, None)
        return Allowlist(rules.values())
