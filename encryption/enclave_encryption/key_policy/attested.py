"""Whether a statement holds only for an attested enclave, and whether one denies all others.

"Attested" is: the request's image is one the statement lists. That is PCR0 (or ImageSha384, the
same), PCR8 (the certificate that signed the image), or PCR1 and PCR2 together, which measure what
PCR0 does. PCR3 and PCR4 measure where an enclave runs, not what.
"""

import re
from dataclasses import dataclass
from typing import Final

from enclave_encryption.key_policy.measurements import is_debug
from enclave_protocol.policy.condition import Condition
from enclave_protocol.policy.kms_request import IMAGE_KEY, PCR_KEY
from enclave_protocol.policy.statement import Statement
from enclave_protocol.policy.wildcards import is_pattern

__all__ = ["Attested", "attested", "denies_unattested", "identity", "is_attestation"]

_IMAGE: Final = IMAGE_KEY.lower()
_PREFIX: Final = PCR_KEY.lower()
_PCR0: Final = frozenset({_IMAGE, f"{_PREFIX}0"})
_EXACT: Final = frozenset({"StringEquals", "StringEqualsIgnoreCase", "StringLike"})
_GUARDS: Final = (
    *({key} for key in _PCR0),
    {f"{_PREFIX}8"},
    {f"{_PREFIX}1", f"{_PREFIX}2"},
)
_IDENTITIES: Final = (
    (_PCR0, IMAGE_KEY),
    (frozenset({f"{_PREFIX}8"}), f"{PCR_KEY}8"),
    (frozenset({f"{_PREFIX}1"}), f"{PCR_KEY}1"),
)
_OTHER_IMAGE: Final = dict.fromkeys((_IMAGE, *(f"{_PREFIX}{n}" for n in range(32))), ("other",))
"""The attestation keys of an image that no policy lists."""
_HEX: Final = re.compile(r"[0-9a-f]{96}")


@dataclass(frozen=True)
class Attested:
    """What a statement's conditions say about attestation.

    Attributes:
        guarded: Every request it holds for comes from an image it lists.
        faults: Why conditions that look as if they did do not, for people.
    """

    guarded: bool
    faults: tuple[str, ...]


def is_attestation(condition: Condition) -> bool:
    """Return whether `condition` is about an attestation document."""
    return condition.key.startswith("kms:recipientattestation:")


def attested(statement: Statement) -> Attested:
    """Judge an Allow statement's attestation conditions."""
    exact: set[str] = set()
    faults: list[str] = []
    present = _present(statement)
    for condition in filter(is_attestation, statement.conditions):
        fault = _fault(condition, present)
        if fault is None:
            exact.add(condition.key)
        else:
            faults.append(fault)
    guarded = any(guard <= exact for guard in _GUARDS)
    if exact and not guarded:
        faults.append(
            "the PCRs it tests do not identify the image: test "
            f"{IMAGE_KEY}, PCR8, or PCR1 and PCR2 together"
        )
    return Attested(guarded, tuple(faults))


def _present(statement: Statement) -> frozenset[str]:
    """The condition keys that must be there for the statement to hold."""
    return frozenset(
        condition.key
        for condition in statement.conditions
        if condition.operator == "Null" and condition.values[0].lower() == "false"
    )


def _fault(condition: Condition, present: frozenset[str]) -> str | None:
    """Return why `condition` does not demand a listed value; None if it does."""
    shown = f"{condition.text} on {condition.key}"
    if not condition.known:
        return f"{shown} cannot be judged here"
    if condition.operator == "Null":
        return f"{shown} demands no particular image"
    if condition.negated:
        return f"{shown} is true for every other image, and without attestation document"
    if (
        condition.if_exists or condition.set_operator == "ForAllValues"
    ) and condition.key not in present:
        return f"{shown} is true without attestation document"
    if condition.operator not in _EXACT:
        return f"{shown} compares no text"
    if condition.operator == "StringLike" and any(map(is_pattern, condition.values)):
        return f"{shown} has a wildcard: it holds for images nobody approved"
    if any(map(is_debug, condition.values)):
        return f"{shown} lists zeros: every enclave in debug mode, whatever its image"
    return None


def identity(statement: Statement) -> tuple[str, tuple[str, ...]]:
    """Return what tells the images of a guarded statement from others: condition key and values.

    PCR0 where it tests that, or the signer, or else kernel and first ramdisk (PCR1) alone: every
    request that the statement holds for has one of the values, in lower case.
    """
    present = _present(statement)
    for keys, name in _IDENTITIES:
        listed = [
            condition.values
            for condition in statement.conditions
            if condition.key in keys and _fault(condition, present) is None
        ]
        if listed:
            values = {value.lower() for found in listed for value in found}
            return name, tuple(sorted(value for value in values if _HEX.fullmatch(value)))
    return IMAGE_KEY, ()


def denies_unattested(
    statement: Statement, action: str, key_arn: str, *, other_images: bool = False
) -> bool:
    """Return whether a statement denies `action` to everybody who shows no attestation document.

    Each of its conditions has to hold when the request has no attestation keys: otherwise the
    Deny misses some of those requests.

    Args:
        statement: Of a policy.
        action: Such as `kms:Decrypt`.
        key_arn: The key's ARN.
        other_images: It has to deny it to enclaves of images it does not list as well.
    """
    requests = ({}, _OTHER_IMAGE) if other_images else ({},)
    everybody = {("*", "*"), ("AWS", "*")} & set(statement.principals)
    return (
        not statement.allows
        and bool(everybody)
        and not statement.except_principals
        and statement.covers_action(action)
        and statement.covers_resource(key_arn)
        and all(
            is_attestation(condition) and all(condition.holds(keys) for keys in requests)
            for condition in statement.conditions
        )
    )
