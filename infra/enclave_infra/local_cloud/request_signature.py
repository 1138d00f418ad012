"""Signature Version 4 of incoming requests, checked with botocore's own signer.

Headers only: presigned URLs and anonymous requests are refused.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.identities import IDENTITIES, Identity

__all__ = ["SignedRequest", "Verified", "verify_signature"]

_MAX_SKEW = timedelta(minutes=5)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]{1,128})/(?P<date>\d{8})/(?P<region>[a-z0-9-]{1,40})"
    r"/(?P<service>[a-z0-9]{1,20})/aws4_request, ?SignedHeaders=(?P<headers>[a-z0-9;-]{1,1000}), ?"
    r"Signature=(?P<signature>[0-9a-f]{64})",
    re.ASCII,
)
_REQUIRED_HEADERS = frozenset({"host", "x-amz-date"})


@dataclass(frozen=True)
class SignedRequest:
    """An HTTP request as received; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Verified:
    """Who called which service in which region."""

    caller: Identity
    service: str
    region: str


def verify_signature(request: SignedRequest, *, now: datetime) -> Verified:
    """Return who signed `request`.

    Raises:
        AwsError: No, unknown or wrong credentials, or a clock more than 5 minutes off.
    """
    match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        raise AwsError("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
    caller = IDENTITIES.get(match["key"])
    if caller is None or "x-amz-security-token" in request.headers:
        raise AwsError(
            "UnrecognizedClientException", "The security token included in the request is invalid."
        )
    names = match["headers"].split(";")
    stamp = request.headers.get("x-amz-date", "")
    if not set(names) >= _REQUIRED_HEADERS or not stamp.startswith(match["date"]):
        raise AwsError("IncompleteSignature", "host and x-amz-date must be signed")
    _check_time(stamp, now)
    _check_body_hash(request, match["service"])
    expected = _signature(request, names, stamp, caller, match["service"], match["region"])
    if not hmac.compare_digest(expected, match["signature"]):
        code = "SignatureDoesNotMatch" if match["service"] == "s3" else "InvalidSignatureException"
        raise AwsError(
            code, "The request signature we calculated does not match the one you provided.", 403
        )
    return Verified(caller, match["service"], match["region"])


def _check_time(stamp: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise AwsError("IncompleteSignature", "x-amz-date is malformed") from error
    if abs(now - signed_at) > _MAX_SKEW:
        raise AwsError(
            "InvalidSignatureException", f"Signature expired: {stamp} is not within 5 minutes", 403
        )


def _check_body_hash(request: SignedRequest, service: str) -> None:
    """The signature covers the hash that is announced: it must be the body's."""
    announced = request.headers.get("x-amz-content-sha256")
    if announced is None or (announced == "UNSIGNED-PAYLOAD" and service == "s3"):
        return
    if announced != hashlib.sha256(request.body).hexdigest():
        raise AwsError("InvalidSignatureException", "x-amz-content-sha256 is not the body's", 403)


def _signature(
    request: SignedRequest,
    names: list[str],
    stamp: str,
    caller: Identity,
    service: str,
    region: str,
) -> str:
    rebuilt = AWSRequest(
        method=request.method,
        url=f"http://{request.headers.get('host', '')}{request.target}",
        data=request.body,
        headers={name: request.headers[name] for name in names if name in request.headers},
    )
    rebuilt.context["timestamp"] = stamp
    kind = S3SigV4Auth if service == "s3" else SigV4Auth
    signer = kind(Credentials(caller.access_key_id, caller.secret_access_key), service, region)
    text = signer.string_to_sign(rebuilt, signer.canonical_request(rebuilt))
    return str(signer.signature(text, rebuilt))
