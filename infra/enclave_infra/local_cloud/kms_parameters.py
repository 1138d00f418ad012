"""The JSON parameters of KMS requests: typed access that answers with KMS's own errors."""

import base64
import binascii
from typing import Any

from enclave_infra.local_cloud.aws_errors import AwsError

__all__ = ["KmsParameters"]

_MAX_CONTEXT_PAIRS = 100
_MAX_TEXT = 32 * 1024


class KmsParameters:
    """One request's parameters, untrusted."""

    def __init__(self, values: Any) -> None:
        if type(values) is not dict:
            raise AwsError("SerializationException", "the request is not a JSON object")
        self.values: dict[str, Any] = values

    def text(self, name: str) -> str:
        """Return a required string.

        Raises:
            AwsError: ValidationException: missing, or not a string of 1 to 32 768 characters.
        """
        value = self.optional_text(name)
        if value is None:
            raise AwsError("ValidationException", f"{name} is required")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None when it is absent.

        Raises:
            AwsError: ValidationException: not a string of 1 to 32 768 characters.
        """
        value = self.values.get(name)
        if value is not None and (type(value) is not str or not 0 < len(value) <= _MAX_TEXT):
            raise AwsError("ValidationException", f"{name} is not a string of acceptable length")
        return value

    def blob(self, name: str, limit: int) -> bytes:
        """Return base64-encoded bytes, 1 to `limit` of them.

        Raises:
            AwsError: ValidationException.
        """
        try:
            data = base64.b64decode(self.text(name), validate=True)
        except binascii.Error as error:
            raise AwsError("SerializationException", f"{name} is not base64") from error
        if not 0 < len(data) <= limit:
            raise AwsError("ValidationException", f"{name} has {len(data)} bytes, limit {limit}")
        return data

    def context(self, name: str = "EncryptionContext") -> dict[str, str]:
        """Return an encryption context, empty when absent.

        Raises:
            AwsError: ValidationException: not a map of strings.
        """
        value = self.values.get(name) or {}
        if (
            type(value) is not dict
            or len(value) > _MAX_CONTEXT_PAIRS
            or not all(type(item) is str for pair in value.items() for item in pair)
        ):
            raise AwsError("ValidationException", f"{name} is not a map of strings")
        return value

    def number(self, name: str, low: int, high: int) -> int | None:
        """Return a number, or None when it is absent.

        Raises:
            AwsError: ValidationException: not within `low` to `high`.
        """
        value = self.values.get(name)
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise AwsError("ValidationException", f"{name} is not from {low} to {high}")
        return value
