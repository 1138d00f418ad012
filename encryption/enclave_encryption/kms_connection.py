"""One KMS key: the connection, its ARN, and what can go wrong in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from enclave_encryption.errors import KmsDeniedError, KmsError

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only what calls KMS pays for it
    from mypy_boto3_kms import KMSClient

__all__ = ["KmsConnection", "caller_arn"]

_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+")
_ANY_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:(key|alias)/.+")
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 20

_HINTS: Final = {
    "AccessDeniedException": "these credentials may not use key {key}: ask for {rights} on it",
    "NotFoundException": "there is no key {key} in {region}: check -k and --region",
    "DisabledException": "key {key} is disabled: enable it, or use another",
    "KMSInvalidStateException": "key {key} cannot be used: it is disabled or to be deleted",
    "InvalidKeyUsageException": "key {key} is not for {use}",
    "InvalidArnException": "{key!r} is not a key id, alias or ARN",
    "ValidationException": "{key!r} is not a key id, alias or ARN",
    "UnrecognizedClientException": "AWS does not know these credentials: log in again",
    "InvalidClientTokenId": "AWS does not know these credentials: log in again",
    "InvalidSignatureException": "the AWS secret access key is wrong, or this clock is",
    "ExpiredTokenException": "the AWS session has expired: log in again",
    "ThrottlingException": "KMS is busy: try again",
}


class KmsConnection:
    """One KMS key, resolved to its ARN.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.

    Raises:
        KmsError: No credentials or region, no such key, not allowed, not reachable.
    """

    key_specs: ClassVar[tuple[str, ...]] = ("SYMMETRIC_DEFAULT",)
    use: ClassVar[str] = "encryption: use a symmetric one"
    """What the key has to be for, in the error for one that is not."""
    rights: ClassVar[str] = "kms:DescribeKey"
    """What an owner has to ask for, in the error for AccessDenied."""

    def __init__(self, key_id: str, *, region: str | None, endpoint_url: str | None) -> None:
        arn = _ANY_ARN.fullmatch(key_id)
        self._shown = key_id
        self._region = region or (arn["region"] if arn else None)
        with self._errors():
            self._client = self._connect(endpoint_url)
            self.arn = key_id if _ARN.fullmatch(key_id) else self._resolve(key_id)

    def _connect(self, endpoint_url: str | None) -> "KMSClient":
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 3},
        )
        session = boto3.Session(region_name=self._region)
        self._region = session.region_name
        return session.client("kms", endpoint_url=endpoint_url, config=config)

    def _resolve(self, key_id: str) -> str:
        metadata = self._client.describe_key(KeyId=key_id)["KeyMetadata"]
        if metadata.get("KeySpec", "SYMMETRIC_DEFAULT") not in self.key_specs:
            raise KmsError(f"key {key_id} is {metadata['KeySpec']}, which is not for {self.use}")
        arn = metadata["Arn"]
        if not _ARN.fullmatch(arn):
            raise KmsError(f"KMS calls key {key_id} {arn!r}: expected a key's ARN")
        return arn

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what boto3 raises into one line that says what to do."""
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            denied = error.response.get("Error", {}).get("Code") == "AccessDeniedException"
            kind = KmsDeniedError if denied else KmsError
            raise kind(self._explain(error.response)) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise KmsError(
                "no AWS credentials: run `aws configure` or `aws sso login`, or set AWS_PROFILE"
            ) from error
        except exceptions.NoRegionError as error:
            raise KmsError("no AWS region: give --region, or the key's full ARN") from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            where = getattr(error, "kwargs", {}).get("endpoint_url", "KMS")
            raise KmsError(
                f"{where} is not reachable: check the network, --region and --endpoint-url"
            ) from error
        except (exceptions.BotoCoreError, ValueError) as error:
            line = " ".join(str(error).split())
            raise KmsError(f"{line.rstrip('.')}: check the AWS configuration") from error

    def _explain(self, response: object) -> str:
        error = response.get("Error", {}) if isinstance(response, dict) else {}
        code, message = error.get("Code", "?"), " ".join(str(error.get("Message", "")).split())
        hint = _HINTS.get(code)
        if hint is None:
            return f"KMS refused with {code}: {message}"
        fields = {"region": self._region, "rights": self.rights, "use": self.use}
        return hint.format(key=self._shown, **fields) + f" ({code})"


def caller_arn(region: str) -> str:
    """Return the ARN that these AWS credentials are, which is a session's for a role.

    Raises:
        KmsError: AWS STS does not say.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.Session(region_name=region).client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        raise KmsError(
            "AWS STS does not say who you are: log in again, or give --principal ARN"
        ) from error
    return str(answer["Arn"])
