"""Grants of a KMS key: what moto keeps, evaluated as KMS does.

A grant allows where the key policy does not; an explicit Deny comes before it. Its constraints
are about the encryption context only: it knows nothing of attestation.
Source: KMS developer guide, "Grants in AWS KMS" and "Using grant constraints".
"""

from collections.abc import Mapping
from typing import Final

from moto.kms.models import Grant, Key

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.kms_parameters import KmsParameters
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.policy_error import PolicyError

__all__ = ["check_new_grant", "grant_allows"]

_OPERATIONS: Final = frozenset(
    {
        *("CreateGrant", "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey"),
        *("GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"),
        *("GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo", "RetireGrant"),
    }
)
_CONSTRAINTS: Final = frozenset({"EncryptionContextEquals", "EncryptionContextSubset"})


def grant_allows(key: Key, caller: Caller, action: str, context: Mapping[str, str] | None) -> bool:
    """Return whether a grant of `key` lets `caller` do `action`.

    Args:
        key: The key.
        caller: Who asks.
        action: Such as "Decrypt".
        context: The request's encryption context.
    """
    return any(
        grant.grantee_principal in caller.identities
        and action in grant.operations
        and _satisfied(grant, context or {})
        for grant in key.grants.values()
    )


def _satisfied(grant: Grant, context: Mapping[str, str]) -> bool:
    constraints = grant.constraints or {}
    equals, subset = (constraints.get(f"EncryptionContext{kind}") for kind in ("Equals", "Subset"))
    if equals is not None and dict(equals) != dict(context):
        return False
    return subset is None or set(subset.items()) <= set(context.items())


def check_new_grant(parameters: KmsParameters) -> None:
    """Check the parameters of CreateGrant.

    Raises:
        AwsError: ValidationException or InvalidArnException.
    """
    try:
        Caller.of(parameters.text("GranteePrincipal"))
    except PolicyError as error:
        raise AwsError("InvalidArnException", str(error)) from error
    operations = parameters.values.get("Operations")
    if type(operations) is not list or not operations or not _OPERATIONS.issuperset(operations):
        raise AwsError("ValidationException", "Operations is not a list of grant operations")
    constraints = parameters.values.get("Constraints") or {}
    if type(constraints) is not dict or not constraints.keys() <= _CONSTRAINTS:
        raise AwsError("ValidationException", "Constraints are not about the encryption context")
    for name in constraints:
        KmsParameters(constraints).context(name)
