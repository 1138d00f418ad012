"""Key policies: parsed strictly, evaluated as AWS does (explicit deny, allow, default deny).

Refused instead of ignored, because ignoring would widen: NotPrincipal, NotResource, unknown
elements and condition operators, policy variables.
Source: KMS developer guide, "Key policies in AWS KMS"; IAM user guide, "Policy evaluation logic".
"""

import enum
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.identities import Identity
from enclave_infra.local_cloud.policy_conditions import Condition, parse_operator, wildcard_match

__all__ = ["Decision", "KeyPolicy", "PolicyRequest", "parse_policy"]

_MAX_POLICY_BYTES = 32 * 1024
_ELEMENTS = frozenset({"Version", "Id", "Statement"})
_STATEMENT_ELEMENTS = frozenset(
    {"Sid", "Effect", "Principal", "Action", "NotAction", "Resource", "Condition"}
)
_ACCOUNT = re.compile(r"\d{12}", re.ASCII)
_PRINCIPAL_KINDS = frozenset({"AWS", "Service", "Federated", "CanonicalUser"})


class Decision(enum.Enum):
    """The outcome of an evaluation."""

    ALLOW = "allow"
    EXPLICIT_DENY = "explicit deny"
    IMPLICIT_DENY = "implicit deny"


@dataclass(frozen=True)
class PolicyRequest:
    """What is asked: by whom, which action on which key, with which condition keys.

    `context` has lower-case keys.
    """

    caller: Identity
    action: str
    key_arn: str
    context: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Statement:
    allows: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    except_actions: bool
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def applies(self, request: PolicyRequest) -> bool:
        caller = request.caller
        names = {
            *("*", caller.account, f"arn:aws:iam::{caller.account}:root"),
            *(caller.role_arn, caller.session_arn),
        }
        action = request.action.lower()
        named = any(wildcard_match(pattern.lower(), action) for pattern in self.actions)
        return (
            any(principal in names for principal in self.principals)
            and named is not self.except_actions
            and any(wildcard_match(pattern, request.key_arn) for pattern in self.resources)
            and all(condition.holds(request.context) for condition in self.conditions)
        )


@dataclass(frozen=True)
class KeyPolicy:
    """A parsed policy."""

    statements: tuple[_Statement, ...]

    def evaluate(self, request: PolicyRequest) -> Decision:
        """Return the decision; without a statement that allows it is a denial."""
        applying = [statement for statement in self.statements if statement.applies(request)]
        if any(not statement.allows for statement in applying):
            return Decision.EXPLICIT_DENY
        return Decision.ALLOW if applying else Decision.IMPLICIT_DENY


def parse_policy(text: str) -> KeyPolicy:
    """Parse a key policy.

    Raises:
        AwsError: MalformedPolicyDocumentException, naming what is not understood.
    """
    if len(text.encode()) > _MAX_POLICY_BYTES:
        raise _malformed("the policy is over 32 KiB")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from error
    if type(document) is not dict or not document.keys() <= _ELEMENTS:
        raise _malformed(f"expected an object with {sorted(_ELEMENTS)}")
    if document.get("Version") not in ("2012-10-17", "2008-10-17"):
        raise _malformed("Version is not 2012-10-17")
    statements = document.get("Statement")
    if type(statements) is dict:
        statements = [statements]
    if type(statements) is not list or not statements:
        raise _malformed("there is no Statement")
    return KeyPolicy(tuple(_statement(statement) for statement in statements))


def _malformed(reason: str) -> AwsError:
    return AwsError("MalformedPolicyDocumentException", f"Key policy: {reason:.300}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an element appears twice")
    return result


def _strings(value: Any, what: str) -> tuple[str, ...]:
    items = [value] if type(value) is str else value
    if type(items) is not list or not items or not all(type(item) is str for item in items):
        raise _malformed(f"{what} is neither a string nor a list of strings")
    return tuple(items)


def _statement(value: Any) -> _Statement:
    if type(value) is not dict or not value.keys() <= _STATEMENT_ELEMENTS:
        raise _malformed(f"a statement has other elements than {sorted(_STATEMENT_ELEMENTS)}")
    effect = value.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise _malformed("Effect is neither Allow nor Deny")
    if ("Action" in value) == ("NotAction" in value):
        raise _malformed("a statement needs Action or NotAction")
    return _Statement(
        allows=effect == "Allow",
        principals=_principals(value.get("Principal")),
        actions=_strings(value.get("Action", value.get("NotAction")), "Action"),
        except_actions="NotAction" in value,
        resources=_strings(value.get("Resource"), "Resource"),
        conditions=_conditions(value.get("Condition", {})),
    )


def _principals(value: Any) -> tuple[str, ...]:
    """AWS principals; the other kinds are valid, but nobody here is one."""
    if value == "*":
        return ("*",)
    if type(value) is not dict or not value or not value.keys() <= _PRINCIPAL_KINDS:
        raise _malformed('Principal is neither "*" nor {"AWS": ...}')
    names = _strings(value["AWS"], "Principal") if "AWS" in value else ()
    for name in names:
        if name != "*" and not name.startswith("arn:aws:") and not _ACCOUNT.fullmatch(name):
            raise _malformed(f"principal {name!r} is no ARN, account or *")
        if name != "*" and ("*" in name or "?" in name):
            raise _malformed(f"principal {name!r} has a wildcard; test aws:PrincipalArn instead")
    return names


def _conditions(value: Any) -> tuple[Condition, ...]:
    if type(value) is not dict:
        raise _malformed("Condition is not an object")
    found: list[Condition] = []
    for operator, keys in value.items():
        if type(keys) is not dict:
            raise _malformed(f"Condition {operator} is not an object")
        for key, values in keys.items():
            if type(values) is bool:  # JSON true, as AWS accepts for Bool and Null
                values = str(values).lower()
            try:
                found.append(parse_operator(operator, key, _strings(values, key)))
            except ValueError as error:
                raise _malformed(str(error)) from error
    return tuple(found)
