"""pandas DataFrame, Series and Index, column by column, as arrays of numpy's.

Only what is shown travels: unused categories and levels, attrs, flags and what is under a mask stay
behind. Columns of objects hold exactly str, None and NaN, nothing else.

Source: docs/spec/vault_calls.md, "Libraries"; THREATS B.6.
"""

import importlib
import math
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from enclave_protocol.value_arrow import decode_array, encode_array
from enclave_protocol.value_labels import check_distinct
from enclave_protocol.value_nodes import Tag, ValueRefusedError
from enclave_protocol.value_text import decode_texts, encode_texts
from enclave_protocol.value_time import decode_zone, encode_zone
from enclave_protocol.value_work import Cost

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "encoders_of"]

_PLAIN_KINDS: Final = "biufcMm"
_MASKED: Final = frozenset(
    (
        *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
        *("Float32", "Float64", "boolean"),
    )
)
_IS_TEXT, _IS_NONE, _IS_NAN = range(3)
_MARKS: Final = {str: _IS_TEXT, type(None): _IS_NONE, float: _IS_NAN}
_MANY_ROWS: Final = 10_000
"""From here on it pays to look whether a column repeats its objects."""
_MAX_CODES: Final = 2**31 - 1
_OBJECT_BITS: Final = 4
"""No two objects are within 16 bytes; numbers without zeros at their end hash better."""
_FREQUENCY: Final = re.compile(
    r"-?[0-9]{0,6}(ns|us|ms|s|min|h|[BCD]|W(-[A-Z]{3})?|B?M[SE]|B?[QY][SE](-[A-Z]{3})?)", re.ASCII
)
_UNITS: Final = ("s", "ms", "us", "ns")


def _encode_column(encoder: "Encoder", array: Any, depth: int) -> list[object]:
    """Return the node of one of pandas' one-dimensional arrays: kind, then what it needs."""
    pd = sys.modules["pandas"]
    encoder.charge(Cost.COLUMN)
    dtype = array.dtype
    if type(array) is pd.arrays.NumpyExtensionArray:
        dtype = dtype.numpy_dtype
    if isinstance(dtype, np.dtype):
        values = array.to_numpy()
        if dtype.kind == "O":
            return _encode_objects(encoder, values)
        return ["plain", encoder.array(values)]
    kind = type(dtype)
    if kind is pd.DatetimeTZDtype:
        values = array.tz_convert(None).to_numpy()
        return ["zoned", encode_zone(dtype.tz), encoder.array(values)]
    if kind is pd.CategoricalDtype:
        # Categories that no row has are somebody else's rows.
        codes = np.asarray(array.codes)
        present = np.zeros(len(array.categories) + 1, bool)
        present[codes] = True  # a missing value is -1: the last place
        if not present[:-1].all():
            # Sorts, which is slow: only where it has something to do.
            array = array.remove_unused_categories()
            codes = np.asarray(array.codes)
        categories = _encode_index(encoder, array.categories.rename(None), depth + 1)
        return ["categories", bool(dtype.ordered), encoder.array(codes), categories]
    if kind is pd.StringDtype:
        return _encode_strings(encoder, array, depth)
    if kind is pd.ArrowDtype:
        return ["arrow", _encode_arrow(encoder, array, depth)]
    if dtype.name in _MASKED and kind is type(pd.array([], dtype=dtype.name).dtype):
        mask = np.asarray(array.isna())
        values = array.to_numpy(dtype=dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0))
        return ["masked", encoder.array(values), encoder.array(mask)]
    raise ValueRefusedError(
        f"pandas data of dtype {str(dtype)[:80]} cannot cross into or out of an encrypted package; "
        "accepted are numbers, booleans, datetime64, timedelta64, categories, nullable numbers "
        "and booleans, strings, Arrow types and objects that are str or None"
    )


