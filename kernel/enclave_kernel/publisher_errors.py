"""Why a package was refused for who made it, for the supervisor and for the notebook alike."""

import shlex

from enclave_protocol.package_errors import PackageError

__all__ = ["PublisherChangedError", "PublisherError", "UnsignedPackageError"]


class PublisherError(PackageError):
    """It is not known, or not the same, who made the package."""


class UnsignedPackageError(PublisherError):
    """The package has no publisher's signature, and was not asked for without one."""


class PublisherChangedError(PublisherError):
    """The publisher's key is another one than the user has pinned."""


def changed(publisher: str, *, pinned: str, found: str) -> PublisherChangedError:
    """Return the error that names both fingerprints and says what accepts the new one."""
    return PublisherChangedError(
        f"somebody else may have made it: the key pinned for publisher {publisher!r} is {pinned}, "
        f"and this package is signed with {found}; if the publisher confirms the new key, type on "
        f"the parent instance: enclave trust {shlex.quote(publisher)} {found}"
    )


def unsigned() -> UnsignedPackageError:
    """Return the error that says how to load it anyway."""
    return UnsignedPackageError(
        "is not signed: anybody can have made it, whatever its label says. If you know where it "
        "is from, use: %load_encrypted FILE --unsigned, %run_encrypted --unsigned FILE ..., or on "
        "the parent instance: enclave run --unsigned ..."
    )
