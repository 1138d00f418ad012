"""What is in a notebook that came back from a vault, as its user finds it."""

from pathlib import Path
from typing import Any

from enclave_protocol.trial_messages import ShownCell, fitting_cells

__all__ = ["returned_cells"]


def returned_cells(path: Path) -> tuple[ShownCell, ...]:
    """Return the code cells of the file, whatever it has in them.

    Args:
        path: A notebook that the session wrote.
    """
    # Late: only for whoever runs a notebook.
    import nbformat

    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    cells = []
    for number, cell in enumerate(notebook.cells, 1):
        output = "".join(_text(shown) for shown in cell.outputs)
        cells.append(ShownCell(number, cell.source, output))
    return fitting_cells(cells)


def _text(output: Any) -> str:
    if output.output_type == "stream":
        text = output.text
    elif output.output_type == "error":
        text = "\n".join(output.traceback)
    else:
        parts = [output.data.get("text/plain", "")]
        parts += ["[image]" for kind in output.data if kind.startswith("image/")]
        text = "\n".join(filter(None, parts))
    return text if text.endswith("\n") else f"{text}\n"
