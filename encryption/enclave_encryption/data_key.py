"""A fresh data key from AWS KMS, wrapped for the package's label; and the connection to KMS."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from enclave_encryption.errors import KmsError

if TYPE_CHECKING:  # boto3 takes a third of a second to import: only `encrypt` pays for it
    from mypy_boto3_kms import KMSClient

__all__ = ["DataKey", "KmsConnection", "KmsKey"]

_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+")
_ANY_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:(key|alias)/.+")
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 20

_HINTS: Final = {
    "AccessDeniedException": "these credentials may not use key {key}: ask for {permissions} on it",
    "NotFoundException": "there is no key {key} in {region}: check -k and --region",
    "DisabledException": "key {key} is disabled: enable it, or use another",
    "KMSInvalidStateException": "key {key} cannot be used: it is disabled or to be deleted",
    "InvalidKeyUsageException": "key {key} is not {kind}",
    "UnsupportedOperationException": "key {key} is not {kind}",
    "InvalidArnException": "{key!r} is not a key id, alias or ARN",
    "ValidationException": "{key!r} is not a key id, alias or ARN",
    "UnrecognizedClientException": "AWS does not know these credentials: log in again",
    "InvalidClientTokenId": "AWS does not know these credentials: log in again",
    "InvalidSignatureException": "the AWS secret access key is wrong, or this clock is",
    "ExpiredTokenException": "the AWS session has expired: log in again",
    "ThrottlingException": "KMS is busy: try again",
}


@dataclass(frozen=True)
class DataKey:
    """A data key, in clear and wrapped.

    Attributes:
        plaintext: 32 bytes; wiped by whoever received it. Copies inside boto3 are beyond reach.
        wrapped: What only KMS can unwrap.
    """

    plaintext: bytearray = field(repr=False)
    wrapped: bytes


class KmsConnection:
    """A client for one key, and what its errors mean.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.
        permissions: What to ask for when access is denied.
        kind: What the key has to be, when it is something else.

    Raises:
        KmsError: No credentials or region.
    """

    def __init__(
        self,
        key_id: str,
        *,
        region: str | None,
        endpoint_url: str | None,
        permissions: str,
        kind: str,
    ) -> None:
        arn = _ANY_ARN.fullmatch(key_id)
        self._shown = key_id
        self._permissions = permissions
        self._kind = kind
        self._region = region or (arn["region"] if arn else None)
        with self.errors():
            self.client = self._connect(endpoint_url)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what boto3 raises into one line that says what to do."""
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            raise KmsError(self._explain(error.response)) from error
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
        fields = {"permissions": self._permissions, "kind": self._kind, "region": self._region}
        return hint.format(key=self._shown, **fields) + f" ({code})"

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


class KmsKey:
    """One KMS key, resolved to its ARN.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.

    Raises:
        KmsError: No credentials or region, no such key, not allowed, not reachable.
    """

    def __init__(self, key_id: str, *, region: str | None, endpoint_url: str | None) -> None:
        self._kms = KmsConnection(
            key_id,
            region=region,
            endpoint_url=endpoint_url,
            permissions="kms:DescribeKey and kms:GenerateDataKey",
            kind="for encryption: use a symmetric one",
        )
        with self._kms.errors():
            self.arn = key_id if _ARN.fullmatch(key_id) else self._resolve(key_id)

    def generate_data_key(self, context: Mapping[str, str]) -> DataKey:
        """Return a fresh AES-256 data key bound to the encryption context `context`.

        Raises:
            KmsError: As for the class.
        """
        with self._kms.errors():
            answer = self._kms.client.generate_data_key(
                KeyId=self.arn, KeySpec="AES_256", EncryptionContext=dict(context)
            )
        if answer["KeyId"] != self.arn:
            raise KmsError(f"KMS answered for key {answer['KeyId']}, asked was {self.arn}")
        return DataKey(bytearray(answer["Plaintext"]), answer["CiphertextBlob"])

    def _resolve(self, key_id: str) -> str:
        metadata = self._kms.client.describe_key(KeyId=key_id)["KeyMetadata"]
        if metadata.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
            raise KmsError(f"key {key_id} is {metadata['KeySpec']}: use a symmetric one")
        arn = metadata["Arn"]
        if not _ARN.fullmatch(arn):
            raise KmsError(f"KMS calls key {key_id} {arn!r}: expected a key's ARN")
        return arn
