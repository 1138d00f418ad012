"""What a session needs of the supervisor to have a vault, whoever stands for the supervisor."""

import socket
from typing import Protocol

__all__ = ["LoadedVaultLike", "VaultLink"]


class LoadedVaultLike(Protocol):
    """A vault that has its data key and waits for the body."""

    @property
    def vault_id(self) -> str:
        """What the supervisor calls it."""
        ...

    @property
    def socket(self) -> socket.socket:
        """The notebook's end of its socket for calls."""
        ...

    @property
    def new_publisher(self) -> bool:
        """Whether the key that the package is signed with was pinned just now."""
        ...


class VaultLink(Protocol):
    """What a session asks of the supervisor (`supervisor_link.SupervisorLink`)."""

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVaultLike:
        """Return a vault with the data key of the package with this header."""
        ...

    def interrupt(self, vault_id: str) -> None:
        """Send SIGINT to a vault."""
        ...

    def unload(self, vault_id: str) -> None:
        """End a vault; an unknown one is fine."""
        ...

    def death_reason(self, vault_id: str) -> str | None:
        """Return why a vault died; None when nothing is known within 2 s."""
        ...
