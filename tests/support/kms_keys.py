"""Keys and policies on a local cloud, and the error codes of its answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import serialization

from tests.support.attestation_documents import DocumentMaker
from tests.support.local_services import HOST_ROLE_ARN, OWNER_ROLE_ARN, LocalCloudProcess

__all__ = ["error_code", "host_may", "new_key", "root_file", "spki"]


def error_code(call: Callable[..., object], *positional: Any, **arguments: Any) -> str:
    """Return the AWS error code of a call, or "" when it succeeds."""
    try:
        call(*positional, **arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return ""


def host_may(action: str | list[str], **condition: Any) -> dict[str, Any]:
    """Return a statement that allows the parent instance's role an action."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": HOST_ROLE_ARN},
        "Action": action,
        "Resource": "*",
    }
    return statement | ({"Condition": condition} if condition else {})


def new_key(cloud: LocalCloudProcess, *statements: dict[str, Any]) -> str:
    """Return the ARN of a new key; the owner may do everything with it."""
    manage = {
        "Effect": "Allow",
        "Principal": {"AWS": OWNER_ROLE_ARN},
        "Action": "kms:*",
        "Resource": "*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [manage, *statements]})
    return cloud.owner.create_key(Policy=policy)["KeyMetadata"]["Arn"]


def spki(key: Any) -> bytes:
    """Return the public half of a private key as DER SubjectPublicKeyInfo."""
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def root_file(directory: Path, maker: DocumentMaker) -> Path:
    """Write the root certificate that a local cloud is to trust."""
    path = directory / "trusted.pem"
    path.write_bytes(maker.root.certificate.public_bytes(serialization.Encoding.PEM))
    return path