def _encode_objects(encoder: "Encoder", values: "np.ndarray[Any, Any]") -> list[object]:
    if not _MANY_ROWS <= len(values) <= _MAX_CODES:
        return _encode_items(encoder, values.tolist())
    # The objects' addresses: all that tells one and the same object apart from others is needed.
    addresses = np.frombuffer(values.tobytes(), np.int64) >> _OBJECT_BITS
    sample = addresses[::20]
    if len(np.unique(sample)) > 0.8 * len(sample):
        return _encode_items(encoder, values.tolist())
    # Many are the same objects: each travels once.
    codes, distinct = sys.modules["pandas"].factorize(addresses)
    places = np.empty(len(distinct), np.int64)
    places[codes] = np.arange(len(values))
    words = values[places].tolist()
    return ["repeated", encoder.array(codes.astype(np.int32)), _encode_items(encoder, words)]


def _encode_items(encoder: "Encoder", items: list[Any]) -> list[object]:
    # Exact types, looked at without running any code of theirs.
    kinds = set(map(type, items))
    other = next(iter(kinds - _MARKS.keys()), None)
    if other is None and float in kinds:
        odd = any(type(item) is float and not math.isnan(item) for item in items)
        other = float if odd else None
    if other is not None:
        raise ValueRefusedError(
            f"a column of objects holds a value of type {other.__module__}.{other.__qualname__}; "
            "accepted are str, None and NaN: convert it with astype()"
        )
    if kinds <= {str}:
        return ["objects", None, *encode_texts(encoder, items)]
    marks = np.fromiter(map(_MARKS.__getitem__, map(type, items)), np.uint8, len(items))
    texts = items.copy()
    for place in np.flatnonzero(marks).tolist():
        texts[place] = ""
    return ["objects", encoder.array(marks), *encode_texts(encoder, texts)]


def _encode_strings(encoder: "Encoder", array: Any, depth: int) -> list[object]:
    dtype = array.dtype
    missing = dtype.na_value is sys.modules["pandas"].NA
    if dtype.storage == "pyarrow":
        return ["strings", missing, "pyarrow", _encode_arrow(encoder, array, depth)]
    mask = np.asarray(array.isna())
    texts = array.to_numpy(dtype=object, na_value="").tolist()
    if not set(map(type, texts)) <= {str}:
        raise ValueRefusedError("a column of strings holds something else than str")
    return ["strings", missing, "python", [encoder.array(mask), *encode_texts(encoder, texts)]]


def _encode_arrow(encoder: "Encoder", array: Any, depth: int) -> list[object]:
    pa = importlib.import_module("pyarrow")
    value = array.__arrow_array__()
    if type(value) is pa.ChunkedArray:
        value = value.combine_chunks()
    return encode_array(encoder, value, depth + 1)


def _encode_index(encoder: "Encoder", index: Any, depth: int) -> list[object]:
    """Return the node of an index: kind, names, then what it needs."""
    pd = sys.modules["pandas"]
    encoder.enter(1, depth)
    encoder.charge(Cost.INDEX)
    encoder.charge(index.nlevels)
    names = [_encode_label(encoder, name, depth) for name in index.names]
    kind = type(index)
    if kind is pd.RangeIndex:
        steps = (index.start, index.stop, index.step)
        return ["range", names, *(encoder.node(int(step), depth) for step in steps)]
    if kind is pd.MultiIndex:
        used = index.remove_unused_levels()
        levels = [_encode_index(encoder, level.rename(None), depth + 1) for level in used.levels]
        return ["multi", names, levels, [encoder.array(np.asarray(code)) for code in used.codes]]
    if kind not in (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.CategoricalIndex):
        raise ValueRefusedError(
            f"an index of type {kind.__module__}.{kind.__qualname__} cannot cross into or out of "
            "an encrypted package: call reset_index() or astype(str)"
        )
    dtype = index.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        labels = index.tolist()
        encoder.enter(len(labels), depth)
        return ["labels", names, [_encode_label(encoder, label, depth) for label in labels]]
    frequency = getattr(index, "freqstr", None)
    if type(frequency) is not str or not _FREQUENCY.fullmatch(frequency):
        frequency = None
    return ["column", names, _encode_column(encoder, index.array, depth), frequency]


