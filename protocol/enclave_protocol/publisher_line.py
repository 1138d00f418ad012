"""What users are shown about who made a package."""

from typing import TYPE_CHECKING

from enclave_protocol.plain_text import plain_text

if TYPE_CHECKING:
    from enclave_protocol.package_label import Label

__all__ = ["publisher", "publisher_line"]


def publisher(label: "Label") -> str:
    """Return the publisher's name; one that nobody signed for counts for nothing."""
    return "not signed" if label.signer is None else plain_text(label.package.publisher)


def publisher_line(label: "Label", *, is_new: bool) -> str:
    """Return a line for people about the publisher of a package that was loaded.

    Args:
        label: Authentic.
        is_new: The publisher's key was pinned with this load.
    """
    if label.signer is None:
        return "NOT SIGNED: anybody can have made it."
    # In quotes, of which the name has none: no name looks like the rest of the line.
    name = publisher(label).replace('"', "'")
    line = f'Publisher "{name}", key {label.signer.fingerprint}'
    if not is_new:
        return f"{line} (pinned)."
    return (
        f"{line}\nNEW: this key is pinned from now on. Compare it with the fingerprint that the "
        "publisher tells you."
    )
