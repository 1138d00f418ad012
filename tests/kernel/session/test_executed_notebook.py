"""A notebook's outputs from hostile vaults."""

import base64
import io
import os

import pytest

from enclave_kernel.session.executed_notebook import ExecutedNotebook, NotebookOutputError
from enclave_kernel.session.png_pixels import encode_png
from enclave_protocol.script_messages import (
    MAX_CELL_OUTPUTS,
    MAX_CELLS,
    MAX_NOTEBOOK_OUTPUTS,
    MAX_OUTPUT_CHARS,
    CellEnded,
    CellOutput,
)
from tests.support.notebook_source import read_executed, shown_text


@pytest.fixture
def notebook() -> ExecutedNotebook:
    return ExecutedNotebook("output/report.ipynb")


def _stream(text: str) -> CellOutput:
    return CellOutput("stream", text)


def test_outputs_become_a_notebook(notebook: ExecutedNotebook) -> None:
    pixels = memoryview(bytes(range(12)))
    notebook.add(_stream("a\x1b[31mb\r\n"), ())
    notebook.add(_stream("c\u202e<script>"), ())
    notebook.add(CellOutput("execute_result", "two\x1b]52;c;x\x07", (2, 2, 3)), (pixels,))
    notebook.add(CellOutput("display_data", ""), ())
    notebook.add(CellEnded(7), ())
    notebook.add(CellEnded(None), ())
    executed = read_executed(notebook.encode(ValueError("why\x1b[0m\nnot")))
    stream, result = executed.cells[0].outputs
    assert (stream.name, stream.text) == ("stdout", "ab\nc<script>")
    assert result.data["text/plain"] == "two"
    assert result.execution_count == executed.cells[0].execution_count == 7
    assert executed.cells[1].execution_count is None
    assert shown_text(executed)[1] == "ValueError: why [0m not"
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with image.open(io.BytesIO(base64.b64decode(result.data["image/png"]))) as shown:
        assert (shown.mode, shown.size, shown.tobytes()) == ("RGB", (2, 2), bytes(pixels))


def test_an_error_before_the_first_cell(notebook: ExecutedNotebook) -> None:
    assert shown_text(read_executed(notebook.encode(OSError("x")))) == ["OSError: x"]


@pytest.mark.parametrize(
    ("message", "buffers"),
    [
        (CellOutput("stream", "", (1, 1, 1)), (memoryview(b"1"),)),
        (CellOutput("stream", ""), (memoryview(b"1"),)),
        (CellOutput("display_data", ""), (memoryview(b"1"),)),
        (CellOutput("display_data", "", (1, 1, 1)), ()),
        (CellOutput("display_data", "", (1, 1, 1)), (memoryview(b"12"),)),
        (CellOutput("display_data", "", (32768, 32768, 4)), (memoryview(b"1"),)),
        (CellOutput("display_data", "", (1, 1, 1)), (memoryview(b"1"), memoryview(b"1"))),
        (CellEnded(1), (memoryview(b"1"),)),
    ],
)
def test_what_does_not_fit_together(
    notebook: ExecutedNotebook, message: CellOutput | CellEnded, buffers: tuple[memoryview, ...]
) -> None:
    with pytest.raises(NotebookOutputError):
        notebook.add(message, buffers)


@pytest.mark.parametrize("text", ["x", ""])
def test_too_many_outputs(notebook: ExecutedNotebook, text: str) -> None:
    for _ in range(MAX_CELL_OUTPUTS):
        notebook.add(CellOutput("display_data", text), ())
    with pytest.raises(NotebookOutputError, match="a cell of the notebook has more than"):
        notebook.add(CellOutput("display_data", text), ())


def test_too_many_outputs_of_all_cells(notebook: ExecutedNotebook) -> None:
    for number in range(MAX_NOTEBOOK_OUTPUTS):
        notebook.add(CellOutput("display_data", "x"), ())
        if number % 10 == 9:
            notebook.add(CellEnded(1), ())
    with pytest.raises(NotebookOutputError, match="the notebook has more than"):
        notebook.add(CellOutput("display_data", "x"), ())


def test_images_that_make_too_large_a_file_are_left_out() -> None:
    notebook = ExecutedNotebook("output/report.ipynb", file_image_bytes=3 * 2**19)
    pixels = memoryview(os.urandom(2**19))
    for _ in range(4):
        notebook.add(CellOutput("display_data", "<image>", (1024, 512, 1)), (pixels,))
    outputs = notebook.add(CellEnded(1), ())
    assert ["image/png" in output["data"] for output in outputs] == [True, True, False, False]
    assert outputs[3]["data"] == {"text/plain": "[an image is left out: too many] <image>"}


def test_outputs_are_returned_when_their_cell_has_ended(notebook: ExecutedNotebook) -> None:
    assert notebook.add(_stream("a\x1b[2J"), ()) == ()
    assert notebook.add(CellOutput("execute_result", "b"), ()) == ()
    stream, result = notebook.add(CellEnded(3), ())
    assert (stream["text"], result["data"], result["execution_count"]) == (
        "a",
        {"text/plain": "b"},
        3,
    )
    assert notebook.add(CellEnded(4), ()) == ()


def test_too_much_text(notebook: ExecutedNotebook) -> None:
    with pytest.raises(NotebookOutputError, match="characters"):
        for _ in range(100):
            notebook.add(_stream("x" * MAX_OUTPUT_CHARS), ())
            notebook.add(CellEnded(1), ())


def test_too_many_cells(notebook: ExecutedNotebook) -> None:
    with pytest.raises(NotebookOutputError, match="cells"):
        for _ in range(MAX_CELLS + 1):
            notebook.add(CellEnded(None), ())


def test_too_many_pixels(notebook: ExecutedNotebook) -> None:
    pixels = memoryview(bytes(64 * 2**20))
    with pytest.raises(NotebookOutputError, match="images have more"):
        for _ in range(9):
            notebook.add(CellOutput("display_data", "", (8192, 8192, 1)), (pixels,))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png(channels: int, mode: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = bytes(n % 251 for n in range(31 * 17 * channels))
    with image.open(io.BytesIO(encode_png(31, 17, channels, pixels))) as shown:
        shown.verify()
    with image.open(io.BytesIO(encode_png(31, 17, channels, pixels))) as shown:
        assert (shown.mode, shown.size, shown.tobytes(), shown.info) == (mode, (31, 17), pixels, {})


@pytest.mark.parametrize("size", [(0, 1, 1), (1, 1, 2), (2, 2, 1), (-1, -5, 1)])
def test_no_png(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        encode_png(*size, b"12345")
