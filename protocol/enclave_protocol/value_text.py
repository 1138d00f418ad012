"""Many texts as two arrays: their bytes one after the other, and where each begins.

Arrow makes and reads these arrays several times faster than Python can, and is used where pandas
has it imported anyway. What travels, and what is refused, is the same without it.

Source: docs/spec/vault_calls.md, "Values".
"""

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from enclave_protocol.value_nodes import ValueRefusedError

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

_FEW: Final = 1000
"""Below that, Arrow is not faster."""

__all__ = ["decode_offsets", "decode_texts", "encode_texts", "offsets_of"]


def offsets_of(lengths: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return where parts of these lengths begin when put together, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def encode_texts(encoder: "Encoder", texts: list[str]) -> list[object]:
    """Return the nodes of `texts`, all of them exactly `str`.

    Raises:
        ValueRefusedError: One has a lone surrogate, or a limit is exceeded.
    """
    arrow = sys.modules.get("pyarrow")
    try:
        if arrow is not None and len(texts) > _FEW:
            _, where, content = arrow.array(texts, arrow.large_string()).buffers()
            # Cut: Arrow's buffers may have room behind their content.
            offsets = np.frombuffer(where, np.int64)[: len(texts) + 1]
            joined_bytes = np.frombuffer(content or b"", np.uint8)[: offsets[-1]]
            return [encoder.array(offsets), encoder.array(joined_bytes)]
        joined = "".join(texts)
        data = joined.encode()
    except UnicodeEncodeError:
        raise ValueRefusedError("a str with a lone surrogate is no text") from None
    if len(data) == len(joined):
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    else:
        lengths = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
    return [
        encoder.array(offsets_of(lengths)),
        encoder.array(np.frombuffer(data, np.uint8)),
    ]


def decode_offsets(decoder: "Decoder", node: Any, end: int) -> "np.ndarray[Any, Any]":
    """Return offsets that begin at 0, never go back, and end at `end`.

    Raises:
        ValueRefusedError: They are others.
    """
    offsets = decoder.array(node, "i")
    if (
        offsets.dtype != np.int64
        or not offsets.size
        or offsets[0] != 0
        or offsets[-1] != end
        or bool((offsets[1:] < offsets[:-1]).any())
    ):
        raise ValueRefusedError("texts or lists came with offsets that do not fit")
    return offsets


def decode_texts(decoder: "Decoder", nodes: list[Any]) -> "np.ndarray[Any, Any]":
    """Return what `encode_texts` was given, as an array of objects.

    Raises:
        ValueRefusedError: The nodes hold no texts.
    """
    data = decoder.array(nodes[1], "u")
    if data.dtype != np.uint8:
        raise ValueRefusedError("texts came malformed")
    offsets = decode_offsets(decoder, nodes[0], data.size)
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and offsets.size > _FEW:
        buffers = [None, arrow.py_buffer(offsets), arrow.py_buffer(data)]
        array = arrow.Array.from_buffers(arrow.large_string(), offsets.size - 1, buffers)
        try:
            array.validate(full=True)
        except arrow.ArrowInvalid:
            raise ValueRefusedError("texts came that are no text") from None
        return np.asarray(array.to_numpy(zero_copy_only=False))
    result = np.empty(offsets.size - 1, object)
    result[:] = _cut(data, offsets.tolist())
    return result


def _cut(data: "np.ndarray[Any, Any]", ends: list[int]) -> list[str]:
    try:
        text = str(data.data, "utf-8")
        if len(text) == data.size:
            return [text[start:end] for start, end in pairwise(ends)]
        raw = data.tobytes()
        return [str(raw[start:end], "utf-8") for start, end in pairwise(ends)]
    except UnicodeDecodeError:
        raise ValueRefusedError("texts came that are no text") from None
