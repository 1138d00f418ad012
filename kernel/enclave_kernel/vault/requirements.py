"""Whether the enclave's image has what a package says it needs. Nothing is ever installed.

Source: docs/spec/encrypted_package.md, "Manifest"; docs/decisions/packaging_in_the_enclave.md.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import InvalidRequirement, Requirement

from enclave_protocol.package_errors import PackageError

__all__ = ["RequirementsMissingError", "check_requirements"]


class RequirementsMissingError(PackageError):
    """The image lacks distributions that the package needs."""


def check_requirements(requirements: Iterable[str]) -> None:
    """Check that every distribution is there, in a version that is asked for.

    Args:
        requirements: Of the label: such as `numpy>=2`.

    Raises:
        RequirementsMissingError: Some are not; names all of them, and what is there instead.
    """
    missing = [text for text in map(_missing, requirements) if text]
    if missing:
        raise RequirementsMissingError(
            f"this enclave lacks what the package needs: {', '.join(missing)}; use an image that "
            "has it, or ask the package's owner"
        )


def _missing(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"{text} (not understood)"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{text} (not installed)"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{text} (it has {found})"
