"""Where Debian packages come from: the mirrors that this machine's apt is set up with.

No mirror is named here. Source: apt-get(8), "indextargets"; sources.list(5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ToolError
from enclave_infra.image.programs import output_of

__all__ = ["KEYRING", "SUITE", "Mirror", "configured_mirror"]

SUITE: Final = "bookworm"
_SECURITY: Final = f"{SUITE}-security"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Mirror:
    """Addresses of the archive and of its security updates; None: not configured."""

    archive: str
    security: str | None = None

    def source_lines(self) -> Sequence[str]:
        """Return the lines of sources.list that packages are taken from."""
        lines = [self._line(self.archive, SUITE), self._line(self.archive, f"{SUITE}-updates")]
        if self.security is not None:
            lines.append(self._line(self.security, _SECURITY))
        return lines

    @staticmethod
    def _line(address: str, suite: str) -> str:
        return f"deb [signed-by={KEYRING}] {address} {suite} main"


def configured_mirror() -> Mirror:
    """Return what apt on this machine uses for bookworm.

    Raises:
        ToolError: Nothing of bookworm is set up.
    """
    wanted = "$(CREATED_BY)\t$(CODENAME)\t$(RELEASE)\t$(REPO_URI)"
    text = output_of(["apt-get", "indextargets", "--format", wanted]).decode()
    found: dict[str, str] = {}
    for line in text.splitlines():
        kind, _, release, address = line.split("\t")
        if kind == "Packages":
            found.setdefault(release, address.rstrip("/"))
    if SUITE not in found:
        raise ToolError(
            f"apt on this machine has no package list of Debian {SUITE}; type: apt-get update, "
            "or name a mirror with --mirror"
        )
    return Mirror(found[SUITE], found.get(_SECURITY))
