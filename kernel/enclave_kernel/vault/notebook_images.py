"""Images that a notebook displays, as the pixels they show: what else a file holds stays here."""

import base64
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from enclave_protocol.script_messages import IMAGE_CHANNELS, MAX_IMAGE_BYTES, MAX_IMAGE_SIDE

__all__ = ["IMAGE_TYPES", "ImageTooLargeError", "Pixels", "pixels_of"]

IMAGE_TYPES: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
"""Of a display's representations, those that pixels are taken from, in this order."""


class ImageTooLargeError(Exception):
    """An image has more pixels than may leave."""


@dataclass(frozen=True)
class Pixels:
    """An image: rows from the top, `channels` bytes for each pixel."""

    width: int
    height: int
    channels: Literal[1, 3, 4]
    data: bytes


def pixels_of(bundle: Mapping[str, Any], room_bytes: int) -> Pixels | None:
    """Return the image among an object's representations, None if there is none.

    Args:
        bundle: Contents by MIME type, as IPython makes them.
        room_bytes: Most bytes of pixels.

    Raises:
        ImageTooLargeError: It has more.
        Exception: It is no image, or there is no library to read it with.
    """
    for mime, file_format in IMAGE_TYPES.items():
        contents = bundle.get(mime)
        if contents is None:
            continue
        data = contents if isinstance(contents, bytes) else base64.b64decode(contents)
        return _decode(data, file_format, min(room_bytes, MAX_IMAGE_BYTES))
    return None


def _decode(data: bytes, file_format: str, room_bytes: int) -> Pixels:
    # Late: only whoever made an image has needed the library before.
    pil = importlib.import_module("PIL.Image")
    with pil.open(io.BytesIO(data), formats=[file_format]) as image:
        channels = _channels(image)
        width, height = image.size
        if max(width, height) > MAX_IMAGE_SIDE or width * height * channels > room_bytes:
            raise ImageTooLargeError
        pixels = image.convert(IMAGE_CHANNELS[channels])
        if channels == 4:
            # Nothing travels that is not seen: a pixel without opacity has no colour.
            unseen = pixels.getchannel("A").point(lambda opacity: 0 if opacity else 255)
            pixels.paste((0, 0, 0, 0), mask=unseen)
        return Pixels(width, height, channels, pixels.tobytes())


def _channels(image: Any) -> Literal[1, 3, 4]:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return 4
    return 1 if image.mode in ("1", "L") else 3
