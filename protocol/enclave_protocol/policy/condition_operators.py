"""The comparisons of condition operators: one value of the policy against one of the request.

Source: IAM user guide, "IAM JSON policy elements: Condition operators".
"""

import base64
import binascii
import ipaddress
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

from enclave_protocol.policy.wildcards import wildcard_match

__all__ = ["OPERATORS", "Operator"]

_MAX_NUMBER: Final = 64
"""Digits; a longer number is none."""

Compare = Callable[[str, str], bool]
"""(policy's value, request's value) -> whether they match."""


@dataclass(frozen=True)
class Operator:
    """A comparison, and whether the operator holds when none of the policy's values match."""

    compare: Compare
    negated: bool = False


def _equal(policy: str, value: str) -> bool:
    return policy == value


def _equal_ignoring_case(policy: str, value: str) -> bool:
    return policy.lower() == value.lower()


def _arn_match(policy: str, value: str) -> bool:
    """Component by component: a wildcard does not reach over one of the first five colons."""
    wanted, found = policy.split(":", 5), value.split(":", 5)
    return len(wanted) == len(found) == 6 and all(map(wildcard_match, wanted, found))


def _binary_equal(policy: str, value: str) -> bool:
    try:
        return base64.b64decode(policy, validate=True) == base64.b64decode(value, validate=True)
    except binascii.Error:
        return False


def _in_network(policy: str, value: str) -> bool:
    try:
        return ipaddress.ip_address(value) in ipaddress.ip_network(policy, strict=False)
    except ValueError:
        return False


def _number(text: str) -> Decimal:
    if len(text) > _MAX_NUMBER:
        raise InvalidOperation
    return Decimal(text)


def _time(text: str) -> datetime:
    """ISO 8601, or seconds since 1970; without a zone it is UTC."""
    if text.isdecimal() and len(text) <= 12:
        return datetime.fromtimestamp(int(text), UTC)
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _numeric(compare: Callable[[Decimal, Decimal], bool]) -> Compare:
    def compare_numbers(policy: str, value: str) -> bool:
        try:
            return compare(_number(value), _number(policy))
        except InvalidOperation:
            return False

    return compare_numbers


def _date(compare: Callable[[datetime, datetime], bool]) -> Compare:
    def compare_dates(policy: str, value: str) -> bool:
        try:
            return compare(_time(value), _time(policy))
        except (ValueError, OverflowError, OSError):
            return False

    return compare_dates


OPERATORS: Final[Mapping[str, Operator]] = {
    "StringEquals": Operator(_equal),
    "StringNotEquals": Operator(_equal, negated=True),
    "StringEqualsIgnoreCase": Operator(_equal_ignoring_case),
    "StringNotEqualsIgnoreCase": Operator(_equal_ignoring_case, negated=True),
    "StringLike": Operator(wildcard_match),
    "StringNotLike": Operator(wildcard_match, negated=True),
    "Bool": Operator(_equal_ignoring_case),
    "BinaryEquals": Operator(_binary_equal),
    "IpAddress": Operator(_in_network),
    "NotIpAddress": Operator(_in_network, negated=True),
    # IAM: ArnEquals and ArnLike behave identically.
    "ArnEquals": Operator(_arn_match),
    "ArnLike": Operator(_arn_match),
    "ArnNotEquals": Operator(_arn_match, negated=True),
    "ArnNotLike": Operator(_arn_match, negated=True),
    "NumericEquals": Operator(_numeric(operator.eq)),
    "NumericNotEquals": Operator(_numeric(operator.eq), negated=True),
    "NumericLessThan": Operator(_numeric(operator.lt)),
    "NumericLessThanEquals": Operator(_numeric(operator.le)),
    "NumericGreaterThan": Operator(_numeric(operator.gt)),
    "NumericGreaterThanEquals": Operator(_numeric(operator.ge)),
    "DateEquals": Operator(_date(operator.eq)),
    "DateNotEquals": Operator(_date(operator.eq), negated=True),
    "DateLessThan": Operator(_date(operator.lt)),
    "DateLessThanEquals": Operator(_date(operator.le)),
    "DateGreaterThan": Operator(_date(operator.gt)),
    "DateGreaterThanEquals": Operator(_date(operator.ge)),
}
"""By the name in a policy, which is case-sensitive here: AWS writes them so."""
