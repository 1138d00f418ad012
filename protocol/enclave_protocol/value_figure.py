"""Matplotlib figures as what one sees of them: they arrive as PIL images.

A figure holds the data it was drawn from, titles of the owner's and all; pixels do not.

Source: docs/spec/vault_calls.md, "Libraries"; THREATS O-03.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from enclave_protocol.value_nodes import Tag
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_encoder import Encoder

__all__ = ["encoders_of"]


def _encode(encoder: "Encoder", figure: Any, _depth: int) -> object:
    encoder.charge(Cost.IMAGE)
    # A canvas of its own: whatever window or file format the figure was made for is left alone.
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    previous = figure.canvas
    try:
        canvas = agg.FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba(), np.uint8)
    finally:
        figure.set_canvas(previous)
    height, width, _ = pixels.shape
    return [Tag.IMAGE, "RGBA", [width, height], encoder.array(pixels.reshape(-1)), None]


def encoders_of(_matplotlib: Any) -> Mapping[type, Any]:
    """Return what encodes the types of the imported matplotlib."""
    return {importlib.import_module("matplotlib.figure").Figure: _encode}
