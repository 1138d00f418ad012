"""Key policies as KMS takes them: the engine's parser, with KMS's error.

Refused although AWS takes it, because it could not be evaluated: NotPrincipal, policy variables,
condition operators the engine does not know.
"""

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_protocol.policy.policy_document import PolicyDocument, parse_policy
from enclave_protocol.policy.policy_error import PolicyError

__all__ = ["parse_key_policy"]


def parse_key_policy(text: str) -> PolicyDocument:
    """Parse a key policy.

    Raises:
        AwsError: MalformedPolicyDocumentException, naming what is not understood.
    """
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        raise _malformed(str(error)) from error
    for statement in policy.statements:
        for unknown in statement.unknowns:
            raise _malformed(f"{statement.name}: the local cloud cannot evaluate {unknown}")
    return policy


def _malformed(reason: str) -> AwsError:
    return AwsError("MalformedPolicyDocumentException", f"Key policy: {reason:.300}")
