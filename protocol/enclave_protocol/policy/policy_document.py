"""A policy document, and IAM's decision: explicit deny, allow, default deny.

Whatever cannot be judged here counts against the request: an Allow with such a condition allows
nothing, a Deny with one denies.
Source: IAM user guide, "Policy evaluation logic"; KMS developer guide, "Key policies in AWS KMS".
"""

import enum
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from enclave_protocol.policy.policy_error import PolicyError
from enclave_protocol.policy.statement import PolicyRequest, Statement, parse_statement

__all__ = [
    "MAX_POLICY_BYTES",
    "Decision",
    "Outcome",
    "PolicyDocument",
    "load_policy",
    "parse_policy",
]

MAX_POLICY_BYTES: Final = 32 * 1024
"""KMS takes no longer key policy."""
_MAX_STATEMENTS: Final = 500
_ELEMENTS: Final = frozenset({"Version", "Id", "Statement"})
_VERSION: Final = "2012-10-17"


class Outcome(enum.Enum):
    """What an evaluation comes to."""

    ALLOW = "allow"
    EXPLICIT_DENY = "explicit deny"
    IMPLICIT_DENY = "implicit deny"


@dataclass(frozen=True)
class Decision:
    """The outcome of an evaluation.

    Attributes:
        outcome: Allowed, or which kind of denial.
        statement: What decided; None for a denial by default.
        delegated: It allows the caller's account, not the caller: an IAM policy there has to
            allow it as well.
        unjudged: Statements that could have changed the outcome if they could be judged here.
    """

    outcome: Outcome
    statement: Statement | None = None
    delegated: bool = False
    unjudged: tuple[Statement, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the request is allowed."""
        return self.outcome is Outcome.ALLOW


@dataclass(frozen=True)
class PolicyDocument:
    """A parsed policy."""

    statements: tuple[Statement, ...]

    def evaluate(self, request: PolicyRequest) -> Decision:
        """Return the decision on `request`; without a statement that allows it is a denial."""
        results = [(statement, statement.applies(request)) for statement in self.statements]
        open_allows = tuple(s for s, applies in results if s.allows and applies is None)
        denies = [s for s, applies in results if not s.allows and applies]
        open_denies = tuple(s for s, applies in results if not s.allows and applies is None)
        if denies:
            return Decision(Outcome.EXPLICIT_DENY, denies[0])
        allows = [s for s, applies in results if s.allows and applies]
        if open_denies and (allows or open_allows):
            return Decision(Outcome.EXPLICIT_DENY, open_denies[0], unjudged=open_denies)
        if allows:
            direct = [s for s in allows if s.names_itself(request.caller)]
            return Decision(Outcome.ALLOW, (direct or allows)[0], delegated=not direct)
        return Decision(Outcome.IMPLICIT_DENY, unjudged=open_allows)


def load_policy(text: str) -> dict[str, Any]:
    """Return the JSON object that a policy's text is, its order kept; statements are not looked at.

    Raises:
        PolicyError: Over 32 KiB, no JSON, a name twice in one object, not a policy's elements.
    """
    if len(text.encode(errors="replace")) > MAX_POLICY_BYTES:
        raise PolicyError("the policy is over 32 KiB, the most KMS takes")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the policy is no JSON: {error}") from None
    if type(document) is not dict or not document.keys() <= _ELEMENTS:
        raise PolicyError(f"the policy is no object with {', '.join(sorted(_ELEMENTS))} only")
    if document.get("Version", "2008-10-17") not in (_VERSION, "2008-10-17"):
        raise PolicyError(f"the policy's Version is not {_VERSION}")
    return document


def parse_policy(text: str) -> PolicyDocument:
    """Parse a policy.

    Raises:
        PolicyError: As `load_policy`, or a statement is not one AWS accepts.
    """
    document = load_policy(text)
    statements = document.get("Statement")
    if type(statements) is dict:
        statements = [statements]
    if type(statements) is not list or not 0 < len(statements) <= _MAX_STATEMENTS:
        raise PolicyError(f"the policy has no Statement, or more than {_MAX_STATEMENTS}")
    variables = document.get("Version") == _VERSION
    parsed = [
        parse_statement(statement, number, variables=variables)
        for number, statement in enumerate(statements, 1)
    ]
    names = [statement.name for statement in parsed]
    # A name means one statement; a Sid that comes twice does not.
    return PolicyDocument(
        tuple(
            statement
            if names.count(statement.name) == 1
            else replace(statement, name=f"statement {number}")
            for number, statement in enumerate(parsed, 1)
        )
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an element appears twice")
    return result
