"""What a cell shows, against limits; what it shows in a real vault is in test_notebook_runs."""

import pytest

from enclave_kernel.vault.notebook_images import ImageTooLargeError, pixels_of
from enclave_kernel.vault.notebook_outputs import NotebookOutputs
from enclave_protocol.script_messages import (
    MAX_CELL_OUTPUTS,
    MAX_CELLS,
    MAX_NOTEBOOK_CHARS,
    MAX_NOTEBOOK_OUTPUTS,
    MAX_OUTPUT_CHARS,
    CellOutput,
)


def _texts(outputs: NotebookOutputs) -> list[tuple[str, str]]:
    return [(message.kind, message.text) for message, _ in outputs.take()]


@pytest.fixture
def outputs() -> NotebookOutputs:
    return NotebookOutputs(shown=True, hidden="/vault-1/workspace")


def test_order_updates_and_clearing(outputs: NotebookOutputs) -> None:
    outputs.write("a")
    outputs.write("b\x1b[1m /vault-1/workspace/x")
    outputs.show("display_data", {"text/plain": "one"}, "id")
    outputs.write("c")
    outputs.show("display_data", {"text/plain": "two"}, "id", update=True)
    outputs.show("display_data", {"text/plain": "lost"}, "other", update=True)
    outputs.show("execute_result", {"text/html": "<b>"}, None)
    assert _texts(outputs) == [("stream", "ab /x"), ("display_data", "two"), ("stream", "c")]
    assert outputs.take() == []
    outputs.write("gone")
    outputs.clear(wait=False)
    outputs.write("kept")
    outputs.clear(wait=True)
    outputs.write("last")
    outputs.clear(wait=True)
    assert _texts(outputs) == [("stream", "last")]


def test_nothing_is_kept_without_text_in_the_policy() -> None:
    outputs = NotebookOutputs(shown=False, hidden="/x")
    outputs.write("text")
    outputs.show("execute_result", {"text/plain": "x"}, None)
    assert outputs.take() == []


def test_a_text_subclass_runs_no_code_of_its_own(outputs: NotebookOutputs) -> None:
    class Loud(str):
        def __str__(self) -> str:
            raise AssertionError

        def replace(self, *_: object) -> str:
            raise AssertionError

    outputs.show("execute_result", {"text/plain": Loud("x")}, None)
    assert _texts(outputs) == [("execute_result", "x")]


def test_limits_hold_over_cells(outputs: NotebookOutputs) -> None:
    total = 0
    for _ in range(3):
        outputs.write("x" * (MAX_NOTEBOOK_CHARS // 2))
        outputs.show("display_data", {"text/plain": "y" * (2 * MAX_OUTPUT_CHARS)}, None)
        for _ in range(MAX_CELL_OUTPUTS):
            outputs.show("display_data", {"text/plain": "z"}, None)
        taken = [message for message, _ in outputs.take()]
        assert len(taken) <= MAX_CELL_OUTPUTS
        assert all(len(message.text) <= MAX_OUTPUT_CHARS for message in taken)
        total += sum(len(message.text) for message in taken)
        assert "left out: too much" in taken[-1].text
    assert total <= MAX_NOTEBOOK_CHARS
    assert outputs.bytes_taken == total


def test_outputs_of_all_cells_are_limited(outputs: NotebookOutputs) -> None:
    taken = []
    for _ in range(100):
        for _ in range(MAX_CELL_OUTPUTS // 2):
            outputs.show("display_data", {"text/plain": "x"}, None)
        taken.append([message.text for message, _ in outputs.take()])
    assert sum(map(len, taken)) <= MAX_NOTEBOOK_OUTPUTS - MAX_CELLS + 100
    assert taken[0] == ["x"] * (MAX_CELL_OUTPUTS // 2)
    assert taken[-1] == ["\n[500 characters of output left out: too much]\n"]


def test_what_is_not_seen_of_an_image_stays() -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = pil.new("RGBA", (3, 1))
    for place, opacity in enumerate((0, 1, 255)):
        image.putpixel((place, 0), (10, 20, 30, opacity))
    found = pixels_of({"image/png": image._repr_png_()}, 2**20)
    assert found is not None
    assert found.data == bytes((0, 0, 0, 0, 10, 20, 30, 1, 10, 20, 30, 255))


def test_pixels_are_counted_before_they_are_decoded() -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = pil.new("RGB", (100, 10), (1, 2, 3))
    bundle = {"image/png": image._repr_png_()}
    found = pixels_of(bundle, 3000)
    assert found is not None
    assert (found.width, found.height, found.channels) == (100, 10, 3)
    assert found.data == image.tobytes()
    with pytest.raises(ImageTooLargeError):
        pixels_of(bundle, 2999)
    palette = image.convert("P")
    palette.info["transparency"] = 0
    found = pixels_of({"image/png": palette._repr_png_()}, 2**20)
    assert found is not None and found.channels == 4
    assert pixels_of({"image/svg+xml": "<svg>"}, 2**20) is None


def test_an_image_that_is_too_large_is_said(outputs: NotebookOutputs) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    data = pil.new("L", (8200, 8200))._repr_png_()
    outputs.show("display_data", {"image/png": data, "text/plain": "<image>"}, None)
    message, buffers = outputs.take()[0]
    assert message == CellOutput("display_data", "[an image is left out: too large] <image>")
    assert buffers == ()
