"""What ends `enclave run` without an exit code of the script's."""

from typing import Final

from enclave_parent_gateway.errors import GatewayError

__all__ = [
    "DIED",
    "FAILED",
    "INTERRUPTED",
    "TIMED_OUT",
    "OutputPlaceError",
    "RunFailedError",
    "RunStoppedError",
    "RunUsageError",
    "SessionLostError",
]

# As `timeout`, `docker run` and shells have them, apart from what scripts usually return.
TIMED_OUT: Final = 124
FAILED: Final = 125
INTERRUPTED: Final = 130
DIED: Final = 137


class RunUsageError(GatewayError):
    """What was typed cannot be run: a wrong file, script, argument or variable."""


class OutputPlaceError(GatewayError):
    """Results cannot be written to where they should go."""


class SessionLostError(GatewayError):
    """The session in the enclave, or the way to it, is gone."""


class RunFailedError(GatewayError):
    """The enclave did not run the script. `kind` is the class name of the error there."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RunStoppedError(GatewayError):
    """The user stopped the run. `exit_code` is what a shell says of that."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped; nothing of the run is left in the enclave")
        self.exit_code = exit_code
