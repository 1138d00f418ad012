"""Shows what a notebook's cell showed in its vault, in the cell that runs the notebook."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["show_outputs"]


def show_outputs(outputs: Sequence[Mapping[str, Any]]) -> None:
    """Show a cell's outputs, which are clean; never raises an Exception.

    Args:
        outputs: As nbformat 4 has them: text that was printed, and displays of text and PNG.
    """
    if not outputs:
        return
    # Late: a process without a shell has no IPython, and nowhere to draw.
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if not InteractiveShell.initialized():
        return
    # What is wrong with a display must not end the run.
    with contextlib.suppress(Exception):
        for output in outputs:
            if output["output_type"] == "stream":
                sys.stdout.write(output["text"])
            else:
                display(dict(output["data"]), raw=True)  # type: ignore[no-untyped-call]
