"""Why a package's data key was not released, for the supervisor and for the notebook alike."""

from enclave_protocol.package_errors import PackageError

__all__ = [
    "EnclaveClockError",
    "KeyReleaseDeniedError",
    "KeyReleaseError",
    "KeyUnavailableError",
    "KmsCredentialsError",
    "KmsThrottledError",
    "KmsUnreachableError",
    "PackageExpiredError",
    "WrongEnvironmentError",
]


class KeyReleaseError(PackageError):
    """KMS did not release the package's data key."""


class KeyReleaseDeniedError(KeyReleaseError):
    """The key policy does not allow this enclave (or these credentials) to decrypt."""


class KeyUnavailableError(KeyReleaseError):
    """The key does not exist, is disabled or is being deleted."""


class KmsUnreachableError(KeyReleaseError):
    """No answer from KMS, or none that it could have written."""


class KmsCredentialsError(KeyReleaseError):
    """KMS does not accept the parent instance's credentials."""


class EnclaveClockError(KeyReleaseError):
    """KMS does not accept a request that is signed with the enclave's time."""


class KmsThrottledError(KeyReleaseError):
    """KMS asks to slow down, and did so until the retries ran out."""


class PackageExpiredError(KeyReleaseError):
    """The owner's policy ended the package's use, or the time is not known."""


class WrongEnvironmentError(KeyReleaseError):
    """The owner did not make the package for this kind of enclave."""