def _encode_label(encoder: "Encoder", label: Any, depth: int) -> object:
    try:
        return encoder.key(label, depth + 1)
    except ValueRefusedError as refusal:
        raise refusal.inside("a label of a pandas object") from None


def _encode_frame(encoder: "Encoder", frame: Any, depth: int) -> object:
    encoder.enter(frame.shape[1], depth)
    encoder.charge(Cost.FRAME)
    index = _encode_index(encoder, frame.index, depth + 1)
    labels = _encode_index(encoder, frame.columns, depth + 1)
    dtypes = set(frame.dtypes)
    if len(dtypes) == 1 and isinstance(next(iter(dtypes)), np.dtype):
        values = frame.to_numpy()
        if values.dtype.kind in _PLAIN_KINDS:
            # As pandas has it in memory, one row for each column.
            return [Tag.FRAME, index, labels, encoder.array(values.T)]
    columns = []
    for place, label in enumerate(frame.columns):
        try:
            columns.append(_encode_column(encoder, frame.iloc[:, place].array, depth + 1))
        except ValueRefusedError as refusal:
            name = repr(label)[:80] if type(label) in (str, int) else str(place)
            raise refusal.inside(f"column {name}") from None
    return [Tag.FRAME, index, labels, ["columns", columns]]


def _encode_series(encoder: "Encoder", series: Any, depth: int) -> object:
    index = _encode_index(encoder, series.index, depth + 1)
    name = _encode_label(encoder, series.name, depth)
    return [Tag.SERIES, index, name, _encode_column(encoder, series.array, depth + 1)]


def _encode_index_value(encoder: "Encoder", index: Any, depth: int) -> object:
    return [Tag.INDEX, _encode_index(encoder, index, depth)]


def _encode_scalar(encoder: "Encoder", value: Any, _depth: int) -> object:
    pd = sys.modules["pandas"]
    encoder.charge(Cost.SCALAR)
    if value is pd.NaT or value is pd.NA:
        return [Tag.PANDAS_SCALAR, "NaT" if value is pd.NaT else "NA", None, None, None]
    if type(value) is pd.Timestamp:
        number = int(value.asm8.view("i8"))
        return [Tag.PANDAS_SCALAR, "Timestamp", number, value.unit, encode_zone(value.tzinfo)]
    number = int(value.asm8.view("i8"))
    return [Tag.PANDAS_SCALAR, "Timedelta", number, value.unit, None]


def _decode_scalar(decoder: "Decoder", node: Any, _depth: int) -> Any:
    pd = importlib.import_module("pandas")
    decoder.charge(Cost.SCALAR)
    _, kind, number, unit, zone = node
    if kind in ("NaT", "NA") and (number, unit, zone) == (None, None, None):
        return pd.NaT if kind == "NaT" else pd.NA
    if type(number) is not int or unit not in _UNITS or kind not in ("Timestamp", "Timedelta"):
        raise ValueRefusedError("a pandas value came malformed")
    if kind == "Timedelta":
        return pd.Timedelta(np.timedelta64(number, unit)).as_unit(unit)
    stamp = pd.Timestamp(np.datetime64(number, unit)).as_unit(unit)
    found = decode_zone(zone)
    return stamp if found is None else stamp.tz_localize("UTC").tz_convert(found)


def _decode_column(decoder: "Decoder", node: Any, depth: int) -> Any:
    """Return an array that pandas takes as it is."""
    pd = importlib.import_module("pandas")
    decode = _COLUMNS.get((node[0], len(node))) if type(node) is list and node else None
    if decode is None:
        raise ValueRefusedError("a column came malformed")
    decoder.charge(Cost.COLUMN)
    return decode(pd, decoder, node, depth)


def _decode_plain(_pd: Any, decoder: "Decoder", node: Any, _depth: int) -> Any:
    return decoder.array(node[1], _PLAIN_KINDS)


def _decode_zoned(pd: Any, decoder: "Decoder", node: Any, _depth: int) -> Any:
    values = decoder.array(node[2], "M")
    zone = decode_zone(node[1])
    if zone is None:
        raise ValueRefusedError("a column of times came without its zone")
    return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone).array


