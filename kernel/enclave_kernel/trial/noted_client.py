"""A client of a vault that notes how each call ended."""

from collections.abc import Callable
from typing import Any, TypeVar

from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.package_failures import EncryptedPackageError
from enclave_kernel.session.user_functions import UserFunctionError
from enclave_kernel.session.vault_client import VaultClient
from enclave_kernel.session.vault_link import LoadedVaultLike, VaultLink
from enclave_protocol.trial_messages import NotedCall
from enclave_protocol.value_codec import Handle

__all__ = ["NotedClient", "incident_of", "line_of"]

_T = TypeVar("_T")


class NotedClient(VaultClient):
    """Calls into one vault, noted; everything else is `VaultClient`.

    Args:
        vault: As there.
        package: As there.
        link: As there.

    Attributes:
        notes: Calls since they were last taken, in the order of their ends.
    """

    def __init__(self, vault: LoadedVaultLike, package: str, link: VaultLink) -> None:
        super().__init__(vault, package, link)
        self.notes: list[NotedCall] = []

    def take_notes(self) -> tuple[NotedCall, ...]:
        """Return the calls that ended since this was called last."""
        taken, self.notes = tuple(self.notes), []
        return taken

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call an exported function."""
        return self._noted(function, lambda: VaultClient.call(self, function, *args, **kwargs))

    def construct(self, class_name: str, *args: Any, **kwargs: Any) -> Handle:
        """Make an object of an exported class."""
        make = VaultClient.construct
        return self._noted(class_name, lambda: make(self, class_name, *args, **kwargs))

    def call_method(self, handle: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a declared method of an object."""
        make = VaultClient.call_method
        return self._noted(f".{method}", lambda: make(self, handle, method, *args, **kwargs))

    def get_attribute(self, handle: int, attribute: str) -> Any:
        """Return a declared attribute of an object."""
        make = VaultClient.get_attribute
        return self._noted(f".{attribute}", lambda: make(self, handle, attribute))

    def next_items(self, handle: int, watch: CallInterrupt | None = None) -> tuple[list[Any], bool]:
        """Return the next items of an iterator."""
        return self._noted("next", lambda: VaultClient.next_items(self, handle, watch))

    def _noted(self, name: str, make: Callable[[], _T]) -> _T:
        try:
            result = make()
        except BaseException as error:
            self.notes.append(NotedCall(name, line_of(error), incident_of(error)))
            raise
        self.notes.append(NotedCall(name))
        return result


def incident_of(error: BaseException | None) -> str:
    """Return the incident id that a user finds in `error`; empty if there is none."""
    if isinstance(error, EncryptedPackageError) and error.incident is not None:
        return error.incident
    return ""


def line_of(error: BaseException) -> str:
    """Return type and message of `error`; of what the user's own function raised, if it did."""
    if isinstance(error, UserFunctionError):
        error = error.original
    return f"{type(error).__name__}: {error}".removesuffix(": ")
