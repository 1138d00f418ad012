"""Why an attestation document was refused: one class for each step of the verification."""

from collections.abc import Collection
from datetime import datetime

from enclave_protocol.errors import EnclaveError

__all__ = [
    "AttestationChainError",
    "AttestationError",
    "AttestationFormatError",
    "AttestationSignatureError",
    "AttestationTimeError",
    "ChannelBindingError",
    "DebugModeError",
    "NonceMismatchError",
    "PcrMismatchError",
    "UntrustedRootError",
]


class AttestationError(EnclaveError):
    """The attestation document proves nothing; never act on its content."""


class AttestationFormatError(AttestationError):
    """Steps 1 and 2: the bytes are not a COSE_Sign1 with an attestation payload."""


class UntrustedRootError(AttestationError):
    """Step 3: the chain starts at another root certificate than the pinned one."""

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(
            f"attestation root certificate has SHA-256 {actual}, expected {expected}: the document "
            "comes from other hardware (or a local stand-in); check which backend the enclave uses"
        )


class AttestationChainError(AttestationError):
    """Step 4: the certificates do not lead from the root to the leaf at the given time."""


class AttestationSignatureError(AttestationError):
    """Step 5: the leaf's key did not sign this payload."""

    def __init__(self) -> None:
        super().__init__(
            "the COSE signature of the attestation document does not match its payload: the "
            "document was altered; ask the enclave for a new one"
        )


class AttestationTimeError(AttestationError):
    """Step 6: the document's own timestamp is too old, or lies in the future."""

    def __init__(self, *, written: datetime, now: datetime) -> None:
        super().__init__(
            f"attestation document was written at {written.isoformat()}, it is now "
            f"{now.isoformat()}: ask for a fresh document, and check both clocks"
        )


class NonceMismatchError(AttestationError):
    """Step 6: the document answers another challenge."""

    def __init__(self) -> None:
        super().__init__(
            "the nonce in the attestation document is not the one that was sent: it may be a "
            "replay; ask again with a fresh nonce"
        )


class PcrMismatchError(AttestationError):
    """Step 6: a PCR in the attestation document is not the expected one."""

    def __init__(
        self, index: int, *, expected: bytes | Collection[bytes], actual: bytes | None
    ) -> None:
        found = "absent" if actual is None else actual.hex()
        values = [expected] if isinstance(expected, bytes) else sorted(expected)
        wanted = " or ".join(value.hex() for value in values)
        super().__init__(
            f"PCR{index} is {found}, expected {wanted}: this is another enclave image; start the "
            f"one you mean, or approve this one (enclave up --expect-pcr{index}, key policy)"
        )


class DebugModeError(AttestationError):
    """Step 6: the enclave runs in debug mode, where the parent instance reads its console."""

    def __init__(self) -> None:
        super().__init__(
            "the enclave runs in debug mode (PCR0 is zero), so nothing about its image is proven; "
            "start it without --debug-mode"
        )


class ChannelBindingError(AttestationError):
    """The document is genuine, and the peer of the connection is not who it speaks of."""

    def __init__(self) -> None:
        super().__init__(
            "the attestation document is not for the TLS key of this connection: somebody on this "
            "machine stands between gateway and enclave; nothing was sent. See: enclave logs"
        )
