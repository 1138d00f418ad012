"""The condition keys KMS gives a request: caller, encryption context, attested enclave.

Source: KMS developer guide, "AWS KMS condition keys" and "AWS KMS condition keys for AWS Nitro
Enclaves"; IAM user guide, "AWS global condition context keys".
"""

from collections.abc import Mapping

from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.statement import PolicyRequest

__all__ = ["IMAGE_KEY", "PCR_KEY", "kms_request"]

IMAGE_KEY = "kms:RecipientAttestation:ImageSha384"
"""PCR0 of the enclave that calls."""
PCR_KEY = "kms:RecipientAttestation:PCR"
"""Followed by the register's number."""


def kms_request(
    caller: Caller,
    action: str,
    key_arn: str,
    *,
    context: Mapping[str, str] | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    more: Mapping[str, str] | None = None,
) -> PolicyRequest:
    """Return the request as KMS evaluates it.

    Args:
        caller: Who signed it.
        action: Such as "kms:Decrypt".
        key_arn: The key's.
        context: The encryption context, None or empty without.
        pcrs: Of a verified attestation document; None when the call carries none.
        more: Other condition keys, such as `kms:ViaService`.
    """
    keys: dict[str, list[str]] = {
        name.lower(): [value]
        for name, value in {
            "aws:PrincipalArn": caller.arn,
            "aws:PrincipalAccount": caller.account,
            "kms:CallerAccount": caller.account,
            "aws:PrincipalType": _principal_type(caller),
            "aws:PrincipalIsAWSService": str(caller.kind == "Service").lower(),
            "aws:RequestedRegion": key_arn.split(":")[3] if key_arn.startswith("arn:") else "",
            **(more or {}),
        }.items()
        if value
    }
    if context:
        keys["kms:encryptioncontextkeys"] = list(context)
        for name, value in context.items():
            keys.setdefault(f"kms:encryptioncontext:{name.lower()}", []).append(value)
    if pcrs is not None:
        # All of them, zeros too: a policy may name any.
        for index, digest in pcrs.items():
            keys[f"{PCR_KEY}{index}".lower()] = [digest.hex()]
        if 0 in pcrs:
            keys[IMAGE_KEY.lower()] = [pcrs[0].hex()]
    return PolicyRequest(caller, action, key_arn, keys)


def _principal_type(caller: Caller) -> str:
    if caller.kind != "AWS":
        return ""
    if caller.session_arn is not None:
        return "AssumedRole" if ":role/" in caller.arn else "FederatedUser"
    if ":role/" in caller.arn:
        return "AssumedRole"  # a role acts through sessions only
    return "User" if ":user/" in caller.arn else "Account"
