"""What is not mirrored: some defaults, and what `.enclaveignore` in the folder's root says.

In the syntax of .gitignore, as pathspec reads it (docs/decisions/pathspec_on_the_parent.md).
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from enclave_parent_gateway.errors import GatewayError

__all__ = ["DEFAULTS", "IGNORE_FILE", "IgnoreRules", "read_rules"]

IGNORE_FILE: Final = ".enclaveignore"
DEFAULTS: Final = (".git", "__pycache__", ".ipynb_checkpoints")
"""Large, or worth nothing elsewhere; `!.git` in the file takes one back."""
_MAX_BYTES: Final = 256 * 1024


class IgnoreRules:
    """Says which paths stay where they are.

    Args:
        lines: Of `.enclaveignore`; None without one.
    """

    def __init__(self, lines: tuple[str, ...] | None) -> None:
        self._lines = lines
        self._spec = None if lines is None else GitIgnoreSpec.from_lines([*DEFAULTS, *lines])
        self._of_folder = lru_cache(maxsize=65536)(self._is_ignored_folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IgnoreRules) and self._lines == other._lines

    __hash__ = None  # type: ignore[assignment]

    def ignores(self, rel: str, *, folder: bool) -> bool:
        """Say whether a path is not mirrored."""
        if folder:
            return self._of_folder(rel)
        above, _, name = rel.rpartition("/")
        if above and self._of_folder(above):
            return True
        if self._spec is None:
            return name in DEFAULTS
        return self._spec.match_file(rel)

    def _is_ignored_folder(self, rel: str) -> bool:
        above, _, name = rel.rpartition("/")
        # As in git: nothing below an ignored folder comes back.
        if above and self._of_folder(above):
            return True
        if self._spec is None:
            return name in DEFAULTS
        return self._spec.match_file(rel + "/")


def read_rules(root: Path) -> IgnoreRules:
    """Return the rules of a folder.

    Raises:
        GatewayError: Its `.enclaveignore` cannot be read, or is none.
    """
    path = root / IGNORE_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return IgnoreRules(None)
    except OSError as error:
        raise GatewayError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, encoding="utf-8") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise GatewayError(f"{path} is longer than {_MAX_BYTES // 1024} KiB")
        return IgnoreRules(tuple(text.splitlines()))
    except (OSError, ValueError) as error:
        # pathspec's errors are ValueErrors.
        raise GatewayError(f"{path} has no patterns in gitignore syntax: {error}") from error
