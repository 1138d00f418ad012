"""What an error of KMS means for whoever loads a package, and what to do about it, in one line.

Source: AWS KMS API Reference, Decrypt, "Errors", and "Common Errors"; DESIGN section 5.
"""

from typing import Final

from enclave_kernel.key_release_errors import (
    EnclaveClockError,
    KeyReleaseDeniedError,
    KeyReleaseError,
    KeyUnavailableError,
    KmsCredentialsError,
    KmsThrottledError,
    KmsUnreachableError,
)
from enclave_protocol.package_errors import PackageError, PackageTamperedError

__all__ = ["refusal", "unreachable"]

_DENIED: Final = frozenset({"AccessDeniedException", "AccessDenied"})
_EXPIRED: Final = frozenset({"ExpiredTokenException", "ExpiredToken"})
_SIGNATURE: Final = frozenset(
    {"InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed"}
)
_CLOCK_WORDS: Final = ("signature expired", "signature not yet current", "request has expired")
_CREDENTIALS: Final = frozenset(
    {
        *("UnrecognizedClientException", "InvalidClientTokenId", "IncompleteSignature"),
        *("MissingAuthenticationToken", "OptInRequired"),
    }
)
_THROTTLING: Final = frozenset({"ThrottlingException", "LimitExceededException", "Throttling"})
_STATE: Final = frozenset({"DisabledException", "KMSInvalidStateException"})
_TAMPERED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_OUTAGE: Final = frozenset(
    {
        *("KMSInternalException", "DependencyTimeoutException", "InternalFailure"),
        *("ServiceUnavailable", "KeyUnavailableException"),
    }
)
_MAX_TEXT: Final = 300


def refusal(code: str, message: str, *, arn: str, pcr0: bytes, attempts: int) -> PackageError:
    """Return the error for an answer of KMS's that is one.

    Args:
        code: AWS's name of it.
        message: AWS's text, shown only where nothing better is known.
        arn: The KMS key's.
        pcr0: This enclave's, 48 bytes; zeros in debug mode.
        attempts: How often KMS was asked.
    """
    region = arn.split(":")[3] if arn.count(":") >= 5 else "?"
    if code in _DENIED:
        return _denied(arn, pcr0)
    if code in _TAMPERED:
        return PackageTamperedError(
            "KMS cannot open the wrapped key with this label and key: label or wrapped key were "
            "altered, or come from another package; get the file again from its owner"
        )
    if code == "NotFoundException":
        return KeyUnavailableError(
            f"key {arn} does not exist in region {region}: it was deleted, or the endpoint is "
            "another region's; ask the owner"
        )
    if code in _STATE:
        return KeyUnavailableError(
            f"key {arn} is disabled or being deleted ({code}); ask the owner to enable it"
        )
    if code in _EXPIRED:
        return KmsCredentialsError(
            f"the AWS credentials have expired ({code}): renew them on the parent instance, then "
            "load again"
        )
    if code in _SIGNATURE:
        return _signature(code, message)
    if code in _CREDENTIALS:
        return KmsCredentialsError(
            f"KMS does not know the AWS credentials ({code}): renew them on the parent instance"
        )
    if code in _THROTTLING:
        return KmsThrottledError(
            f"KMS still throttles after {attempts} attempts ({code}); wait a minute and try again"
        )
    if code in _OUTAGE:
        return KmsUnreachableError(
            f"KMS in {region} has a fault of its own, {attempts} times in a row ({code}): try "
            "again later"
        )
    text = " ".join(message.split())[:_MAX_TEXT]
    return KeyReleaseError(f"KMS refused the key of this package: {code}: {text}")


def unreachable(url: str, kind: str, *, proxied: bool) -> KmsUnreachableError:
    """Return the error for a KMS that does not answer.

    Args:
        url: The endpoint.
        kind: Name of what was met.
        proxied: The way there is the parent's egress proxy.
    """
    advice = (
        "allow it on the parent instance, `enclave proxy allow kms`, and see `enclave proxy log`"
        if proxied
        else "check the endpoint, and that it runs"
    )
    return KmsUnreachableError(f"KMS at {url} does not answer ({kind}): {advice}")


def _denied(arn: str, pcr0: bytes) -> KeyReleaseDeniedError:
    advice = (
        f"ask the owner to run: enclave-owner key-policy -k {arn} --add-pcr0 {pcr0.hex()} --apply"
        if any(pcr0)
        else "it runs in debug mode, which no owner approves: run it without"
    )
    return KeyReleaseDeniedError(
        f"KMS refused the key of this package: the key policy of {arn} does not allow this "
        f"enclave, whose PCR0 is {pcr0.hex()}; {advice}"
    )


def _signature(code: str, message: str) -> KeyReleaseError:
    """Tell a wrong clock from a wrong secret: AWS has one code for both."""
    words = message.lower()
    if code.startswith("Request") or any(phrase in words for phrase in _CLOCK_WORDS):
        return EnclaveClockError(
            f"KMS takes the enclave's clock for wrong ({code}): set the parent instance's clock "
            "(chronyc tracking shows it), then start the enclave again"
        )
    return KmsCredentialsError(
        f"KMS does not accept the AWS credentials, whose secret does not fit ({code}): renew them "
        "on the parent instance"
    )
