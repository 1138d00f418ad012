"""The Condition block of a policy: operators, set operators and what an absent key means.

Source: IAM user guide, "IAM JSON policy elements: Condition operators" and "Set operators".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Condition", "parse_operator", "wildcard_match"]

_IF_EXISTS = "IfExists"
_SET_OPERATORS = ("ForAnyValue", "ForAllValues")


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    parts = (
        ".*" if character == "*" else "." if character == "?" else re.escape(character)
        for character in re.sub(r"\*+", "*", text)
    )
    return re.compile("".join(parts), re.DOTALL)


def wildcard_match(pattern: str, value: str) -> bool:
    """Return whether `value` matches a pattern with `*` and `?`, case-sensitively."""
    return _pattern(pattern).fullmatch(value) is not None


def _equal(policy: str, value: str) -> bool:
    return policy == value


def _equal_ignoring_case(policy: str, value: str) -> bool:
    return policy.lower() == value.lower()


# Operator: (comparison, whether it is negated).
_OPERATORS: Mapping[str, tuple[Callable[[str, str], bool], bool]] = {
    "StringEquals": (_equal, False),
    "StringNotEquals": (_equal, True),
    "StringEqualsIgnoreCase": (_equal_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_equal_ignoring_case, True),
    "StringLike": (wildcard_match, False),
    "StringNotLike": (wildcard_match, True),
    "Bool": (_equal_ignoring_case, False),
}


@dataclass(frozen=True)
class Condition:
    """One operator applied to one key; `values` are the policy's, of which one must match."""

    operator: str
    set_operator: str | None
    if_exists: bool
    key: str
    values: tuple[str, ...]

    def holds(self, context: Mapping[str, Sequence[str]]) -> bool:
        """Return whether the condition is true.

        Args:
            context: The request's values by condition key, keys in lower case.
        """
        found = context.get(self.key.lower())
        if self.operator == "Null":
            return (found is None) == (self.values[0].lower() == "true")
        compare, negated = _OPERATORS[self.operator]
        if not found:
            if self.set_operator is not None:
                return self.set_operator == "ForAllValues" or self.if_exists
            # An absent key satisfies "is not" and nothing else.
            return negated or self.if_exists
        matches = [any(compare(policy, value) for policy in self.values) for value in found]
        if self.set_operator == "ForAllValues":
            return not any(matches) if negated else all(matches)
        if self.set_operator == "ForAnyValue":
            return not all(matches) if negated else any(matches)
        return not any(matches) if negated else any(matches)


def parse_operator(text: str, key: str, values: Sequence[str]) -> Condition:
    """Return the condition written as `text`, such as `ForAnyValue:StringLikeIfExists`.

    Raises:
        ValueError: An unknown operator, or one that is not evaluated here.
    """
    set_operator, colon, name = text.rpartition(":")
    if colon and set_operator not in _SET_OPERATORS:
        raise ValueError(f"unknown set operator {set_operator!r}")
    if_exists = name.endswith(_IF_EXISTS)
    operator = name.removesuffix(_IF_EXISTS)
    if operator == "Null":
        if if_exists or colon or [value.lower() for value in values] not in (["true"], ["false"]):
            raise ValueError("Null takes one value, true or false")
    elif operator not in _OPERATORS:
        raise ValueError(f"condition operator {text!r} is not supported")
    if not values:
        raise ValueError(f"{text} on {key} has no values")
    if any("${" in value for value in values):
        raise ValueError("policy variables are not supported")
    return Condition(operator, set_operator or None, if_exists, key, tuple(values))
