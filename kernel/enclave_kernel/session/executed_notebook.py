"""A notebook that ran in a vault, put together from what came out of it: outputs without sources.

The vault is somebody else's: text is cleaned again, images are made of pixels here, and everything
is counted. Only the types below get into the file, so no HTML and no script can.

Source: docs/spec/scripts.md, "Notebooks"; THREATS, O-03.
"""

import base64
import secrets
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
    MAX_NOTEBOOK_OUTPUTS,
    CellEnded,
    CellOutput,
)

__all__ = ["ExecutedNotebook", "NotebookOutputError"]

Output = dict[str, Any]
"""As nbformat 4 has it."""

_METADATA: Final = {
    "kernelspec": {
        "display_name": "Python 3 (enclave)",
        "language": "python",
        "name": "enclave",
    },
    "language_info": {"name": "python"},
}
_MAX_FILE_IMAGE_BYTES: Final = 128 * 1024 * 1024
"""Of all images as base64: pixels that compress badly would make a file that nothing opens."""


class NotebookOutputError(EnclaveError):
    """What came as a notebook's outputs is none, or more than a notebook may have."""


class ExecutedNotebook:
    """Takes outputs as they come, and becomes a file at the end.

    Args:
        path: Of that file, below the workspace.
        file_image_bytes: Most bytes of its images; further ones are left out.
    """

    def __init__(self, path: str, *, file_image_bytes: int = _MAX_FILE_IMAGE_BYTES) -> None:
        self.path = path
        self._cells: list[dict[str, Any]] = []
        self._outputs: list[Output] = []
        self._cell_messages = 0
        self._messages = 0
        self._chars = MAX_NOTEBOOK_CHARS
        self._image_bytes = MAX_NOTEBOOK_IMAGE_BYTES
        self._file_bytes = file_image_bytes

    def add(
        self, message: CellOutput | CellEnded, buffers: Sequence[memoryview]
    ) -> Sequence[Output]:
        """Take the next message with its pixels.

        Returns:
            The outputs of the cell that ended with it; they are clean, and may be shown.

        Raises:
            NotebookOutputError: A limit is exceeded, or the pixels do not fit.
        """
        if isinstance(message, CellEnded):
            if buffers:
                raise NotebookOutputError("the vault sent pixels that belong to no output")
            return self._end_cell(message.execution_count)
        self._count(message)
        if message.kind == "stream":
            if message.image is not None or buffers:
                raise NotebookOutputError("the vault sent pixels as printed text")
            self._add_text(output_text(message.text))
        else:
            self._add_display(message, buffers)
        return ()

    def encode(self, failure: BaseException | None = None) -> bytes:
        """Return the file's contents: a valid notebook.

        Args:
            failure: What ended it, as the user sees it; shown with its last cell.
        """
        # Late: only for whoever runs a notebook.
        import nbformat

        if failure is not None:
            self._fail(type(failure).__name__, plain_text(str(failure), limit=None))
        contents = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": _METADATA,
            "cells": self._cells,
        }
        # At once: its constructors, which validate each output, take a thousand times as long.
        notebook = nbformat.from_dict(contents)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
        text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        return text.encode()

    def _count(self, message: CellOutput) -> None:
        self._cell_messages += 1
        self._messages += 1
        self._chars -= len(message.text)
        if self._cell_messages > MAX_CELL_OUTPUTS:
            raise NotebookOutputError(
                f"a cell of the notebook has more than {MAX_CELL_OUTPUTS} outputs"
            )
        if self._messages > MAX_NOTEBOOK_OUTPUTS:
            raise NotebookOutputError(f"the notebook has more than {MAX_NOTEBOOK_OUTPUTS} outputs")
        if self._chars < 0:
            raise NotebookOutputError(
                f"the notebook's outputs have more than {MAX_NOTEBOOK_CHARS} characters"
            )

    def _fail(self, name: str, text: str) -> None:
        if not self._cells:
            self._end_cell(None)
        # A traceback would be the owner's code.
        error = {
            "output_type": "error",
            "ename": name,
            "evalue": text,
            "traceback": [f"{name}: {text}"],
        }
        self._cells[-1]["outputs"].append(error)

    def _end_cell(self, execution_count: int | None) -> Sequence[Output]:
        if len(self._cells) >= MAX_CELLS:
            raise NotebookOutputError(f"the notebook has more than {MAX_CELLS} cells")
        ended, self._outputs = self._outputs, []
        self._cell_messages = 0
        for output in ended:
            if output["output_type"] == "execute_result":
                output["execution_count"] = execution_count
        self._cells.append(
            {
                "cell_type": "code",
                # The owner's cell has another.
                "id": secrets.token_hex(8),
                "metadata": {},
                "source": "",
                "execution_count": execution_count,
                "outputs": ended,
            }
        )
        return tuple(ended)

    def _add_text(self, text: str) -> None:
        last = self._outputs[-1] if self._outputs else None
        if last is not None and last["output_type"] == "stream":
            last["text"] += text
        elif text:
            self._outputs.append({"output_type": "stream", "name": "stdout", "text": text})

    def _add_display(self, message: CellOutput, buffers: Sequence[memoryview]) -> None:
        data = {}
        text = output_text(message.text)
        if message.image is not None:
            image = self._png(message.image, buffers)
            self._file_bytes -= len(image)
            if self._file_bytes >= 0:
                data["image/png"] = image
            else:
                text = f"[an image is left out: too many] {text}"
        elif buffers:
            raise NotebookOutputError("the vault sent pixels without an image")
        if text:
            data["text/plain"] = text
        if data:
            self._outputs.append({"output_type": message.kind, "data": data, "metadata": {}})

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
