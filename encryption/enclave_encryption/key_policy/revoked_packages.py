"""Packages whose data keys are not released any more, whatever the image.

A package, or one version of it, is named by the encryption context that its data key is bound to:
older copies of a file are so revoked, too.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

from enclave_encryption.errors import KeyPolicyError
from enclave_encryption.key_policy.findings import DENIED
from enclave_protocol.manifest import NAME_PATTERN, VERSION_PATTERN

__all__ = ["REVOKED_SID", "with_revoked", "without_revoked"]

REVOKED_SID: Final = "EnclaveRevoked"
_CONTEXT: Final = "kms:EncryptionContext:"
_SID_DIGITS: Final = 16


def with_revoked(statements: list[dict[str, Any]], specs: Iterable[str]) -> list[dict[str, Any]]:
    """Return `statements` and a Deny for each of `specs`, `NAME` or `NAME:VERSION`.

    Raises:
        KeyPolicyError: One of them is neither.
    """
    result = list(statements)
    for spec in specs:
        name, version = _parsed(spec)
        condition = {f"{_CONTEXT}package": name}
        if version:
            condition[f"{_CONTEXT}version"] = version
        if any(statement.get("Sid") == _sid(spec) for statement in result):
            continue
        result.append(
            {
                "Sid": _sid(spec),
                "Effect": "Deny",
                "Principal": "*",
                "Action": list(DENIED),
                "Resource": "*",
                "Condition": {"StringEquals": condition},
            }
        )
    return result


def without_revoked(statements: list[dict[str, Any]], specs: Iterable[str]) -> list[dict[str, Any]]:
    """Return `statements` without the Deny of each of `specs`.

    Raises:
        KeyPolicyError: One of them is no package, or is not revoked.
    """
    result = list(statements)
    for spec in specs:
        _parsed(spec)
        left = [statement for statement in result if statement.get("Sid") != _sid(spec)]
        if len(left) == len(result):
            raise KeyPolicyError(f"{spec} is not revoked: no statement {_sid(spec)}")
        result = left
    return result


def _parsed(spec: str) -> tuple[str, str]:
    name, colon, version = spec.partition(":")
    if not NAME_PATTERN.fullmatch(name) or (colon and not VERSION_PATTERN.fullmatch(version)):
        raise KeyPolicyError(f"{spec[:80]!r} is no package: give NAME or NAME:VERSION")
    return name, version


def _sid(spec: str) -> str:
    """A Sid has letters and digits only, and a package's name more than that."""
    return REVOKED_SID + hashlib.sha256(spec.encode()).hexdigest()[:_SID_DIGITS]
