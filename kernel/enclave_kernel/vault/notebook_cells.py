"""A notebook of the owner's, read: its code cells, and what its parameters are called.

nbformat and IPython are imported when there is a notebook to read, and not before.
"""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from enclave_protocol.notebook_parameter_names import check_parameter_names, parameter_names
from enclave_protocol.notebook_parameters import (
    PARAMETERS_TAG,
    NotebookArguments,
)
from enclave_protocol.package_errors import PackageError
from enclave_protocol.script_messages import MAX_CELLS

__all__ = ["CodeCell", "NotebookFormatError", "check_parameters", "read_cells"]

_VERSION: Final = 4


class NotebookFormatError(PackageError):
    """A notebook of the package is none, or none that can be run here."""


@dataclass(frozen=True)
class CodeCell:
    """One code cell.

    Attributes:
        source: As it is in the notebook, magics included.
        lines_before: Of all code cells before it, with empty ones that it begins with itself:
            IPython takes them away.
        has_parameters: It is the one whose values the user may set.
    """

    source: str
    lines_before: int
    has_parameters: bool = False


def read_cells(data: bytes) -> tuple[CodeCell, ...]:
    """Return a notebook's code cells; all others are the owner's to read.

    Args:
        data: The file's contents, of any version that nbformat reads.

    Raises:
        NotebookFormatError: It is no notebook, none in Python, or has too many cells.
    """
    import nbformat

    try:
        notebook = nbformat.reads(data.decode(), as_version=_VERSION)  # type: ignore[no-untyped-call]
        language = _language(notebook["metadata"])
        found = [_cell(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    except Exception:
        # nbformat's messages quote what they do not like, and that is the owner's.
        raise NotebookFormatError(
            "its notebook is not valid: the owner has to save it again with Jupyter"
        ) from None
    if language not in ("python", ""):
        raise NotebookFormatError("its notebook is not in Python: nothing else runs in a vault")
    if len(found) > MAX_CELLS:
        raise NotebookFormatError(
            f"its notebook has {len(found)} cells, at most {MAX_CELLS} are accepted"
        )
    first = next((index for index, (_, tagged) in enumerate(found) if tagged), None)
    cells, lines = [], 0
    for index, (source, _) in enumerate(found):
        empty = itertools.takewhile(lambda line: not line.strip(), source.split("\n"))
        cells.append(CodeCell(source, lines + len(list(empty)), index == first))
        # As the owner counts them, who looks up an incident.
        lines += source.count("\n") + 1
    return tuple(cells)


def _language(metadata: Mapping[str, Any]) -> str:
    kernel, language = metadata.get("kernelspec", {}), metadata.get("language_info", {})
    return str(language.get("name") or kernel.get("language") or "").lower()


def _cell(cell: Mapping[str, Any]) -> tuple[str, bool]:
    source = cell["source"]
    if not isinstance(source, str):
        raise TypeError("a cell's source is no text")
    return source, PARAMETERS_TAG in cell["metadata"].get("tags", ())


def check_parameters(cells: tuple[CodeCell, ...], arguments: NotebookArguments) -> None:
    """Check that the parameters are the notebook's: names that its tagged cell assigns.

    Raises:
        NotebookParameterError: One is not.
    """
    known: Collection[str] = ()
    for cell in cells:
        if cell.has_parameters:
            known = _assigned(cell.source)
    check_parameter_names(arguments.parameters, known)


def _assigned(source: str) -> Collection[str]:
    from IPython.core.inputtransformer2 import TransformerManager

    # A line of magic among the values is Python as well.
    transformer: Any = TransformerManager()  # type: ignore[no-untyped-call]
    try:
        python = transformer.transform_cell(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return parameter_names(python)