def _decode_categories(pd: Any, decoder: "Decoder", node: Any, depth: int) -> Any:
    codes = decoder.array(node[2], "i")
    categories = _decode_index(decoder, node[3], depth + 1)
    check_distinct(decoder, categories, len(codes))
    return pd.Categorical.from_codes(codes, categories=categories, ordered=node[1] is True)


def _decode_masked(pd: Any, decoder: "Decoder", node: Any, _depth: int) -> Any:
    values = decoder.array(node[1], "biuf")
    mask = decoder.array(node[2], "b")
    kinds = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
    return kinds.get(values.dtype.kind, pd.arrays.IntegerArray)(values, mask)


def _decode_objects(pd: Any, decoder: "Decoder", node: Any, _depth: int) -> Any:
    # pandas 3 would make strings of a numpy array of objects.
    return pd.Index(_decode_items(decoder, node), dtype=object, copy=False)


def _decode_repeated(pd: Any, decoder: "Decoder", node: Any, _depth: int) -> Any:
    _, codes_node, words_node = node
    codes = decoder.array(codes_node, "i")
    if type(words_node) is not list or len(words_node) != 4 or words_node[0] != "objects":
        raise ValueRefusedError("a column of objects came malformed")
    words = _decode_items(decoder, words_node)
    if codes.dtype != np.int32 or len(words) > len(codes):
        raise ValueRefusedError("a column of objects came malformed")
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(words):
        raise ValueRefusedError("a column of objects came malformed")
    return pd.Index(words.take(codes), dtype=object, copy=False)


def _decode_items(decoder: "Decoder", node: list[Any]) -> "np.ndarray[Any, Any]":
    result = decode_texts(decoder, node[2:])
    if node[1] is not None:
        marks = decoder.array(node[1], "u")
        if marks.shape != result.shape or bool((marks > _IS_NAN).any()):
            raise ValueRefusedError("a column of objects came malformed")
        result[marks == _IS_NONE] = None
        result[marks == _IS_NAN] = math.nan
    return result


def _decode_strings(pd: Any, decoder: "Decoder", node: Any, depth: int) -> Any:
    _, missing, storage, parts = node
    na_value = pd.NA if missing is True else math.nan
    if storage == "pyarrow":
        array = decode_array(decoder, parts, depth + 1)
        array.validate(full=True)
        if str(array.type) not in ("string", "large_string"):
            raise ValueRefusedError("a column of strings came malformed")
        return pd.StringDtype("pyarrow", na_value=na_value).__from_arrow__(array)
    if storage != "python" or type(parts) is not list or len(parts) != 3:
        raise ValueRefusedError("a column of strings came malformed")
    texts = decode_texts(decoder, parts[1:])
    texts[decoder.array(parts[0], "b")] = na_value
    return pd.array(texts, dtype=pd.StringDtype("python", na_value=na_value))


def _decode_arrow(pd: Any, decoder: "Decoder", node: Any, depth: int) -> Any:
    array = decode_array(decoder, node[1], depth + 1)
    array.validate(full=True)
    return pd.arrays.ArrowExtensionArray(array)


_COLUMNS: Final[Mapping[tuple[str, int], Any]] = {
    ("plain", 2): _decode_plain,
    ("zoned", 3): _decode_zoned,
    ("categories", 4): _decode_categories,
    ("masked", 3): _decode_masked,
    ("objects", 4): _decode_objects,
    ("repeated", 3): _decode_repeated,
    ("strings", 4): _decode_strings,
    ("arrow", 2): _decode_arrow,
}


