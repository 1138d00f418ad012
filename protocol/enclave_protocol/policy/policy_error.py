"""What is wrong with a policy document."""

from enclave_protocol.errors import EnclaveError
from enclave_protocol.plain_text import plain_text

__all__ = ["PolicyError"]


class PolicyError(EnclaveError):
    """A policy is malformed, over its limits, or names what AWS does not accept."""

    def __init__(self, message: str) -> None:
        # It may quote the policy: one line, and nothing that drives a terminal.
        super().__init__(plain_text(message))
