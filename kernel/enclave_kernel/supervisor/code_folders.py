"""Where the enclave's own code is: what vaults import from, and what no notebook may change."""

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["code_folders", "import_path"]

_DISTRIBUTION: Final = "enclave-kernel"
_OWN: Final = ("enclave_kernel", "enclave_protocol")


def import_path() -> list[str]:
    """Return what a vault imports from: this process's path, and where our own packages are.

    An editable installation finds the latter by a hook that a vault does not have.
    """
    return list(dict.fromkeys([*(entry for entry in sys.path if entry), *_parents(_OWN)]))


@cache
def code_folders() -> tuple[str, ...]:
    """Return the folders of all our packages that are installed here.

    On a developer's machine those of the parent and of the owner are among them: root runs them.
    """
    try:
        listed = distribution(_DISTRIBUTION).read_text("top_level.txt") or ""
    except PackageNotFoundError:
        listed = ""
    return _parents((*_OWN, *listed.split()))


def _parents(packages: tuple[str, ...]) -> tuple[str, ...]:
    folders: dict[str, None] = {}
    for name in packages:
        spec = find_spec(name)
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            folders[str(Path(location).parent)] = None
    return tuple(folders)
