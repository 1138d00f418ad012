"""torch tensors in the CPU's memory: their elements, without gradients, hooks or storage.

Source: docs/spec/vault_calls.md, "Libraries".
"""

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from enclave_protocol.value_nodes import Tag, ValueRefusedError
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "encoders_of"]

_MAX_DIMENSIONS: Final = 32
_DTYPES: Final = frozenset(
    (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
)


def _encode(encoder: "Encoder", tensor: Any, _depth: int) -> object:
    torch = sys.modules["torch"]
    encoder.charge(Cost.TENSOR)
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise ValueRefusedError("a tensor must be dense and in the CPU's memory: call .cpu()")
    plain = tensor.detach().resolve_conj().resolve_neg()
    if name == "bfloat16":
        # numpy has no such type: its bits travel.
        plain = plain.contiguous().view(torch.int16)
    elif name not in _DTYPES:
        raise ValueRefusedError(f"a tensor of dtype {name} cannot cross: convert it")
    return [Tag.TENSOR, name == "bfloat16", encoder.array(plain.numpy())]


def _decode(decoder: "Decoder", node: Any, _depth: int) -> Any:
    torch = importlib.import_module("torch")
    _, is_bfloat, part = node
    decoder.charge(Cost.TENSOR)
    if type(part) is not list or len(part) != 4 or type(part[3]) is not list:
        raise ValueRefusedError("a tensor came malformed")
    dimensions = min(len(part[3]), _MAX_DIMENSIONS)
    array = decoder.array(part, "i" if is_bfloat is True else "biufc", dimensions=dimensions)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if is_bfloat is True else tensor


def encoders_of(torch: Any) -> Mapping[type, Any]:
    """Return what encodes the types of the imported torch."""
    return {torch.Tensor: _encode, torch.nn.Parameter: _encode}


DECODERS: Final[Mapping[tuple[int, int], Any]] = {(Tag.TENSOR, 3): _decode}
