"""What is wrong with a policy document."""

from enclave_protocol.errors import EnclaveError

__all__ = ["PolicyError"]


class PolicyError(EnclaveError):
    """A policy is malformed, over its limits, or names what AWS does not accept."""
