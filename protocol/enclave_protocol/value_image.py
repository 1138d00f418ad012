"""PIL images as their pixels and palette; what else a file had with it (EXIF, text) stays behind.

Source: docs/spec/vault_calls.md, "Libraries".
"""

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from enclave_protocol.value_nodes import Tag, ValueRefusedError
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "encode_file_image", "encoders_of"]

# Bytes for each pixel. Modes with a byte that is not shown (RGBX) are left out; "1" is 8 to a byte.
_MODES: Final = {
    "1": 0,
    **dict.fromkeys(("L", "P"), 1),
    **dict.fromkeys(("LA", "PA", "I;16"), 2),
    **dict.fromkeys(("RGB", "YCbCr", "LAB", "HSV"), 3),
    **dict.fromkeys(("RGBA", "CMYK", "I", "F"), 4),
}
_MAX_SIDE: Final = 2**24
_PALETTE_MODES: Final = {"RGB": 3, "RGBA": 4}


def _encode(encoder: "Encoder", image: Any, _depth: int) -> object:
    encoder.charge(Cost.IMAGE)
    image.load()
    if image.mode not in _MODES:
        raise ValueRefusedError(
            f"an image of mode {image.mode[:20]!r} cannot cross into or out of an encrypted "
            f"package; accepted are {', '.join(_MODES)}"
        )
    if not image.width or not image.height:
        raise ValueRefusedError("an image without pixels cannot cross")
    palette = None
    if image.mode in ("P", "PA"):
        palette = [image.palette.mode, _used_palette(image)]
    pixels = encoder.array(np.frombuffer(image.tobytes(), np.uint8))
    return [Tag.IMAGE, image.mode, [image.width, image.height], pixels, palette]


def _used_palette(image: Any) -> bytes:
    """Return the palette with zeros for the colours that no pixel has."""
    mode = image.palette.mode
    width = _PALETTE_MODES.get(mode)
    if width is None:
        raise ValueRefusedError(f"an image with a palette of mode {str(mode)[:20]!r}: convert it")
    colours = np.array(image.getpalette(mode), np.uint8).reshape(-1, width)
    used = np.array(image.histogram()[:256]) > 0
    colours[~used[: len(colours)]] = 0
    return colours.tobytes()


def _decode(decoder: "Decoder", node: Any, _depth: int) -> Any:
    pil = importlib.import_module("PIL.Image")
    _, mode, size, pixels, palette = node
    decoder.charge(Cost.IMAGE)
    if (
        type(mode) is not str
        or mode not in _MODES
        or type(size) is not list
        or len(size) != 2
        # Not 0 either: PIL takes memory for each row, also where there is nothing in it.
        or any(type(side) is not int or not 0 < side <= _MAX_SIDE for side in size)
        or (palette is not None) != (mode in ("P", "PA"))
    ):
        raise ValueRefusedError("an image came malformed")
    width, height = size
    data = decoder.array(pixels, "u")
    row = (width + 7) // 8 if mode == "1" else width * _MODES[mode]
    if data.dtype != np.uint8 or data.size != row * height:
        raise ValueRefusedError("an image came with pixels that do not fit its size")
    image = pil.frombytes(mode, (width, height), data.tobytes())
    if palette is not None:
        kind, colours = palette
        if kind not in _PALETTE_MODES or type(colours) is not bytes:
            raise ValueRefusedError("an image came with a malformed palette")
        if len(colours) % _PALETTE_MODES[kind] or len(colours) > 256 * _PALETTE_MODES[kind]:
            raise ValueRefusedError("an image came with a malformed palette")
        image.putpalette(colours, kind)
    return image


def encode_file_image(kind: type) -> Any:
    """Return what encodes an image as opened from a file: exactly one of PIL's own classes."""
    image = sys.modules.get("PIL.Image")
    home = sys.modules.get(kind.__module__)
    if image is None or getattr(home, kind.__qualname__, None) is not kind:
        return None
    return _encode if image.Image in kind.__mro__ else None


def encoders_of(_pil: Any) -> Mapping[type, Any]:
    """Return what encodes the types of the imported PIL."""
    return {importlib.import_module("PIL.Image").Image: _encode}


DECODERS: Final[Mapping[tuple[int, int], Any]] = {(Tag.IMAGE, 5): _decode}
