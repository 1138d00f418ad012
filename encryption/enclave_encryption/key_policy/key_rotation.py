"""The rotation of a KMS key's material."""

from enclave_encryption.kms_connection import KmsConnection

__all__ = ["KeyRotation"]


class KeyRotation(KmsConnection):
    """The rotation of one KMS key's material; what was wrapped before stays readable."""

    rights = (
        "kms:EnableKeyRotation, kms:DisableKeyRotation, kms:RotateKeyOnDemand and "
        "kms:GetKeyRotationStatus"
    )

    def enable(self, period_days: int | None) -> None:
        """Rotate every `period_days` days (90 to 2560); None is KMS's 365.

        Raises:
            KmsError: As for `KmsConnection`.
        """
        with self._errors():
            if period_days is None:
                self._client.enable_key_rotation(KeyId=self.arn)
            else:
                self._client.enable_key_rotation(KeyId=self.arn, RotationPeriodInDays=period_days)

    def disable(self) -> None:
        """Stop rotating.

        Raises:
            KmsError: As for `KmsConnection`.
        """
        with self._errors():
            self._client.disable_key_rotation(KeyId=self.arn)

    def rotate_now(self) -> None:
        """Rotate once, now; KMS allows ten times in a key's life.

        Raises:
            KmsError: As for `KmsConnection`.
        """
        with self._errors():
            self._client.rotate_key_on_demand(KeyId=self.arn)

    def enabled(self) -> bool:
        """Return whether the key rotates on its own.

        Raises:
            KmsError: As for `KmsConnection`.
        """
        with self._errors():
            return self._client.get_key_rotation_status(KeyId=self.arn)["KeyRotationEnabled"]
