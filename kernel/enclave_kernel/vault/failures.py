"""What an exception of the package may show of itself. An exception object never travels."""

import builtins
from typing import Final

from enclave_kernel.vault.callbacks import CallbackError
from enclave_kernel.vault.incidents import Incidents
from enclave_protocol.vault_messages import CALLBACK_ERROR, Raised

__all__ = ["raised"]

_MAX_MESSAGE_CHARS: Final = 500
_BUILTIN_ERRORS: Final = {
    kind: name
    for name, kind in vars(builtins).items()
    # The canonical name only: IOError is OSError.
    if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__name__ == name
}


def raised(
    request_id: int, error: BaseException, shown: frozenset[str], incidents: Incidents
) -> Raised:
    """Return what the notebook learns of `error`.

    Args:
        request_id: Of the call that raised.
        error: Whatever the package let out.
        shown: Names of the built-in types whose message the owner's policy shows. Exact types:
            a subclass, such as UnicodeDecodeError of ValueError, may carry whole documents.
        incidents: Makes the id.
    """
    if type(error) is CallbackError:
        # What the function raised, the notebook knows.
        return Raised(request_id, CALLBACK_ERROR, None, incidents.new(error))
    name = _BUILTIN_ERRORS.get(type(error))
    message = _message(error) if name is not None and name in shown else None
    if name is None:
        # The name of a class of the package's is the owner's: show what it is derived from.
        bases = (_BUILTIN_ERRORS[base] for base in type(error).__mro__ if base in _BUILTIN_ERRORS)
        name = next(bases, "Exception")
    return Raised(request_id, name, message, incidents.new(error))


def _message(error: BaseException) -> str | None:
    """Return the one argument if it is text; `str(error)` would run code and join the others."""
    arguments = error.args
    if not arguments:
        return ""
    if len(arguments) != 1 or type(arguments[0]) is not str:
        return None
    text: str = arguments[0][:_MAX_MESSAGE_CHARS]
    return "".join(character if character.isprintable() else " " for character in text)
