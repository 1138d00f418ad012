"""Values to bytes, by exact type; runs no code of the objects it meets.

Source: docs/spec/vault_calls.md, "Values".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from enclave_protocol.value_families import family_encoder
from enclave_protocol.value_limits import CodecLimits
from enclave_protocol.value_nodes import (
    ACCEPTED,
    INLINE_BYTES,
    KEY_TYPES,
    NUMPY_SCALARS,
    EncodedValue,
    Handle,
    Tag,
    ValueRefusedError,
    check_depth,
    check_text_array,
    count,
    dtype_of,
    module_of,
    refuse_header,
)
from enclave_protocol.value_work import Cost, check_hashes, check_header

__all__ = ["Encoder", "pack"]


class Encoder:
    """Turns one value into nodes, collecting its buffers.

    Args:
        limits: Limits in items and bytes.
        handle_of: Asked about every object that is no plain data; None refuses it.
    """

    def __init__(
        self, limits: CodecLimits, handle_of: Callable[[object], Handle | None] | None
    ) -> None:
        self._limits = limits
        self._handle_of = handle_of
        self._items = 0
        self._bulk = 0
        self._buffers: list[memoryview] = []

    @property
    def items(self) -> int:
        """What was counted so far against the limit of items."""
        return self._items

    def finish(self, root: object) -> EncodedValue:
        """Return the value whose nodes are `root`.

        Raises:
            ValueRefusedError: The nodes are longer than a header may be.
        """
        header = pack(root)
        if len(header) > self._limits.header_bytes:
            refuse_header(len(header), self._limits)
        check_header(header, self._limits)
        return EncodedValue(header, tuple(self._buffers))

    def node(self, value: object, depth: int) -> object:
        """Return the node of `value`, which is inside `depth` containers.

        Raises:
            ValueRefusedError: It cannot cross; the message names the part that cannot.
        """
        encode = _ENCODERS.get(type(value))
        if encode is not None:
            return encode(self, value, depth)
        family = family_encoder(type(value))
        if family is not None:
            return family(self, value, depth)
        handle = self._handle_of(value) if self._handle_of is not None else None
        if handle is None:
            raise ValueRefusedError(
                f"{_describe(value)} cannot cross into or out of an encrypted package; "
                f"accepted are {ACCEPTED}"
            )
        return [Tag.HANDLE, handle.number, handle.class_name]

    def _plain(self, value: object, _depth: int) -> object:
        return value

    def _integer(self, value: int, _depth: int) -> object:
        if value in _MSGPACK_INT:
            return value
        size = value.bit_length() // 8 + 1
        if size > self._limits.int_bytes:
            raise ValueRefusedError(
                f"an int of {size} bytes, expected at most {self._limits.int_bytes}"
            )
        return [Tag.BIG_INT, value.to_bytes(size, "little", signed=True)]

    def _complex_number(self, value: complex, _depth: int) -> object:
        return [Tag.COMPLEX, value.real, value.imag]

    def _text(self, value: str, _depth: int) -> object:
        if value.isascii() and len(value) <= INLINE_BYTES:
            return value
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise ValueRefusedError(
                "a str with a lone surrogate is no text; send bytes instead"
            ) from None
        return value if len(data) <= INLINE_BYTES else [Tag.LONG_STR, self._bulk_of(data)]

    def _blob(self, value: bytes, _depth: int) -> object:
        return value if len(value) <= INLINE_BYTES else [Tag.LONG_BYTES, self._bulk_of(value)]

    def _mutable_blob(self, value: bytearray, _depth: int) -> object:
        # A copy: exporting the user's buffer would make it unresizable while it is sent.
        data = bytes(value)
        return [Tag.BYTEARRAY, data if len(data) <= INLINE_BYTES else self._bulk_of(data)]

    def _sequence(self, value: Any, depth: int) -> object:
        self.enter(len(value), depth)
        nodes: list[object] = []
        for index, item in enumerate(value):
            try:
                nodes.append(self.node(item, depth + 1))
            except ValueRefusedError as refusal:
                raise refusal.inside(f"item {index}") from None
        return [_SEQUENCE_TAGS[type(value)], nodes]

    def _unordered(self, value: Any, depth: int) -> object:
        self.enter(len(value), depth)
        items = list(value)
        try:
            nodes = [self.key(item, depth + 1) for item in items]
        except ValueRefusedError as refusal:
            raise refusal.inside("an element of a set") from None
        self._items = check_hashes(items, self._items, self._limits)
        return [_SEQUENCE_TAGS[type(value)], nodes]

    def _mapping(self, value: dict[Any, Any], depth: int) -> object:
        self.enter(2 * len(value), depth)
        keys: list[object] = []
        nodes: list[object] = []
        pairs = list(value.items())
        for key, _ in pairs:
            try:
                keys.append(self.key(key, depth + 1))
            except ValueRefusedError as refusal:
                raise refusal.inside("a key of a dict") from None
        self._items = check_hashes([key for key, _ in pairs], self._items, self._limits)
        for key, item in pairs:
            try:
                nodes.append(self.node(item, depth + 1))
            except ValueRefusedError as refusal:
                # A long or odd key would break the one line that the message is.
                name = repr(key) if type(key) in (str, int) else "of another type"
                raise refusal.inside(f"key {name[:80]}") from None
        return [Tag.DICT, keys, nodes]

    def key(self, value: object, depth: int) -> object:
        """Return the node of a dict's key, a set's element or a label.

        Raises:
            ValueRefusedError: It is of a type that cannot be one.
        """
        if type(value) is tuple:
            self.enter(len(value), depth)
            return [Tag.TUPLE, [self.key(item, depth + 1) for item in value]]
        if type(value) is frozenset:
            return self._unordered(value, depth)
        if type(value) not in KEY_TYPES:
            raise ValueRefusedError(
                f"{_describe(value)} cannot be a key or an element of a set here; accepted are "
                "None, bool, int, float, complex, str, bytes, dates, times, Decimal, UUID, and "
                "tuples and frozensets of them"
            )
        return self.node(value, depth)

    def array(self, value: "np.ndarray[Any, Any]", _depth: int = 0) -> object:
        """Return the node of an array; any strides and byte order.

        Raises:
            ValueRefusedError: Its elements cannot cross, or it exceeds a limit.
        """
        name = self._dtype_name(value.dtype)
        self.charge(Cost.ARRAY)
        if value.nbytes > self._limits.bulk_bytes:
            self._refuse_bulk(value.nbytes)
        # Never more than the elements: a view does not bring the array it is a view of.
        plain = np.ascontiguousarray(value, dtype=dtype_of(name))
        if name[0] == "U":
            check_text_array(plain)
        data = plain.reshape(-1).view(np.uint8).data
        content = bytes(data) if len(data) <= INLINE_BYTES else self._bulk_of(data)
        return [Tag.ARRAY, content, name, list(value.shape)]

    def _numpy_scalar(self, value: Any, _depth: int) -> object:
        name = self._dtype_name(value.dtype)
        return [Tag.NUMPY_SCALAR, value.tobytes(), name]

    def _numpy_text(self, value: Any, depth: int) -> object:
        plain = str.__str__(value) if type(value) is np.str_ else bytes(value)
        return [Tag.NUMPY_TEXT, self.node(plain, depth)]

    @staticmethod
    def _dtype_name(dtype: "np.dtype[Any]") -> str:
        name = dtype.str[1:]
        try:
            if dtype.names is None and dtype.subdtype is None and dtype_of(name):
                return name
        except ValueRefusedError:
            # Said better below: there the sender is the one who reads it.
            pass
        raise ValueRefusedError(
            f"a numpy array of dtype {dtype.str} cannot cross into or out of an encrypted package; "
            "accepted are booleans, integers, floats, complex numbers, datetime64, timedelta64 "
            "and fixed strings (S, U)"
        )

    def _bulk_of(self, data: bytes | memoryview) -> int:
        self._bulk += len(data)
        if self._bulk > self._limits.bulk_bytes:
            self._refuse_bulk(self._bulk)
        if len(self._buffers) >= self._limits.buffers:
            raise ValueRefusedError(
                f"more than {self._limits.buffers} large parts: put them into one array"
            )
        self._buffers.append(memoryview(data))
        return len(self._buffers) - 1

    def _refuse_bulk(self, size: int) -> NoReturn:
        raise ValueRefusedError(
            f"{size} bytes, expected at most {self._limits.bulk_bytes}: send it in parts"
        )

    def enter(self, items: int, depth: int) -> None:
        """Count a container of `items` items that is inside `depth` others.

        Raises:
            ValueRefusedError: That exceeds a limit.
        """
        check_depth(depth, self._limits)
        self.charge(items)

    def charge(self, items: int) -> None:
        """Count `items` more.

        Raises:
            ValueRefusedError: That exceeds the limit.
        """
        self._items = count(self._items, items, self._limits)


_MSGPACK_INT: Final = range(-(2**63), 2**64)


def _describe(value: object) -> str:
    """Return what `value` is, for the person who passed it; runs none of its code."""
    kind = type(value)
    name: str = type.__dict__["__qualname__"].__get__(kind)
    module = module_of(kind)
    plain = name if module in ("", "builtins") else f"{module}.{name}"
    return {"function": "a function", "type": "a class", "module": "a module"}.get(
        plain, f"a value of type {plain[:120]}"
    )


pack: Final = msgspec.msgpack.Encoder().encode
_SEQUENCE_TAGS: Final[Mapping[type, int]] = {
    list: Tag.LIST,
    tuple: Tag.TUPLE,
    set: Tag.SET,
    frozenset: Tag.FROZENSET,
}
_ENCODERS: Final[Mapping[type, Callable[[Encoder, Any, int], object]]] = {
    type(None): Encoder._plain,
    bool: Encoder._plain,
    float: Encoder._plain,
    int: Encoder._integer,
    complex: Encoder._complex_number,
    str: Encoder._text,
    bytes: Encoder._blob,
    bytearray: Encoder._mutable_blob,
    list: Encoder._sequence,
    tuple: Encoder._sequence,
    set: Encoder._unordered,
    frozenset: Encoder._unordered,
    dict: Encoder._mapping,
    np.ndarray: Encoder.array,
    np.str_: Encoder._numpy_text,
    np.bytes_: Encoder._numpy_text,
    **dict.fromkeys(NUMPY_SCALARS, Encoder._numpy_scalar),
}