def _decode_index(decoder: "Decoder", node: Any, depth: int) -> Any:
    pd = importlib.import_module("pandas")
    if type(node) is not list or len(node) < 3 or type(node[1]) is not list:
        raise ValueRefusedError("an index came malformed")
    decoder.enter([None], depth)
    decoder.charge(Cost.INDEX)
    kind, name_nodes, *rest = node
    names = [decoder.key(name, depth + 1) for name in decoder.enter(name_nodes, depth)]
    if kind == "multi" and len(rest) == 2:
        levels = [_decode_index(decoder, level, depth + 1) for level in rest[0]]
        codes = [decoder.array(code, "i") for code in rest[1]]
        for level, code in zip(levels, codes, strict=True):
            check_distinct(decoder, level, len(code))
        return pd.MultiIndex(levels, codes, names=names, verify_integrity=True)
    (name,) = names
    if kind == "range" and len(rest) == 3:
        if any(type(step) is not int for step in rest) or len(range(*rest)) > _MAX_ROWS:
            raise ValueRefusedError("an index came malformed")
        return pd.RangeIndex(*rest, name=name)
    if kind == "labels" and len(rest) == 1:
        labels = [decoder.key(label, depth + 1) for label in decoder.enter(rest[0], depth)]
        values = np.empty(len(labels), object)
        values[:] = labels
        return pd.Index(values, dtype=object, name=name, tupleize_cols=False)
    if kind != "column" or len(rest) != 2:
        raise ValueRefusedError("an index came malformed")
    index = pd.Index(_decode_column(decoder, rest[0], depth), name=name, copy=False)
    if rest[1] is not None:
        if type(rest[1]) is not str or not _FREQUENCY.fullmatch(rest[1]):
            raise ValueRefusedError("an index came with a frequency that is not accepted")
        index.freq = rest[1]
    return index


_MAX_ROWS: Final = 2**48


def _decode_frame(decoder: "Decoder", node: Any, depth: int) -> Any:
    pd = importlib.import_module("pandas")
    _, index_node, labels_node, body = node
    decoder.charge(Cost.FRAME)
    index = _decode_index(decoder, index_node, depth + 1)
    labels = _decode_index(decoder, labels_node, depth + 1)
    if type(body) is list and body and body[0] == Tag.ARRAY:
        values = decoder.array(body, _PLAIN_KINDS, dimensions=2)
        decoder.charge(len(values))
        return pd.DataFrame(values.T, index=index, columns=labels, copy=False)
    if type(body) is not list or len(body) != 2 or body[0] != "columns":
        raise ValueRefusedError("a DataFrame came malformed")
    nodes = decoder.enter(body[1], depth)
    columns = {place: _decode_column(decoder, part, depth + 1) for place, part in enumerate(nodes)}
    if any(len(column) != len(index) for column in columns.values()) or len(labels) != len(nodes):
        raise ValueRefusedError("a DataFrame came with columns that do not fit its index")
    frame = pd.DataFrame(columns, index=index, copy=False)
    frame.columns = labels
    return frame


def _decode_series(decoder: "Decoder", node: Any, depth: int) -> Any:
    pd = importlib.import_module("pandas")
    index = _decode_index(decoder, node[1], depth + 1)
    name = decoder.key(node[2], depth + 1)
    column = _decode_column(decoder, node[3], depth + 1)
    if len(column) != len(index):
        raise ValueRefusedError("a Series came with values that do not fit its index")
    return pd.Series(column, index=index, name=name, copy=False)


def _decode_index_value(decoder: "Decoder", node: Any, depth: int) -> Any:
    return _decode_index(decoder, node[1], depth)


def encoders_of(pd: Any) -> Mapping[type, Any]:
    """Return what encodes the types of the imported pandas."""
    indexes = (
        *(pd.Index, pd.RangeIndex, pd.DatetimeIndex, pd.TimedeltaIndex),
        *(pd.CategoricalIndex, pd.MultiIndex),
    )
    scalars = (pd.Timestamp, pd.Timedelta, type(pd.NaT), type(pd.NA))
    return {
        pd.DataFrame: _encode_frame,
        pd.Series: _encode_series,
        **dict.fromkeys(indexes, _encode_index_value),
        **dict.fromkeys(scalars, _encode_scalar),
    }


DECODERS: Final[Mapping[tuple[int, int], Any]] = {
    (Tag.FRAME, 4): _decode_frame,
    (Tag.SERIES, 4): _decode_series,
    (Tag.INDEX, 2): _decode_index_value,
    (Tag.PANDAS_SCALAR, 5): _decode_scalar,
}
