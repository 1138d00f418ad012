"""What a notebook's cell shows, collected until the cell is at its end: text and pixels, bounded.

Source: docs/spec/scripts.md, "Notebooks"; THREATS, O-01 to O-04.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from enclave_kernel.vault.notebook_images import ImageTooLargeError, Pixels, pixels_of
from enclave_protocol.output_text import output_text
from enclave_protocol.script_messages import (
    MAX_CELL_OUTPUTS,
    MAX_CELLS,
    MAX_NOTEBOOK_CHARS,
    MAX_NOTEBOOK_IMAGE_BYTES,
    MAX_NOTEBOOK_OUTPUTS,
    MAX_OUTPUT_CHARS,
    CellOutput,
)

__all__ = ["NotebookOutputs"]

_NOTE_CHARS: Final = 100
"""Room for a note on what was left out; each cell has one."""
_MAX_OUTPUTS: Final = MAX_CELL_OUTPUTS // 2
"""Of a cell; a long stream becomes several of those that travel."""
_Kind = Literal["display_data", "execute_result"]


class _Stream:
    def __init__(self) -> None:
        self.text = io.StringIO()


class _Shown:
    def __init__(self, kind: _Kind, text: str, pixels: Pixels | None, display_id: object) -> None:
        self.kind: _Kind = kind
        self.text = text
        self.pixels = pixels
        self.display_id = display_id


class NotebookOutputs:
    """Collects the outputs of one cell after the other.

    Code of the package's may print from threads of its own: nothing here takes a lock.

    Args:
        shown: The script's policy lets the user see text; otherwise nothing is kept.
        hidden: Taken out of all text: where the vault keeps the workspace's files.

    Attributes:
        bytes_taken: Of all that `take` returned, text as UTF-8.
    """

    def __init__(self, *, shown: bool, hidden: str) -> None:
        self._shown = shown
        self._hidden = hidden
        self._chars = MAX_NOTEBOOK_CHARS - _NOTE_CHARS * MAX_CELLS
        self._pixel_bytes = MAX_NOTEBOOK_IMAGE_BYTES
        self._most_outputs = MAX_NOTEBOOK_OUTPUTS - MAX_CELLS
        self.bytes_taken = 0
        self._forget()

    def _forget(self) -> None:
        self._outputs: list[_Stream | _Shown] = []
        self._held_chars = 0
        self._held_pixels = 0
        self._left_out = 0
        self._clear_next = False

    def write(self, text: str) -> None:
        """Take what is printed; what is too much is dropped, and counted."""
        if not self._shown or not text:
            return
        self._clear_waiting()
        text = self._fitting(text, self._chars - self._held_chars)
        last = self._outputs[-1] if self._outputs else None
        if not isinstance(last, _Stream):
            if len(self._outputs) >= _MAX_OUTPUTS:
                self._left_out += len(text)
                return
            last = _Stream()
            self._outputs.append(last)
        last.text.write(text)
        self._held_chars += len(text)

    def show(
        self, kind: _Kind, bundle: Mapping[str, Any], display_id: object, *, update: bool = False
    ) -> None:
        """Take what is displayed: its plain text and its image, and nothing else of it.

        Args:
            kind: As notebooks have it.
            bundle: Contents by MIME type, as IPython makes them.
            display_id: Of a display that can be replaced, None for others.
            update: Replace the cell's display of this id.
        """
        if not self._shown:
            return
        self._clear_waiting()
        text = bundle.get("text/plain")
        text = str.__str__(text) if isinstance(text, str) else ""
        try:
            pixels = pixels_of(bundle, self._pixel_bytes - self._held_pixels)
        except ImageTooLargeError:
            pixels, text = None, f"[an image is left out: too large] {text}"
        except Exception:
            pixels, text = None, f"[an image is left out: not readable] {text}"
        text = self._shortened(text)
        if not text and pixels is None:
            return
        self._held_chars += len(text)
        self._held_pixels += 0 if pixels is None else len(pixels.data)
        output = _Shown(kind, text, pixels, display_id)
        if update:
            for index, other in enumerate(self._outputs):
                if isinstance(other, _Shown) and other.display_id == display_id is not None:
                    output.kind = other.kind
                    self._outputs[index] = output
        elif len(self._outputs) < _MAX_OUTPUTS:
            self._outputs.append(output)
        else:
            self._left_out += len(text)

    def clear(self, *, wait: bool) -> None:
        """Forget what the cell showed, at once or when it shows something else."""
        if wait:
            self._clear_next = True
        else:
            self._forget()

    def take(self) -> list[tuple[CellOutput, tuple[memoryview, ...]]]:
        """Return the cell's outputs with their pixels; the next ones are another cell's."""
        outputs, left_out = self._outputs, self._left_out
        self._forget()
        taken: list[tuple[CellOutput, tuple[memoryview, ...]]] = []
        for message, buffers in self._messages(outputs):
            # Threads of the package's may have miscounted, and this is what counts.
            if len(message.text) > self._chars or len(taken) >= self._most_outputs:
                left_out += len(message.text)
                continue
            self._chars -= len(message.text)
            taken.append((message, buffers))
        self._most_outputs -= len(taken)
        if left_out:
            note = f"\n[{left_out} characters of output left out: too much]\n"
            taken.append((CellOutput("stream", note), ()))
        for message, buffers in taken:
            pixel_bytes = sum(map(len, buffers))
            self._pixel_bytes -= pixel_bytes
            self.bytes_taken += len(message.text.encode()) + pixel_bytes
        return taken

    def _messages(
        self, outputs: list[_Stream | _Shown]
    ) -> Iterator[tuple[CellOutput, tuple[memoryview, ...]]]:
        for output in outputs:
            if isinstance(output, _Shown):
                yield self._taken(output)
                continue
            text = self._clean(output.text.getvalue())
            for start in range(0, len(text), MAX_OUTPUT_CHARS):
                yield CellOutput("stream", text[start : start + MAX_OUTPUT_CHARS]), ()

    def _taken(self, output: _Shown) -> tuple[CellOutput, tuple[memoryview, ...]]:
        text, pixels = self._clean(output.text), output.pixels
        if pixels is None:
            return CellOutput(output.kind, text), ()
        size = (pixels.width, pixels.height, pixels.channels)
        return CellOutput(output.kind, text, size), (memoryview(pixels.data),)

    def _clean(self, text: str) -> str:
        return output_text(text.replace(self._hidden, ""))

    def _shortened(self, text: str) -> str:
        most = min(MAX_OUTPUT_CHARS, self._chars - self._held_chars)
        if len(text) <= most:
            return text
        kept = text[: max(0, most - _NOTE_CHARS)]
        left_out = len(text) - len(kept)
        if kept:
            return f"{kept}\n[{left_out} characters left out]"
        self._left_out += left_out
        return ""

    def _fitting(self, text: str, room: int) -> str:
        if len(text) > room:
            self._left_out += len(text) - max(0, room)
            return text[: max(0, room)]
        return text

    def _clear_waiting(self) -> None:
        if self._clear_next:
            self._forget()
