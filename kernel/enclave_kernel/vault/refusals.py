"""What the vault says instead of making a call, or of handing out what came of it."""

from enclave_protocol.errors import EnclaveError

__all__ = ["RefusedError", "cannot_leave", "result_too_large"]


class RefusedError(EnclaveError):
    """A request is not carried out; `kind` is what the notebook raises."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def cannot_leave() -> RefusedError:
    """Return the refusal of a result; which type it was is the owner's: it says only that."""
    return RefusedError(
        "EncryptedPackageError",
        "the call returned something that cannot leave the encrypted package; tell its owner",
    )


def result_too_large(size: int, limit: int) -> RefusedError:
    """Return the refusal of a result of `size` bytes where `limit` are allowed."""
    return RefusedError(
        "BudgetExceededError", f"the result has {size} bytes, the owner allows {limit}"
    )
