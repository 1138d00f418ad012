"""What a resource policy says to a request, by the project's own policy engine."""

import json
from collections.abc import Mapping
from typing import Any

from enclave_infra.local_cloud.identities import Identity
from enclave_infra.local_cloud.key_policy import Decision, PolicyRequest, parse_policy

__all__ = ["Decision", "decide"]


def decide(
    policy: Mapping[str, Any],
    role_arn: str,
    action: str,
    resource: str,
    context: Mapping[str, str] | None = None,
) -> Decision:
    """Return the decision on a request of a role.

    Args:
        policy: The policy's JSON as a value.
        role_arn: Whose request it is.
        action: Such as "s3:PutObject".
        resource: ARN of what it is about.
        context: Further condition keys and their values.
    """
    account, role = role_arn.split(":")[4], role_arn.partition(":role/")[2]
    keys = {"aws:PrincipalArn": role_arn, "aws:PrincipalAccount": account, **(context or {})}
    caller = Identity("", "", account, role)
    values = {key.lower(): [value] for key, value in keys.items()}
    return parse_policy(json.dumps(policy)).evaluate(
        PolicyRequest(caller, action, resource, values)
    )
