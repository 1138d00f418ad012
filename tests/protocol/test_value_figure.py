"""A figure crosses as its pixels, and nothing that it was drawn from does."""

import numpy as np
import pytest

from enclave_protocol.value_codec import ValueRefusedError, decode_value, encode_value

matplotlib = pytest.importorskip("matplotlib")
image_module = pytest.importorskip("PIL.Image")


def _figure() -> object:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=100)
    axes = figure.subplots()
    axes.plot([12345.678, 1], label="secret label")
    axes.set_title("a title")
    return figure


def test_it_arrives_as_an_image() -> None:
    figure = _figure()
    encoded = encode_value({"plot": figure})
    image = decode_value(encoded.header, encoded.buffers)["plot"]
    assert type(image) is image_module.Image
    assert (image.mode, image.size) == ("RGBA", (200, 100))
    pixels = np.asarray(image)
    assert pixels[..., :3].min() < 100
    assert pixels[..., :3].max() == 255
    assert image._repr_png_().startswith(b"\x89PNG")


def test_what_it_was_drawn_from_stays() -> None:
    encoded = encode_value(_figure())
    sent = encoded.header + b"".join(bytes(buffer) for buffer in encoded.buffers)
    assert b"secret label" not in sent
    assert np.float64(12345.678).tobytes() not in sent


def test_other_parts_of_a_figure_are_refused() -> None:
    from matplotlib.figure import Figure

    with pytest.raises(ValueRefusedError):
        encode_value(Figure().subplots())
    with pytest.raises(ValueRefusedError):
        encode_value(type("Mine", (Figure,), {})())
