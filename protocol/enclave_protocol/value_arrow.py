"""Arrow arrays, chunked arrays, tables and record batches: as plain arrays of our own, never IPC.

Only the elements travel: slices are cut out, values under nulls are zeros, dictionaries have their
used entries, metadata is dropped. What arrives is validated by Arrow in full.

Source: docs/spec/vault_calls.md, "Libraries"; THREATS B.6, D-10.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from enclave_protocol.value_nodes import Tag, ValueRefusedError
from enclave_protocol.value_text import decode_offsets, offsets_of
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "decode_array", "encode_array", "encoders_of"]

_MAX_WIDTH: Final = 1 << 20
_MAX_OFFSET_32: Final = 2**31 - 1


@cache
def _fixed_types(pa: Any) -> dict[str, tuple[Any, int]]:
    """Return the types whose elements all have one size, in bytes, by name."""
    units = ("s", "ms", "us", "ns")
    types = [
        *((pa.int8(), 1), (pa.int16(), 2), (pa.int32(), 4), (pa.int64(), 8)),
        *((pa.uint8(), 1), (pa.uint16(), 2), (pa.uint32(), 4), (pa.uint64(), 8)),
        *((pa.float16(), 2), (pa.float32(), 4), (pa.float64(), 8)),
        *((pa.date32(), 4), (pa.date64(), 8)),
        *((pa.time32("s"), 4), (pa.time32("ms"), 4), (pa.time64("us"), 8), (pa.time64("ns"), 8)),
        *((pa.duration(unit), 8) for unit in units),
        *((pa.timestamp(unit), 8) for unit in units),
    ]
    return {str(kind): (kind, width) for kind, width in types}


@cache
def _text_types(pa: Any) -> dict[str, tuple[Any, Any]]:
    """Return the types of texts and bytes with their type of offset, by name."""
    return {
        str(kind): (kind, offset)
        for kind, offset in (
            *((pa.string(), np.int32), (pa.binary(), np.int32)),
            *((pa.large_string(), np.int64), (pa.large_binary(), np.int64)),
        )
    }


def encode_array(encoder: "Encoder", array: Any, depth: int) -> list[object]:
    """Return the node of one Arrow array: kind, parameter, length, nulls, parts.

    Raises:
        ValueRefusedError: Its type cannot cross, or a limit is exceeded.
    """
    pa = importlib.import_module("pyarrow")
    kind = array.type
    length = len(array)
    encoder.enter(1, depth)
    encoder.charge(Cost.ARROW)
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    name = str(kind)
    param: object = None
    if pa.types.is_dictionary(kind):
        name, param = "dictionary", bool(kind.ordered)
        parts = _encode_dictionary(pa, encoder, array, nulls, depth)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        name = "list" if pa.types.is_list(kind) else "large_list"
        lengths = np.diff(array.offsets.to_numpy())
        if nulls is not None:
            lengths[nulls] = 0
        # flatten() leaves out what is in lists that are null or outside the slice.
        child = encode_array(encoder, array.flatten(), depth + 1)
        parts = [encoder.array(offsets_of(lengths)), child]
    elif pa.types.is_fixed_size_list(kind):
        name, param = "fixed_size_list", kind.list_size
        parts = [encode_array(encoder, _full_lists(pa, array, nulls), depth + 1)]
    elif pa.types.is_struct(kind) and kind.num_fields:
        name, param = "struct", [field.name for field in kind]
        # flatten() makes null what is in a null struct.
        parts = [encode_array(encoder, child, depth + 1) for child in array.flatten()]
    elif pa.types.is_null(kind):
        nulls, parts = np.ones(length, bool), []
    elif pa.types.is_boolean(kind):
        parts = [encoder.array(array.fill_null(False).to_numpy(zero_copy_only=False))]
    elif name in _text_types(pa) and kind == _text_types(pa)[name][0]:
        parts = _encode_texts(encoder, array, nulls, _text_types(pa)[name][1])
    else:
        name, param, width = _describe_fixed(pa, kind)
        parts = [encoder.array(_elements(array, width, nulls))]
    mask = None if nulls is None else encoder.array(nulls)
    return [name, param, length, mask, parts]


def _describe_fixed(pa: Any, kind: Any) -> tuple[str, object, int]:
    known = _fixed_types(pa).get(str(kind))
    if known is not None and kind == known[0]:
        return str(kind), None, known[1]
    if pa.types.is_timestamp(kind):
        return "timestamp", [kind.unit, kind.tz], 8
    if pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind):
        width = kind.bit_width // 8
        return f"decimal{kind.bit_width}", [kind.precision, kind.scale], width
    if pa.types.is_fixed_size_binary(kind) and 0 < kind.byte_width <= _MAX_WIDTH:
        return "fixed_size_binary", kind.byte_width, kind.byte_width
    raise ValueRefusedError(
        f"an Arrow array of type {str(kind)[:80]} cannot cross into or out of an encrypted "
        "package; accepted are booleans, numbers, decimals, dates, times, strings, binary, "
        "dictionaries, lists and structs"
    )


def _bytes_of(buffer: Any) -> "np.ndarray[Any, Any]":
    if buffer is None or not buffer.size:
        return np.zeros(0, np.uint8)
    return np.frombuffer(buffer, np.uint8)


def _elements(array: Any, width: int, nulls: Any) -> "np.ndarray[Any, Any]":
    start = array.offset * width
    data = _bytes_of(array.buffers()[1])[start : start + len(array) * width]
    if nulls is not None:
        rows = data.copy().reshape(len(array), width)
        rows[nulls] = 0
        data = rows.reshape(-1)
    return data


def _encode_texts(encoder: "Encoder", array: Any, nulls: Any, offset_type: Any) -> list[object]:
    _, where, content = array.buffers()
    if not len(array) or where is None:
        return [encoder.array(np.zeros(1, np.int64)), encoder.array(np.zeros(0, np.uint8))]
    bounds = np.frombuffer(where, offset_type)[array.offset : array.offset + len(array) + 1]
    data = _bytes_of(content)[int(bounds[0]) : int(bounds[-1])]
    lengths = np.diff(bounds)
    if nulls is not None and lengths[nulls].any():
        data = data[np.repeat(~nulls, lengths)]
        lengths[nulls] = 0
    return [encoder.array(offsets_of(lengths)), encoder.array(data)]


def _encode_dictionary(
    pa: Any, encoder: "Encoder", array: Any, nulls: Any, depth: int
) -> list[object]:
    indices = array.indices.fill_null(0).to_numpy()
    present = np.ones(len(array), bool) if nulls is None else ~nulls
    # Dictionaries may have null entries: is_null() of the array does not see those.
    if array.indices.null_count:
        present &= ~array.indices.is_null().to_numpy(zero_copy_only=False)
    used = np.unique(indices[present])
    codes = np.where(present, np.searchsorted(used, indices), 0).astype(indices.dtype)
    values = encode_array(encoder, array.dictionary.take(pa.array(used)), depth + 1)
    return [encoder.array(codes), values]


def _full_lists(pa: Any, array: Any, nulls: Any) -> Any:
    """Return the elements of all lists of a fixed size, nulls in the lists that are null."""
    if nulls is None:
        return array.flatten()
    size = array.type.list_size
    places = np.zeros((len(array), size), np.int64)
    places[~nulls] = np.arange(int((~nulls).sum()) * size).reshape(-1, size)
    return array.flatten().take(pa.array(places.reshape(-1), mask=np.repeat(nulls, size)))


def decode_array(decoder: "Decoder", node: Any, depth: int) -> Any:
    """Return the Arrow array that `encode_array` made this node of; not yet validated.

    Raises:
        ValueRefusedError: It is none; Arrow's own errors pass through.
    """
    pa = importlib.import_module("pyarrow")
    if type(node) is not list or len(node) != 5 or type(node[0]) is not str:
        raise ValueRefusedError("an Arrow array came malformed")
    name, param, length, mask, parts = node
    decoder.enter([None], depth)
    decoder.charge(Cost.ARROW)
    if type(length) is not int or length < 0 or type(parts) is not list:
        raise ValueRefusedError("an Arrow array came malformed")
    nulls = None if mask is None else decoder.array(mask, "b")
    if nulls is not None and nulls.size != length:
        raise ValueRefusedError("an Arrow array came with nulls that do not fit")
    array = _rebuild(pa, decoder, (name, param, length, nulls, parts), depth)
    if len(array) != length:
        raise ValueRefusedError("an Arrow array came with a length that does not fit")
    return array


def _rebuild(pa: Any, decoder: "Decoder", node: Any, depth: int) -> Any:
    name, param, length, nulls, parts = node
    mask = None if nulls is None else pa.array(nulls)
    if name == "null":
        return pa.nulls(0 if nulls is None else length)
    if name == "bool":
        return pa.array(decoder.array(parts[0], "b"), mask=nulls)
    if name == "dictionary":
        codes = pa.array(decoder.array(parts[0], "iu"), mask=nulls)
        values = decode_array(decoder, parts[1], depth + 1)
        return pa.DictionaryArray.from_arrays(codes, values, ordered=param is True)
    if name in ("list", "large_list"):
        child = decode_array(decoder, parts[1], depth + 1)
        offsets = decode_offsets(decoder, parts[0], len(child))
        if name == "large_list":
            return pa.LargeListArray.from_arrays(pa.array(offsets), child, mask=mask)
        return pa.ListArray.from_arrays(pa.array(_narrow(offsets)), child, mask=mask)
    if name == "fixed_size_list" and type(param) is int and 0 < param <= _MAX_WIDTH:
        child = decode_array(decoder, parts[0], depth + 1)
        return pa.FixedSizeListArray.from_arrays(child, param, mask=mask)
    if name == "struct" and len(_names(param)) == len(parts) > 0:
        children = [decode_array(decoder, part, depth + 1) for part in parts]
        return pa.StructArray.from_arrays(children, names=param, mask=mask)
    validity = None
    if nulls is not None:
        validity = pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    texts = _text_types(pa).get(name)
    if texts is not None:
        data = decoder.array(parts[1], "u")
        offsets = decode_offsets(decoder, parts[0], data.nbytes)
        offsets = offsets if texts[1] is np.int64 else _narrow(offsets)
        if offsets.size != length + 1:
            raise ValueRefusedError("an Arrow array came with offsets that do not fit")
        buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(texts[0], length, buffers)
    kind, width = _fixed_type(pa, name, param)
    data = decoder.array(parts[0], "u")
    if data.nbytes != length * width:
        raise ValueRefusedError("an Arrow array came with a length that does not fit")
    return pa.Array.from_buffers(kind, length, [validity, pa.py_buffer(data)])


def _narrow(offsets: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if offsets[-1] > _MAX_OFFSET_32:
        raise ValueRefusedError("an Arrow array came with offsets that do not fit")
    return offsets.astype(np.int32)


def _fixed_type(pa: Any, name: str, param: Any) -> tuple[Any, int]:
    known: tuple[Any, int] | None = _fixed_types(pa).get(name)
    if known is not None:
        return known
    if name == "fixed_size_binary" and type(param) is int and 0 < param <= _MAX_WIDTH:
        return pa.binary(param), param
    if type(param) is list and len(param) == 2:
        first, second = param
        if name == "timestamp" and type(first) is str and type(second) is str:
            return pa.timestamp(first, tz=second), 8
        if type(first) is int and type(second) is int:
            if name == "decimal128":
                return pa.decimal128(first, second), 16
            if name == "decimal256":
                return pa.decimal256(first, second), 32
    raise ValueRefusedError("an Arrow array came with a type that is not accepted")


def _names(names: Any) -> list[str]:
    if type(names) is not list or any(type(name) is not str for name in names):
        raise ValueRefusedError("names of columns came malformed")
    return names


def _encode_plain(encoder: "Encoder", value: Any, depth: int) -> object:
    return [Tag.ARROW_ARRAY, encode_array(encoder, value, depth)]


def _one_array(pa: Any, value: Any) -> Any:
    """Return a chunked array as one array."""
    if value.num_chunks == 1:
        return value.chunk(0)
    if not value.num_chunks:
        return pa.array([], value.type)
    if pa.types.is_dictionary(value.type):
        value = value.unify_dictionaries()
    return pa.concat_arrays(value.chunks)


def _encode_chunked(encoder: "Encoder", value: Any, depth: int) -> object:
    array = _one_array(importlib.import_module("pyarrow"), value)
    return [Tag.ARROW_CHUNKED, encode_array(encoder, array, depth)]


def _encode_table(encoder: "Encoder", value: Any, depth: int) -> object:
    pa = importlib.import_module("pyarrow")
    encoder.enter(value.num_columns, depth)
    columns = []
    for name, column in zip(value.column_names, value.columns, strict=True):
        array = _one_array(pa, column) if type(column) is pa.ChunkedArray else column
        try:
            columns.append(encode_array(encoder, array, depth + 1))
        except ValueRefusedError as refusal:
            raise refusal.inside(f"column {name[:80]!r}") from None
    tag = Tag.ARROW_TABLE if type(value) is pa.Table else Tag.ARROW_BATCH
    nullable = [field.nullable for field in value.schema]
    return [tag, list(value.column_names), nullable, columns]


def _decode_plain(decoder: "Decoder", node: Any, depth: int) -> Any:
    array = decode_array(decoder, node[1], depth)
    array.validate(full=True)
    return array


def _decode_chunked(decoder: "Decoder", node: Any, depth: int) -> Any:
    array = _decode_plain(decoder, node, depth)
    return importlib.import_module("pyarrow").chunked_array([array])


def _decode_table(decoder: "Decoder", node: Any, depth: int) -> Any:
    pa = importlib.import_module("pyarrow")
    tag, names, nullable, columns = node
    arrays = [decode_array(decoder, part, depth + 1) for part in decoder.enter(columns, depth)]
    if type(nullable) is not list or not len(_names(names)) == len(nullable) == len(arrays):
        raise ValueRefusedError("a table came with names and columns that do not pair up")
    if any(len(array) != len(arrays[0]) for array in arrays):
        raise ValueRefusedError("a table came with columns of several lengths")
    fields = [
        pa.field(name, array.type, nullable=flag is True)
        for name, array, flag in zip(names, arrays, nullable, strict=True)
    ]
    kind = pa.Table if tag == Tag.ARROW_TABLE else pa.RecordBatch
    table = kind.from_arrays(arrays, schema=pa.schema(fields))
    table.validate(full=True)
    return table


def encoders_of(pa: Any) -> Mapping[type, Any]:
    """Return what encodes the types of the imported pyarrow."""
    arrays = {
        kind: _encode_plain
        for kind in vars(pa.lib).values()
        if isinstance(kind, type) and issubclass(kind, pa.Array)
    }
    return {
        **arrays,
        pa.ChunkedArray: _encode_chunked,
        pa.Table: _encode_table,
        pa.RecordBatch: _encode_table,
    }


DECODERS: Final[Mapping[tuple[int, int], Any]] = {
    (Tag.ARROW_ARRAY, 2): _decode_plain,
    (Tag.ARROW_CHUNKED, 2): _decode_chunked,
    (Tag.ARROW_TABLE, 4): _decode_table,
    (Tag.ARROW_BATCH, 4): _decode_table,
}
