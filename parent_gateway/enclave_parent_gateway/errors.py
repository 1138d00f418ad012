"""Errors of the parent side. Every message is one line that says what to do next."""

from enclave_protocol.errors import EnclaveError

__all__ = [
    "EnclaveGoneError",
    "EnclaveNotRunningError",
    "EnclaveNotTrustedError",
    "EnclaveStartError",
    "GatewayError",
    "GatewayStoppingError",
    "KernelLaunchError",
    "NotPermittedError",
    "NothingExpectedError",
    "RefusedError",
    "RuntimeDirError",
    "TransportError",
]


class GatewayError(EnclaveError):
    """Anything that goes wrong on the parent instance."""


class RuntimeDirError(GatewayError):
    """The runtime directory cannot be used: wrong owner, open to others, or its path too long."""


class TransportError(GatewayError):
    """An endpoint is not one, or nothing answers there."""


class EnclaveNotRunningError(GatewayError):
    """No gateway answers: no enclave is up."""


class EnclaveGoneError(GatewayError):
    """The gateway runs, the enclave behind it does not answer."""


class EnclaveStartError(GatewayError):
    """The enclave did not come up."""


class GatewayStoppingError(GatewayError):
    """The enclave goes down right now; a launch has to wait and bring it up again."""


class KernelLaunchError(GatewayError):
    """The kernel did not start."""


class RefusedError(GatewayError):
    """The other side answered a request with an error of its own.

    Args:
        kind: Class name of the error on the other side.
        message: Its text, one line.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EnclaveNotTrustedError(RefusedError):
    """What answers at the enclave's endpoint did not prove that it is the enclave expected.

    `kind` is the class of the `AttestationError`, or of what kept it from being checked.
    """


class NothingExpectedError(GatewayError):
    """No PCR0 is expected, so that any image would do."""


class NotPermittedError(GatewayError):
    """Somebody asked a shared gateway for what is not theirs."""
