"""Plain values as bytes: what may cross the boundary between a notebook and a vault.

Data only, by exact type: no subclass, no pickle, no fallback to `repr`. Everything that is not a
msgpack scalar is an array `[tag, ...]`, so no value of a user's can be mistaken for structure.
Large contents travel beside the header as raw buffers. No I/O, and no policy: who may send what
to whom is the dispatcher's to decide.

Source: docs/spec/vault_calls.md, "Values".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from enclave_protocol.value_decoder import Decoder
from enclave_protocol.value_encoder import Encoder, pack
from enclave_protocol.value_limits import DEFAULT_LIMITS, CodecLimits
from enclave_protocol.value_nodes import (
    EncodedValue,
    Handle,
    ValueRefusedError,
)

__all__ = [
    "DEFAULT_LIMITS",
    "CodecLimits",
    "EncodedValue",
    "Handle",
    "ValueRefusedError",
    "decode_arguments",
    "decode_value",
    "encode_arguments",
    "encode_value",
]


def encode_value(
    value: object,
    *,
    handle_of: Callable[[object], Handle | None] | None = None,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> EncodedValue:
    """Return `value` as bytes.

    Args:
        value: Plain data; arrays may have any strides and byte order, only their elements travel.
        handle_of: Asked about every object of another type; returns None to refuse it.
        limits: Limits in items and bytes.

    Raises:
        ValueRefusedError: Some part is of another type, or a limit is exceeded; names the part.
    """
    encoder = Encoder(limits, handle_of)
    return encoder.finish(encoder.node(value, 0))


def encode_arguments(
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    names: Sequence[str] = (),
    limits: CodecLimits = DEFAULT_LIMITS,
) -> EncodedValue:
    """Return a call's arguments as bytes.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        names: Names of the positional parameters, for messages only.
        limits: Limits in items and bytes.

    Raises:
        ValueRefusedError: An argument cannot travel; the message names it.
    """
    if not args and not kwargs:
        return _NO_ARGUMENTS
    encoder = Encoder(limits, None)
    encoder.charge(len(args) + 2 * len(kwargs))
    nodes: list[object] = []
    for index, value in enumerate(args):
        try:
            nodes.append(encoder.node(value, 0))
        except ValueRefusedError as refusal:
            label = repr(names[index]) if index < len(names) else str(index + 1)
            raise refusal.inside(f"argument {label}") from None
    keywords: list[object] = []
    for name, value in kwargs.items():
        try:
            keywords.append(encoder.node(value, 0))
        except ValueRefusedError as refusal:
            raise refusal.inside(f"argument {name!r}") from None
    return encoder.finish([nodes, list(kwargs), keywords])


def decode_value(
    header: bytes,
    buffers: Sequence[memoryview],
    *,
    resolve: Callable[[Handle], object] | None = None,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> Any:
    """Return the value that `encode_value` made these bytes of.

    Args:
        header: msgpack as received.
        buffers: As received. A writable one becomes the memory of its array and must be the
            receiver's own; a read-only one is copied.
        resolve: Turns a handle into an object; without it handles are refused.
        limits: Limits in items and bytes.

    Raises:
        ValueRefusedError: The bytes are no value, or exceed a limit.
    """
    decoder = Decoder(limits, buffers, resolve)
    value = decoder.value(decoder.open(header), 0)
    decoder.finish()
    return value


def decode_arguments(
    header: bytes,
    buffers: Sequence[memoryview],
    *,
    limits: CodecLimits = DEFAULT_LIMITS,
) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments that `encode_arguments` made these bytes of.

    Handles are refused: nothing in a signature declares a parameter that takes one.

    Raises:
        ValueRefusedError: The bytes are no arguments, or exceed a limit.
    """
    if header == _NO_ARGUMENTS.header and not buffers:
        return [], {}
    decoder = Decoder(limits, buffers, None)
    node = decoder.open(header)
    if type(node) is not list or len(node) != 3 or any(type(part) is not list for part in node):
        raise ValueRefusedError("the bytes hold no arguments")
    nodes, names, keywords = (decoder.enter(part, 0) for part in node)
    if any(type(name) is not str for name in names) or not (
        len(set(names)) == len(names) == len(keywords)
    ):
        raise ValueRefusedError("the bytes hold no keyword arguments")
    args = [decoder.value(part, 0) for part in nodes]
    kwargs = dict(zip(names, [decoder.value(part, 0) for part in keywords], strict=True))
    decoder.finish()
    return args, kwargs


_NO_ARGUMENTS: Final = EncodedValue(pack([[], [], []]), ())
