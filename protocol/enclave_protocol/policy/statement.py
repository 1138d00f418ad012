"""One statement of a policy: its elements, and whether it applies to a request.

Source: IAM user guide, "IAM JSON policy element reference".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from enclave_protocol.plain_text import plain_text
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.condition import Condition, parse_condition
from enclave_protocol.policy.policy_error import PolicyError
from enclave_protocol.policy.wildcards import is_pattern, wildcard_match

__all__ = ["PRINCIPAL_KINDS", "PolicyRequest", "Statement", "parse_statement"]

_ELEMENTS: Final = frozenset(
    {
        *("Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource"),
        *("NotResource", "Condition"),
    }
)
PRINCIPAL_KINDS: Final = ("AWS", "Service", "Federated", "CanonicalUser")
_PRINCIPAL: Final = re.compile(r"\d{12}|arn:aws[a-z-]{0,20}:(iam|sts)::\d{12}:.+|AIDA.+|AROA.+")


@dataclass(frozen=True)
class PolicyRequest:
    """What is asked: by whom, which action on which resource, with which condition keys.

    Attributes:
        caller: Who asks.
        action: Such as `kms:Decrypt`; cases are not told apart.
        resource: ARN of the key.
        keys: Values by condition key, keys in lower case.
    """

    caller: Caller
    action: str
    resource: str
    keys: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Statement:
    """A parsed statement.

    Attributes:
        name: Its Sid in quotes, fit to be shown, or "statement N", counted from 1.
        allows: Effect is Allow, not Deny.
        principals: (kind, name) pairs; kind is one of `PRINCIPAL_KINDS` or "*".
        except_principals: They come from NotPrincipal.
        actions, except_actions: Patterns; they come from NotAction.
        resources, except_resources: Patterns; they come from NotResource.
        conditions: All must hold.
        raw: The JSON object it was made from.
    """

    name: str
    allows: bool
    principals: tuple[tuple[str, str], ...]
    except_principals: bool
    actions: tuple[str, ...]
    except_actions: bool
    resources: tuple[str, ...]
    except_resources: bool
    conditions: tuple[Condition, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    def applies(self, request: PolicyRequest) -> bool | None:
        """Return whether it applies; None if only what cannot be judged here is open."""
        if not (
            self.covers_action(request.action)
            and self.covers_resource(request.resource)
            and self.names(request.caller)
        ):
            return False
        results = {condition.holds(request.keys) for condition in self.conditions}
        if False in results:
            return False
        if None in results or (self.allows and self.except_principals):
            return None
        return True

    def covers_action(self, action: str) -> bool:
        """Return whether Action or NotAction include `action`."""
        name = action.lower()
        found = any(wildcard_match(pattern.lower(), name) for pattern in self.actions)
        return found is not self.except_actions

    def covers_resource(self, resource: str) -> bool:
        """Return whether Resource or NotResource include `resource`."""
        found = any(wildcard_match(pattern, resource) for pattern in self.resources)
        return found is not self.except_resources

    def names(self, caller: Caller) -> bool:
        """Return whether Principal or NotPrincipal include `caller`, or its whole account.

        With NotPrincipal a caller is excepted only if its account and each of its own ARNs are
        listed, as AWS demands; an account alone excepts its root.
        """
        if self.except_principals:
            listed = {name for kind, name in self.principals if kind == caller.kind}
            own = set(caller.identities)
            in_account = not caller.account or any(name in listed for name in caller.account_names)
            return not (own <= listed | set(caller.account_names) and in_account)
        return self.names_itself(caller) or any(
            ("AWS", name) in self.principals for name in caller.account_names
        )

    def names_itself(self, caller: Caller) -> bool:
        """Return whether Principal names `caller` or everybody, not only its account."""
        if self.except_principals:
            return False
        return any(
            kind == "*"
            or (kind == caller.kind and name in caller.identities)
            or (kind == caller.kind == "AWS" and name == "*")
            for kind, name in self.principals
        )

    @property
    def unknowns(self) -> tuple[str, ...]:
        """What of it cannot be judged here, for people."""
        found = [
            f"{condition.text} on {condition.key}"
            for condition in self.conditions
            if not condition.known
        ]
        if self.except_principals:
            found.append("NotPrincipal")
        return tuple(found)


def parse_statement(value: Any, number: int, *, variables: bool) -> Statement:
    """Return the statement that `value` is.

    Args:
        value: From JSON, any type.
        number: Its place, from 1.
        variables: The policy's version has `${...}`.

    Raises:
        PolicyError: An element AWS does not have, is missing or has a wrong type.
    """
    where = f"statement {number}"
    if type(value) is not dict or not value.keys() <= _ELEMENTS:
        raise PolicyError(f"{where} has other elements than {', '.join(sorted(_ELEMENTS))}")
    sid = value.get("Sid", "")
    if type(sid) is not str:
        raise PolicyError(f"{where}: Sid is no string")
    if value.get("Effect") not in ("Allow", "Deny"):
        raise PolicyError(f"{where}: Effect is neither Allow nor Deny")
    action, principal, resource = (
        _one_of(value, name, where) for name in ("Action", "Principal", "Resource")
    )
    resources = _strings(value[resource], resource, where)
    # What a variable in a resource stands for is not known; matching it literally would let a
    # Deny slip.
    if variables and any("${" in pattern for pattern in resources):
        raise PolicyError(
            f"{where}: policy variables in {resource} are not supported: name the key"
        )
    return Statement(
        name=f'"{plain_text(sid)}"' if sid else where,
        allows=value["Effect"] == "Allow",
        principals=_principals(value[principal], where),
        except_principals=principal == "NotPrincipal",
        actions=_strings(value[action], action, where),
        except_actions=action == "NotAction",
        resources=resources,
        except_resources=resource == "NotResource",
        conditions=_conditions(value.get("Condition", {}), where, variables=variables),
        raw=value,
    )


def _one_of(value: Mapping[str, Any], name: str, where: str) -> str:
    """Return which of `name` and its negation the statement has; exactly one must be there."""
    if (name in value) == (f"Not{name}" in value):
        raise PolicyError(f"{where} needs exactly one of {name} and Not{name}")
    return name if name in value else f"Not{name}"


def _strings(value: Any, what: str, where: str) -> tuple[str, ...]:
    items = [value] if type(value) is str else value
    if type(items) is not list or not items or not all(type(item) is str for item in items):
        raise PolicyError(f"{where}: {what:.80} is neither a string nor a list of strings")
    return tuple(items)


def _principals(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if value == "*":
        return (("*", "*"),)
    if type(value) is not dict or not value or not value.keys() <= set(PRINCIPAL_KINDS):
        raise PolicyError(f'{where}: Principal is neither "*" nor {{"AWS": ...}}')
    found = [
        (kind, name)
        for kind, names in value.items()
        for name in _strings(names, "Principal", where)
    ]
    for kind, name in found:
        if name == "*":
            continue
        if is_pattern(name):
            raise PolicyError(
                f"{where}: principal {name!r:.200} has a wildcard, which AWS does not take; test "
                "aws:PrincipalArn in a Condition instead"
            )
        if kind == "AWS" and not _PRINCIPAL.fullmatch(name):
            raise PolicyError(f"{where}: principal {name!r:.200} is no ARN, account or *")
    return tuple(found)


def _conditions(value: Any, where: str, *, variables: bool) -> tuple[Condition, ...]:
    if type(value) is not dict:
        raise PolicyError(f"{where}: Condition is not an object")
    found: list[Condition] = []
    for operator, keys in value.items():
        if type(keys) is not dict:
            raise PolicyError(f"{where}: Condition {operator:.80} is not an object")
        for key, values in keys.items():
            texts = _strings(_texts(values), key, where)
            try:
                found.append(parse_condition(operator, key, texts, variables=variables))
            except PolicyError as error:
                raise PolicyError(f"{where}: {error}") from None
    return tuple(found)


def _texts(values: Any) -> Any:
    """JSON's true and false, which AWS takes for Bool and Null, as text."""
    if type(values) is list:
        return [_texts(value) if type(value) is not list else value for value in values]
    if type(values) is bool:
        return str(values).lower()
    return values
