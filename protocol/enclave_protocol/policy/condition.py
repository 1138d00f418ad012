"""One condition of a statement: operators, set operators and what an absent key means.

Source: IAM user guide, "IAM JSON policy elements: Condition operators" and "Set operators for
multivalued context keys".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from enclave_protocol.policy.condition_operators import OPERATORS
from enclave_protocol.policy.policy_error import PolicyError

__all__ = ["Condition", "parse_condition"]

_IF_EXISTS: Final = "IfExists"
_SET_OPERATORS: Final = ("ForAnyValue", "ForAllValues")


@dataclass(frozen=True)
class Condition:
    """One operator applied to one condition key.

    Attributes:
        text: The operator as the policy writes it, such as `ForAnyValue:StringLikeIfExists`.
        operator: Without set operator and IfExists.
        set_operator: ForAnyValue, ForAllValues or None.
        if_exists: An absent key satisfies it.
        key: The condition key, in lower case: AWS does not tell cases apart.
        values: The policy's; one of them must match.
        known: False: this engine cannot judge it.
    """

    text: str
    operator: str
    set_operator: str | None
    if_exists: bool
    key: str
    values: tuple[str, ...]
    known: bool

    @property
    def negated(self) -> bool:
        """Whether it holds when nothing matches, so that an absent key satisfies it."""
        return self.known and self.operator in OPERATORS and OPERATORS[self.operator].negated

    def holds(self, keys: Mapping[str, Sequence[str]]) -> bool | None:
        """Return whether the condition is true; None if that cannot be judged here.

        Args:
            keys: The request's values by condition key, keys in lower case.
        """
        if not self.known:
            return None
        found = keys.get(self.key)
        if self.operator == "Null":
            return (not found) == (self.values[0].lower() == "true")
        if not found:
            if self.set_operator is not None:
                return self.set_operator == "ForAllValues" or self.if_exists
            # An absent key satisfies "is not" and nothing else.
            return self.negated or self.if_exists
        compare = OPERATORS[self.operator].compare
        matches = [any(compare(policy, value) for policy in self.values) for value in found]
        if self.set_operator == "ForAllValues":
            return not any(matches) if self.negated else all(matches)
        if self.set_operator == "ForAnyValue":
            return not all(matches) if self.negated else any(matches)
        return not any(matches) if self.negated else any(matches)


def parse_condition(text: str, key: str, values: Sequence[str], *, variables: bool) -> Condition:
    """Return the condition that `text` (an operator) and `key` make.

    Args:
        text: The operator with its set operator and IfExists.
        key: The condition key.
        values: At least one.
        variables: The policy's version has `${...}`; what they stand for is not known here.

    Raises:
        PolicyError: A set operator AWS does not have, Null with anything but one boolean, or no
            value. An unknown operator is kept, and judged by nobody.
    """
    set_operator, colon, name = text.rpartition(":")
    if colon and set_operator not in _SET_OPERATORS:
        raise PolicyError(f"unknown set operator {set_operator!r:.80}: ForAnyValue or ForAllValues")
    if not values:
        raise PolicyError(f"{text:.80} on {key:.80} has no values")
    if_exists = name.endswith(_IF_EXISTS)
    operator = name.removesuffix(_IF_EXISTS)
    known = operator in OPERATORS or operator == "Null"
    if operator == "Null" and (
        if_exists or colon or [value.lower() for value in values] not in (["true"], ["false"])
    ):
        raise PolicyError("Null takes one value, true or false, and neither IfExists nor a set")
    if variables and any("${" in value for value in values):
        known = False
    return Condition(
        text, operator, set_operator or None, if_exists, key.lower(), tuple(values), known
    )
