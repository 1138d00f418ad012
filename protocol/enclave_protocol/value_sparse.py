"""SciPy's sparse matrices and arrays: csr, csc, bsr, coo and dia, with their used entries only.

Source: docs/spec/vault_calls.md, "Libraries".
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from enclave_protocol.value_nodes import Tag, ValueRefusedError
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "encoders_of"]

_COMPRESSED: Final = ("csr", "csc", "bsr")
_FORMATS: Final = (*_COMPRESSED, "coo", "dia")
_MAX_SIDE: Final = 2**48


def _encode(encoder: "Encoder", value: Any, _depth: int) -> object:
    encoder.charge(Cost.SPARSE)
    kind = value.format
    if len(value.shape) != 2:
        raise ValueRefusedError("a sparse array must have two dimensions")
    if kind in _COMPRESSED:
        # What follows the last entry is spare room of SciPy's, with whatever was there.
        used = int(value.indptr[-1])
        parts = [value.data[:used], value.indices[:used], value.indptr]
    elif kind == "coo":
        parts = [value.data, value.row, value.col]
    else:
        parts = [_inside(value), value.offsets]
    is_array = type(value).__name__.endswith("_array")
    shape = [int(side) for side in value.shape]
    return [Tag.SPARSE, kind, is_array, shape, [encoder.array(part) for part in parts]]


def _inside(value: Any) -> "np.ndarray[Any, Any]":
    """Return the diagonals of a dia matrix with zeros where they are outside of it."""
    rows, columns = value.shape
    data = value.data[:, :columns].copy()
    places = np.arange(data.shape[1]) - value.offsets[:, None]
    data[(places < 0) | (places >= rows)] = 0
    return np.asarray(data)


def _decode(decoder: "Decoder", node: Any, _depth: int) -> Any:
    sparse = importlib.import_module("scipy.sparse")
    _, kind, is_array, shape, nodes = node
    decoder.charge(Cost.SPARSE)
    if (
        kind not in _FORMATS
        or type(is_array) is not bool
        or type(shape) is not list
        or len(shape) != 2
        or any(type(side) is not int or not 0 <= side <= _MAX_SIDE for side in shape)
        or type(nodes) is not list
        or len(nodes) != (2 if kind == "dia" else 3)
    ):
        raise ValueRefusedError("a sparse matrix came malformed")
    dimensions = {"bsr": 3, "dia": 2}.get(kind, 1)
    data = decoder.array(nodes[0], "biufc", dimensions=dimensions)
    places = [decoder.array(part, "i") for part in nodes[1:]]
    make = getattr(sparse, f"{kind}_{'array' if is_array else 'matrix'}")
    if kind == "coo":
        # Its own check is only of the largest and the smallest place; that is all there is.
        return make((data, (places[0], places[1])), shape=tuple(shape))
    matrix = make((data, *places), shape=tuple(shape))
    if kind in _COMPRESSED:
        matrix.check_format(full_check=True)
        if int(matrix.indptr[-1]) != len(matrix.indices):
            raise ValueRefusedError("a sparse matrix came with entries that it does not use")
    return matrix


def encoders_of(_scipy: Any) -> Mapping[type, Any]:
    """Return what encodes the types of SciPy's sparse matrices."""
    sparse = importlib.import_module("scipy.sparse")
    return {
        getattr(sparse, f"{kind}_{form}"): _encode
        for kind in _FORMATS
        for form in ("array", "matrix")
    }


DECODERS: Final[Mapping[tuple[int, int], Any]] = {(Tag.SPARSE, 5): _decode}
