"""Where in a package's directory an incident arose, which a user knows only as a number."""

from dataclasses import dataclass
from typing import Final

from enclave_encryption.errors import OwnerError
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.package_scripts import MAX_NOTEBOOK_BYTES, code_cells
from enclave_encryption.source_tree import READ_BYTES
from enclave_protocol.incident import INCIDENT_KEY_NAME, Place, stands_for
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX

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
        cell: Of a notebook: which of its code cells, from 1, and the line in there.
    """

    incident: str
    place: Place
    first_line: int
    lines: tuple[str, ...]
    cell: tuple[int, int] | None = None

    @property
    def shown(self) -> str:
        """As editors take it: `scorer/model.py:42`; of a notebook, the cell and its line."""
        if not self.place.path:
            return "no line of the package's"
        if self.cell is not None:
            return f"{self.place.path}, code cell {self.cell[0]}, line {self.cell[1]}"
        return f"{self.place.path}:{self.place.line}"


class IncidentLookup:
    """Looks incident ids up among all lines of a directory's Python files and notebooks.

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
        self._cells: dict[str, list[list[str]]] = {}

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
                    return FoundPlace(incident, place, first, shown, self._cell(path, number))
        return None

    def _read(self) -> dict[str, list[bytes]]:
        buffer = memoryview(bytearray(READ_BYTES))
        tree = self._plan.tree
        return {
            file.entry.path: b"".join(map(bytes, tree.read(file, buffer))).splitlines()
            for file in tree.files
            if file.entry.path.endswith(".py")
        } | self._read_notebooks()

    def _read_notebooks(self) -> dict[str, list[bytes]]:
        self._cells.clear()
        for script in self._plan.manifest.scripts.values():
            if script.file.endswith(NOTEBOOK_SUFFIX):
                text = self._plan.tree.text(script.file, MAX_NOTEBOOK_BYTES) or ""
                # Lines are counted over all code cells, as in a vault.
                self._cells[script.file] = [source.split("\n") for source in code_cells(text)]
        return {
            path: [line.encode() for lines in cells for line in lines]
            for path, cells in self._cells.items()
        }

    def _cell(self, path: str, line: int) -> tuple[int, int] | None:
        for number, lines in enumerate(self._cells.get(path, ()), 1):
            if line <= len(lines):
                return number, line
            line -= len(lines)
        return None
