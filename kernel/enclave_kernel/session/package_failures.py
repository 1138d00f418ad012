"""What a call into an encrypted package can raise, rebuilt from the little that crosses."""

import builtins
from typing import Final

from enclave_protocol.errors import EnclaveError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.value_nodes import ValueRefusedError
from enclave_protocol.vault_messages import Raised, Refused

__all__ = [
    "CallLimitError",
    "CallbackError",
    "EncryptedPackageError",
    "VaultDiedError",
    "rebuild_raised",
    "rebuild_refused",
]

_MAX_NAME_CHARS: Final = 64


class EncryptedPackageError(EnclaveError):
    """Code of an encrypted package raised, and its owner does not show more than this.

    Attributes:
        incident: What to tell the owner; None where there is nothing to look up.
    """

    def __init__(self, message: str, incident: str | None = None) -> None:
        super().__init__(message)
        self.incident = incident


class CallLimitError(EncryptedPackageError):
    """The owner's policy allows this call no more, or not yet, or not with this result."""


class CallbackError(EnclaveError):
    """A package and a function of the user's that it calls cannot go on together."""


class VaultDiedError(EnclaveError):
    """The process that an encrypted package runs in has ended; its objects are gone."""


# Those that a plain message makes. StopIteration would end a loop of the caller's in silence.
_REBUILT: Final = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(
        kind,
        (
            StopIteration,
            StopAsyncIteration,
            ExceptionGroup,
            UnicodeDecodeError,
            UnicodeEncodeError,
            UnicodeTranslateError,
        ),
    )
}
_REFUSALS: Final[dict[str, type[Exception]]] = {
    "TypeError": TypeError,
    "AttributeError": AttributeError,
    "ReferenceError": ReferenceError,
    "ValueRefusedError": ValueRefusedError,
    "BudgetExceededError": CallLimitError,
    "CallbackTimeoutError": CallbackError,
}


def rebuild_raised(raised: Raised, package: str) -> BaseException:
    """Return the exception to raise for what the package raised.

    Args:
        raised: What the vault told.
        package: How the package is shown, `<encrypted NAME VERSION>`.
    """
    if raised.type_name == "KeyboardInterrupt":
        return KeyboardInterrupt()
    kind = _REBUILT.get(raised.type_name)
    if kind is not None and raised.message is not None:
        return kind(plain_text(raised.message))
    # The vault bounds and cleans all of this, too, but a package may have taken it over.
    shown = raised.type_name if raised.type_name.isidentifier() else "Exception"
    incident = plain_text(raised.incident, limit=_MAX_NAME_CHARS)
    return EncryptedPackageError(
        f"{plain_text(shown, limit=_MAX_NAME_CHARS)} in {package} [incident {incident}]: "
        "its owner does not show more",
        incident,
    )


def rebuild_refused(refused: Refused) -> Exception:
    """Return the exception to raise for a call that the vault did not make."""
    kind = _REFUSALS.get(refused.kind, EncryptedPackageError)
    return kind(plain_text(refused.message))
