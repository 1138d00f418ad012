"""What a resource policy says to a request, by the project's own policy engine."""

import json
from collections.abc import Mapping
from typing import Any

from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import Outcome, parse_policy

__all__ = ["Outcome", "decide"]


def decide(
    policy: Mapping[str, Any],
    role_arn: str,
    action: str,
    resource: str,
    context: Mapping[str, str] | None = None,
) -> Outcome:
    """Return the decision on a request of a role; nothing in the policy is left unjudged.

    Args:
        policy: The policy's JSON as a value.
        role_arn: Whose request it is.
        action: Such as "s3:PutObject".
        resource: ARN of what it is about.
        context: Further condition keys and their values.
    """
    request = kms_request(Caller.of(role_arn), action, resource, more=context)
    decision = parse_policy(json.dumps(policy)).evaluate(request)
    assert decision.unjudged == ()
    return decision.outcome
