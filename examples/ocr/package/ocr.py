"""Reads the printed text in an image: RapidOCR behind one class and one function.

What crosses the boundary is plain data: an image comes in as a numpy array, and text, confidence
and boxes go out. Paths, URLs and addresses, which RapidOCR would open itself, are refused.
"""

import os
from threading import Lock
from typing import Any

import numpy as np

# Before ONNX Runtime is imported: its wheels report their use to their maker unless told not to
# (onnxruntime 1.32, Privacy.md, "Disabling Telemetry").
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from rapidocr import RapidOCR

__all__ = ["Reader", "read_text"]

# RapidOCR scales larger images down to 2000 pixels a side anyway; this bounds what it copies first.
_MAX_SIDE = 20_000
# Smaller images are scaled up to this many pixels a side before text is looked for. RapidOCR's own
# 736 costs up to five times as much, and reads small print worse.
_MIN_SIDE = 320


class Reader:
    """An OCR engine that keeps its models loaded between images.

    Args:
        min_confidence: Lines the engine is less sure of are left out; 0 to 1.

    Raises:
        TypeError: `min_confidence` is not a number.
        ValueError: `min_confidence` is outside 0 to 1.
    """

    def __init__(self, *, min_confidence: float = 0.5) -> None:
        if isinstance(min_confidence, bool) or not isinstance(min_confidence, int | float):
            raise TypeError(
                f"min_confidence is a {type(min_confidence).__name__}, expected a float"
            )
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence is {min_confidence}, expected 0 to 1")
        self.min_confidence = float(min_confidence)
        self._engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": self.min_confidence,
                "Det.limit_side_len": _MIN_SIDE,
            }
        )

    def read(self, image: np.ndarray) -> dict[str, Any]:
        """Return the lines of text in `image`, top to bottom.

        Args:
            image: uint8 array, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, at most 20 000
                pixels a side.

        Returns:
            `text`: list of N str; `confidence`: list of N float, 0 to 1; `boxes`: float32 array
            (N, 4, 2), the corners of each line as x, y in pixels of `image`, clockwise from the
            top left. N is 0 where no text was found.

        Raises:
            TypeError: `image` is not a uint8 array.
            ValueError: `image` has another shape.
        """
        found = self._engine(_as_bgr(image))
        # Where nothing was detected or recognised the engine answers with another, emptier type.
        lines = getattr(found, "txts", None)
        if not lines:
            return {"text": [], "confidence": [], "boxes": np.zeros((0, 4, 2), np.float32)}
        return {
            "text": [str(line) for line in lines],
            "confidence": [float(score) for score in found.scores],
            "boxes": np.array(found.boxes, dtype=np.float32),
        }


def read_text(image: np.ndarray) -> str:
    """Return the text in `image`, one line of the page to a line; "" where there is none.

    Takes and refuses what `Reader.read` does.
    """
    return "\n".join(_shared_reader().read(image)["text"])


_shared: list[Reader] = []
_shared_lock = Lock()


def _shared_reader() -> Reader:
    """Return the Reader behind `read_text`, made at its first use: loading takes a second."""
    with _shared_lock:
        if not _shared:
            _shared.append(Reader())
        return _shared[0]


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """Return `image` in the channel order RapidOCR expects of arrays."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image is a {found}, expected a numpy array of uint8")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ValueError(f"image has shape {image.shape}, expected (H, W), (H, W, 3) or (H, W, 4)")
    if not all(0 < side <= _MAX_SIDE for side in image.shape[:2]):
        raise ValueError(f"image has shape {image.shape}, expected 1 to {_MAX_SIDE} pixels a side")
    # With four channels RapidOCR itself takes RGBA and puts a background of good contrast behind.
    if image.ndim == 3 and image.shape[2] == 3:
        image = image[:, :, ::-1]
    return np.ascontiguousarray(image)
