"""Bytes to values: the same strict decoder on both sides of a vault's boundary.

Source: docs/spec/vault_calls.md, "Values".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from enclave_protocol.value_families import FAMILY_DECODERS
from enclave_protocol.value_limits import CodecLimits
from enclave_protocol.value_nodes import (
    KEY_TYPES,
    Handle,
    Tag,
    ValueRefusedError,
    check_depth,
    check_text_array,
    count,
    dtype_of,
    refuse_header,
)
from enclave_protocol.value_work import Cost, check_hashes, check_header

__all__ = ["Decoder"]

_MAX_DIMENSIONS: Final = 32
_MAX_ARRAY_BYTES: Final = 2**40
_MSGPACK_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))


class Decoder:
    """Turns nodes back into one value. Nothing in them is trusted.

    Args:
        limits: Limits in items and bytes.
        buffers: What came beside the header.
        resolve: Turns a handle into an object; None refuses handles.
    """

    def __init__(
        self,
        limits: CodecLimits,
        buffers: Sequence[memoryview],
        resolve: Callable[[Handle], object] | None,
    ) -> None:
        self._limits = limits
        self._buffers: list[memoryview | None] = list(buffers)
        self._resolve = resolve
        self._items = 0

    @property
    def items(self) -> int:
        """What was counted so far against the limit of items."""
        return self._items

    def open(self, header: bytes) -> Any:
        """Return the nodes in `header`.

        Raises:
            ValueRefusedError: It is too long, or no msgpack.
        """
        if len(header) > self._limits.header_bytes:
            refuse_header(len(header), self._limits)
        if len(self._buffers) > self._limits.buffers:
            raise ValueRefusedError(f"more than {self._limits.buffers} buffers")
        check_header(header, self._limits)
        try:
            return msgspec.msgpack.decode(header)
        except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
            raise ValueRefusedError("the bytes hold no value") from None

    def finish(self) -> None:
        """Check that nothing is left over.

        Raises:
            ValueRefusedError: A buffer was not used.
        """
        if any(buffer is not None for buffer in self._buffers):
            raise ValueRefusedError("a buffer came that the value does not use")

    def value(self, node: Any, depth: int) -> Any:
        """Return the value of `node`, which is inside `depth` containers.

        Raises:
            ValueRefusedError: It is no node, or exceeds a limit.
        """
        kind = type(node)
        if kind in _MSGPACK_SCALARS:
            return node
        # msgpack maps, extensions and timestamps arrive as other types and end here.
        if kind is not list or not node or type(node[0]) is not int:
            raise ValueRefusedError("the bytes hold a value of an unknown kind")
        decode = _DECODERS.get((node[0], len(node)))
        if decode is None:
            raise ValueRefusedError("the bytes hold a value of an unknown kind")
        return decode(self, node, depth)

    def _sequence(self, node: Any, depth: int) -> Any:
        parts = self.enter(node[1], depth)
        values = [self.value(part, depth + 1) for part in parts]
        return values if node[0] == Tag.LIST else tuple(values)

    def _unordered(self, node: Any, depth: int) -> Any:
        parts = self.enter(node[1], depth)
        values = [self.key(part, depth + 1) for part in parts]
        self.compare(values)
        result = set(values)
        if len(result) != len(values):
            raise ValueRefusedError("a set came with an element twice")
        return result if node[0] == Tag.SET else frozenset(result)

    def _mapping(self, node: Any, depth: int) -> Any:
        keys = self.enter(node[1], depth)
        values = self.enter(node[2], depth)
        if len(keys) != len(values):
            raise ValueRefusedError("a dict came with keys and values that do not pair up")
        names = [self.key(key, depth + 1) for key in keys]
        self.compare(names)
        result = {
            name: self.value(value, depth + 1) for name, value in zip(names, values, strict=True)
        }
        if len(result) != len(keys):
            raise ValueRefusedError("a dict came with a key twice")
        return result

    def key(self, node: Any, depth: int) -> Any:
        """Return a dict's key, a set's element or a label.

        Raises:
            ValueRefusedError: It is no value, or one that cannot be a key.
        """
        if type(node) is list and node and node[0] == Tag.TUPLE and len(node) == 2:
            return tuple(self.key(part, depth + 1) for part in self.enter(node[1], depth))
        value = self.value(node, depth)
        if type(value) not in KEY_TYPES and type(value) is not frozenset:
            raise ValueRefusedError("a key or an element of a set came with a type it cannot have")
        try:
            hash(value)
        except (TypeError, ValueError, ArithmeticError):
            # A signalling NaN, or a time that its zone cannot place.
            raise ValueRefusedError("a key came that cannot be one") from None
        return value

    def _big_int(self, node: Any, _depth: int) -> int:
        data = node[1]
        if type(data) is not bytes or not 0 < len(data) <= self._limits.int_bytes:
            raise ValueRefusedError("an int came malformed or too long")
        return int.from_bytes(data, "little", signed=True)

    def _complex_number(self, node: Any, _depth: int) -> complex:
        if type(node[1]) is not float or type(node[2]) is not float:
            raise ValueRefusedError("a complex number came malformed")
        return complex(node[1], node[2])

    def _mutable_blob(self, node: Any, _depth: int) -> bytearray:
        return bytearray(self._content(node[1]))

    def _long_text(self, node: Any, _depth: int) -> str:
        try:
            return str(self._take(node[1]), "utf-8")
        except UnicodeDecodeError:
            raise ValueRefusedError("a str came that is no text") from None

    def _long_bytes(self, node: Any, _depth: int) -> bytes:
        return bytes(self._take(node[1]))

    def array(self, node: Any, kinds: str = "", dimensions: int = 1) -> "np.ndarray[Any, Any]":
        """Return the array of `node`, which must be one of `dimensions`.

        Args:
            node: Where an array is expected.
            kinds: The kinds of numpy that its elements may be of.
            dimensions: How many it has.

        Raises:
            ValueRefusedError: It is something else.
        """
        if type(node) is not list or len(node) != 4 or node[0] != Tag.ARRAY:
            raise ValueRefusedError("something else came where an array is expected")
        array = self._array(node, 0)
        if array.ndim != dimensions or array.dtype.kind not in kinds:
            raise ValueRefusedError("an array came with elements or dimensions that do not fit")
        return array

    def _array(self, node: Any, _depth: int) -> "np.ndarray[Any, Any]":
        _, place, name, shape = node
        self.charge(Cost.ARRAY)
        dtype = dtype_of(name)
        if type(shape) is not list or len(shape) > _MAX_DIMENSIONS:
            raise ValueRefusedError("an array came with a malformed shape")
        for side in shape:
            if type(side) is not int or not 0 <= side <= _MAX_ARRAY_BYTES:
                raise ValueRefusedError("an array came with a malformed shape")
        # Exact arithmetic before numpy, and sides beside a zero count too: 0 x 2**80 overflows it.
        if math.prod(side or 1 for side in shape) * dtype.itemsize > _MAX_ARRAY_BYTES:
            raise ValueRefusedError("an array came with too large a shape")
        data = self._content(place)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueRefusedError("an array came with a shape that does not fit its size")
        flat = np.frombuffer(data, dtype=np.uint8)
        if name == "b1" and bool((flat > 1).any()):
            raise ValueRefusedError("an array came with bytes that are no booleans")
        if not flat.flags.writeable:
            flat = flat.copy()
        array = flat.view(dtype)
        if name[0] == "U":
            check_text_array(array)
        return array.reshape(shape)

    def _numpy_scalar(self, node: Any, _depth: int) -> Any:
        _, data, name = node
        dtype = dtype_of(name)
        if dtype.kind in "SU":
            raise ValueRefusedError("a numpy number came malformed")
        if type(data) is not bytes or len(data) != dtype.itemsize or (name == "b1" and data[0] > 1):
            raise ValueRefusedError("a numpy number came malformed")
        return np.frombuffer(data, dtype=dtype)[0]

    def _numpy_text(self, node: Any, depth: int) -> Any:
        value = self.value(node[1], depth)
        if type(value) is str:
            return np.str_(value)
        if type(value) is bytes:
            return np.bytes_(value)
        raise ValueRefusedError("a numpy string came malformed")

    def _handle(self, node: Any, _depth: int) -> object:
        _, number, class_name = node
        if self._resolve is None or type(number) is not int or type(class_name) is not str:
            raise ValueRefusedError(
                "an object of an encrypted package cannot go here, only plain data can"
            )
        return self._resolve(Handle(number, class_name))

    def _content(self, place: Any) -> memoryview:
        return memoryview(place) if type(place) is bytes else self._take(place)

    def _take(self, index: Any) -> memoryview:
        """Return a buffer and forget it: two values must not share their memory."""
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise ValueRefusedError("a value refers to a buffer that did not come")
        buffer = self._buffers[index]
        if buffer is None:
            raise ValueRefusedError("two values refer to one buffer")
        self._buffers[index] = None
        return buffer

    def enter(self, parts: Any, depth: int) -> list[Any]:
        """Return the nodes of a container's items, counted.

        Raises:
            ValueRefusedError: They are none, or exceed a limit.
        """
        if type(parts) is not list:
            raise ValueRefusedError("a container came malformed")
        check_depth(depth, self._limits)
        self.charge(len(parts))
        return parts

    def charge(self, items: int) -> None:
        """Count `items` more.

        Raises:
            ValueRefusedError: That exceeds the limit.
        """
        self._items = count(self._items, items, self._limits)

    def compare(self, keys: list[Any]) -> None:
        """Count what it takes to find out whether `keys`, which are hashable, differ.

        Raises:
            ValueRefusedError: That exceeds the limit of items.
        """
        self._items = check_hashes(keys, self._items, self._limits)


# By tag and number of items, so that each decoder may index its node freely.
_DECODERS: Final[Mapping[tuple[int, int], Callable[[Decoder, Any, int], Any]]] = {
    (Tag.LIST, 2): Decoder._sequence,
    (Tag.TUPLE, 2): Decoder._sequence,
    (Tag.SET, 2): Decoder._unordered,
    (Tag.FROZENSET, 2): Decoder._unordered,
    (Tag.DICT, 3): Decoder._mapping,
    (Tag.BIG_INT, 2): Decoder._big_int,
    (Tag.COMPLEX, 3): Decoder._complex_number,
    (Tag.BYTEARRAY, 2): Decoder._mutable_blob,
    (Tag.LONG_STR, 2): Decoder._long_text,
    (Tag.LONG_BYTES, 2): Decoder._long_bytes,
    (Tag.ARRAY, 4): Decoder._array,
    (Tag.NUMPY_SCALAR, 3): Decoder._numpy_scalar,
    (Tag.NUMPY_TEXT, 2): Decoder._numpy_text,
    (Tag.HANDLE, 3): Decoder._handle,
    **FAMILY_DECODERS,
}
