"""What can be wrong with an encrypted package; every error can name the file it is about."""

from typing import Self

from enclave_protocol.errors import EnclaveError

__all__ = [
    "PackageError",
    "PackageFormatError",
    "PackageTamperedError",
    "PackageTruncatedError",
]


class PackageError(EnclaveError):
    """An encrypted package, or what it was to be made from, cannot be used.

    Attributes:
        reason: The message without the file's name.
        file: Name of the file, as the person who opened it typed it; None if not known (yet).
    """

    def __init__(self, reason: str, *, file: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = file

    def __str__(self) -> str:
        if self.file is None:
            return self.reason
        # The name is a stranger's text: it must neither break the line nor drive the terminal.
        name = self.file if self.file.isprintable() else ascii(self.file)
        return f"{name}: {self.reason}"

    def with_file(self, file: str | None) -> Self:
        """Return this error naming `file`; a name it already has is kept."""
        if self.file is None:
            self.file = file
        return self


class PackageFormatError(PackageError):
    """The bytes are no encrypted package, or break a rule or limit of the format."""


class PackageTamperedError(PackageError):
    """The bytes are not the ones the owner encrypted, or the data key is not the file's."""


class PackageTruncatedError(PackageError):
    """The file ends before the package does."""
