"""Where in a package's directory an incident arose, which a user knows only as a number."""

from dataclasses import dataclass
from typing import Final

from enclave_encryption.errors import OwnerError
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.incident import INCIDENT_KEY_NAME, Place, stands_for

__all__ = ["FoundPlace", "IncidentLookup"]

_LINES_AROUND: Final = 3


@dataclass(frozen=True)
class FoundPlace:
    """A place, as its owner looks at it.

    Attributes:
        incident: The id.
        place: What the id stands for.
        first_line: Number of the first of `lines`.
        lines: The line with those around it; empty where no line of the package's was involved.
    """

    incident: str
    place: Place
    first_line: int
    lines: tuple[str, ...]

    @property
    def shown(self) -> str:
        """As editors take it: `scorer/model.py:42`."""
        if not self.place.path:
            return "no line of the package's"
        return f"{self.place.path}:{self.place.line}"


class IncidentLookup:
    """Looks incident ids up among all lines of a directory's Python files.

    Args:
        plan: The directory's; it has to be the code that raised, or the line is another.

    Raises:
        OwnerError: It has no key for it.
    """

    def __init__(self, plan: PackagePlan) -> None:
        if plan.incident_key is None:
            path = plan.tree.root / INCIDENT_KEY_NAME
            raise OwnerError(
                f"{path}: is not there, so that this package's incident ids are random numbers; "
                f"for its next version: openssl rand -hex 32 > {path}"
            )
        self._key = plan.incident_key
        self._plan = plan
        self._sources: dict[str, list[bytes]] | None = None

    def find(self, incident: str) -> FoundPlace | None:
        """Return where an incident arose; None if it is not of this code.

        Args:
            incident: 16 hex digits.

        Raises:
            SourceTreeError: The code changed, or cannot be read any more.
        """
        if stands_for(self._key, incident, Place()):
            return FoundPlace(incident, Place(), 0, ())
        if self._sources is None:
            self._sources = self._read()
        for path, lines in self._sources.items():
            for number in range(1, len(lines) + 1):
                place = Place(path, number)
                if stands_for(self._key, incident, place):
                    first = max(1, number - _LINES_AROUND)
                    around = lines[first - 1 : number + _LINES_AROUND]
                    shown = tuple(line.decode("utf-8", "replace") for line in around)
                    return FoundPlace(incident, place, first, shown)
        return None

    def _read(self) -> dict[str, list[bytes]]:
        buffer = memoryview(bytearray(READ_BYTES))
        tree = self._plan.tree
        return {
            file.entry.path: b"".join(map(bytes, tree.read(file, buffer))).splitlines()
            for file in tree.files
            if file.entry.path.endswith(".py")
        }
