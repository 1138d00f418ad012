"""What can go wrong on the owner's machine; each message says what to do next."""

from collections.abc import Sequence

from enclave_protocol.errors import EnclaveError

__all__ = [
    "ExportError",
    "KeyPolicyError",
    "KmsDeniedError",
    "KmsError",
    "LintError",
    "OutputError",
    "OwnerError",
    "SigningKeyError",
    "SourceTreeError",
    "WideningError",
]


class OwnerError(EnclaveError):
    """`enclave-owner` cannot do what it was asked to; nothing was written."""


class SourceTreeError(OwnerError):
    """The directory holds something that cannot be packed.

    Attributes:
        problems: One line each, every offender named.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ExportError(OwnerError):
    """`enclave.toml` and the code do not agree about what is exported."""


class LintError(OwnerError):
    """`--strict`, and there are warnings."""


class KmsError(OwnerError):
    """AWS KMS did not do what it was asked to."""


class KmsDeniedError(KmsError):
    """These credentials may not do that with this key."""


class SigningKeyError(OwnerError):
    """The publisher's key cannot be used, or would be lost."""


class KeyPolicyError(OwnerError):
    """A key policy, or what it was to become, makes no sense."""


class WideningError(KeyPolicyError):
    """Under the policy somebody could have the data key without attestation.

    Attributes:
        findings: One line each.
    """

    def __init__(self, message: str, findings: Sequence[str]) -> None:
        super().__init__("\n".join((*findings, message)))
        self.findings = tuple(findings)


class OutputError(OwnerError):
    """The encrypted file cannot be written."""
