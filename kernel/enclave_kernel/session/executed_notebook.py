"""A notebook that ran in a vault, put together from what came out of it: outputs without sources.

The vault is somebody else's: text is cleaned again, images are made of pixels here, and everything
is counted. Only the types below get into the file, so no HTML and no script can.

Source: docs/spec/scripts.md, "Notebooks"; THREATS, O-03.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

from enclave_kernel.session.png_pixels import encode_png
from enclave_protocol.errors import EnclaveError
from enclave_protocol.output_text import output_text
from enclave_protocol.plain_text import plain_text
from enclave_protocol.script_messages import (
    MAX_CELL_OUTPUTS,
    MAX_CELLS,
    MAX_NOTEBOOK_CHARS,
    MAX_NOTEBOOK_IMAGE_BYTES,
    CellEnded,
    CellOutput,
)

__all__ = ["ExecutedNotebook", "NotebookOutputError"]

_METADATA: Final = {
    "kernelspec": {
        "display_name": "Python 3 (enclave)",
        "language": "python",
        "name": "enclave",
    },
    "language_info": {"name": "python"},
}


class NotebookOutputError(EnclaveError):
    """What came as a notebook's outputs is none, or more than a notebook may have."""


class ExecutedNotebook:
    """Takes outputs as they come, and becomes a file at the end.

    Args:
        path: Of that file, below the workspace.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._cells: list[Any] = []
        self._outputs: list[Any] = []
        self._chars = MAX_NOTEBOOK_CHARS
        self._image_bytes = MAX_NOTEBOOK_IMAGE_BYTES

    def add(self, message: CellOutput | CellEnded, buffers: Sequence[memoryview]) -> None:
        """Take the next message with its pixels.

        Raises:
            NotebookOutputError: A limit is exceeded, or the pixels do not fit.
        """
        if isinstance(message, CellEnded):
            if buffers:
                raise NotebookOutputError("the vault sent pixels that belong to no output")
            self._end_cell(message.execution_count)
            return
        if len(self._outputs) >= MAX_CELL_OUTPUTS:
            raise NotebookOutputError(
                f"a cell of the notebook has more than {MAX_CELL_OUTPUTS} outputs"
            )
        self._chars -= len(message.text)
        if self._chars < 0:
            raise NotebookOutputError(
                f"the notebook's outputs have more than {MAX_NOTEBOOK_CHARS} characters"
            )
        if message.kind == "stream":
            if message.image is not None or buffers:
                raise NotebookOutputError("the vault sent pixels as printed text")
            self._add_text(output_text(message.text))
        else:
            self._add_display(message, buffers)

    def encode(self, failure: BaseException | None = None) -> bytes:
        """Return the file's contents: a valid notebook.

        Args:
            failure: What ended it, as the user sees it; shown with its last cell.
        """
        import nbformat

        if failure is not None:
            self._fail(type(failure).__name__, plain_text(str(failure), limit=None))
        notebook = _v4().new_notebook(cells=self._cells, metadata=_METADATA)
        nbformat.validate(notebook)
        text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        return text.encode()

    def _fail(self, name: str, text: str) -> None:
        if not self._cells:
            self._end_cell(None)
        # A traceback would be the owner's code.
        lines = [f"{name}: {text}"]
        error = _v4().new_output("error", ename=name, evalue=text, traceback=lines)
        self._cells[-1].outputs.append(error)

    def _end_cell(self, execution_count: int | None) -> None:
        if len(self._cells) >= MAX_CELLS:
            raise NotebookOutputError(f"the notebook has more than {MAX_CELLS} cells")
        for output in self._outputs:
            if output.output_type == "execute_result":
                output.execution_count = execution_count
        cell = _v4().new_code_cell(
            source="", execution_count=execution_count, outputs=self._outputs
        )
        self._cells.append(cell)
        self._outputs = []

    def _add_text(self, text: str) -> None:
        last = self._outputs[-1] if self._outputs else None
        if last is not None and last.output_type == "stream":
            last.text += text
        elif text:
            self._outputs.append(_v4().new_output("stream", name="stdout", text=text))

    def _add_display(self, message: CellOutput, buffers: Sequence[memoryview]) -> None:
        data = {}
        text = output_text(message.text)
        if text:
            data["text/plain"] = text
        if message.image is not None:
            data["image/png"] = self._png(message.image, buffers)
        elif buffers:
            raise NotebookOutputError("the vault sent pixels without an image")
        if data:
            self._outputs.append(_v4().new_output(message.kind, data=data))

    def _png(self, size: tuple[int, int, int], buffers: Sequence[memoryview]) -> str:
        if len(buffers) != 1:
            raise NotebookOutputError("the vault sent an image without pixels")
        self._image_bytes -= len(buffers[0])
        if self._image_bytes < 0:
            raise NotebookOutputError(
                f"the notebook's images have more than {MAX_NOTEBOOK_IMAGE_BYTES} bytes"
            )
        try:
            return base64.b64encode(encode_png(*size, buffers[0])).decode()
        except ValueError as error:
            raise NotebookOutputError(f"the vault sent an image: {error}") from None


def _v4() -> Any:
    # Late: only for whoever runs a notebook.
    import nbformat.v4

    return nbformat.v4
