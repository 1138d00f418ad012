"""A notebook of the owner's, read for a trial: its code cells, and what its parameters are called.

nbformat and IPython, which an enclave has installed, are imported when there is one to read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from enclave_encryption.errors import OwnerError
from enclave_protocol.notebook_parameter_names import check_parameter_names, parameter_names
from enclave_protocol.notebook_parameters import (
    PARAMETERS_TAG,
    NotebookParameterError,
    parse_notebook_arguments,
)

__all__ = ["NotebookCell", "check_notebook_arguments", "read_notebook"]

_VERSION: Final = 4


@dataclass(frozen=True)
class NotebookCell:
    """One code cell.

    Attributes:
        source: As it is in the notebook, magics included.
        has_parameters: It is the one whose values the user may set.
    """

    source: str
    has_parameters: bool


def read_notebook(text: str, path: str) -> tuple[NotebookCell, ...]:
    """Return a notebook's code cells.

    Args:
        text: The file's, of any version that nbformat reads.
        path: What errors call it.

    Raises:
        OwnerError: It is no notebook, or what reads it is not installed.
    """
    try:
        import nbformat
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    try:
        notebook: Any = nbformat.reads(text, as_version=_VERSION)  # type: ignore[no-untyped-call]
        found = [
            (str(cell["source"]), PARAMETERS_TAG in cell["metadata"].get("tags", ()))
            for cell in notebook["cells"]
            if cell["cell_type"] == "code"
        ]
    except Exception as error:  # nbformat's and JSON's have no root but this
        reason = " ".join(str(error).split())[:200]
        raise OwnerError(
            f"{path}: is no valid notebook: save it again with Jupyter ({reason})"
        ) from None
    first = next((index for index, (_, tagged) in enumerate(found) if tagged), None)
    return tuple(NotebookCell(source, index == first) for index, (source, _) in enumerate(found))


def check_notebook_arguments(
    cells: Sequence[NotebookCell], arguments: Sequence[str], path: str
) -> None:
    """Check what a vault would refuse, before one is started.

    Raises:
        OwnerError: A parameter that no notebook takes, or that this one does not.
    """
    try:
        parameters = parse_notebook_arguments(arguments).parameters
        tagged = next((cell.source for cell in cells if cell.has_parameters), "")
        check_parameter_names(parameters, parameter_names(_as_python(tagged)))
    except NotebookParameterError as error:
        raise OwnerError(f"{path}: {error}") from None


def _as_python(source: str) -> str:
    try:
        from IPython.core.inputtransformer2 import TransformerManager
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    transformer: Any = TransformerManager()  # type: ignore[no-untyped-call]
    try:
        return str(transformer.transform_cell(source))
    except (SyntaxError, ValueError, RecursionError):
        return ""


def _not_installed(error: ModuleNotFoundError) -> OwnerError:
    return OwnerError(
        "`try` needs what an enclave has installed, and here there is no module "
        f"{error.name}: pip install 'enclave-kernel[owner,enclave]'"
    )
