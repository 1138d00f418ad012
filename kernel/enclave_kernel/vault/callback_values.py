"""Whether what a package tells a function of the user's is of the kinds that its owner declared."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from enclave_protocol.callback_schema import CallbackParameter

__all__ = ["plain_argument"]

_Accepts = Callable[[Any], bool]


def plain_argument(parameter: CallbackParameter, value: Any) -> Any:
    """Return `value` as it travels: Python's own numbers for numpy's, all else as it is.

    Raises:
        TypeError: It is none of the declared kinds.
    """
    for kind in parameter.kinds:
        if _ACCEPTS[kind](value):
            make = _NUMBERS.get(kind)
            return value if make is None else make(value)
    raise TypeError(
        f"argument {parameter.name!r} of a callback is declared as {' | '.join(parameter.kinds)}"
    )


def _exactly(*kinds: type) -> _Accepts:
    return lambda value: type(value) in kinds


def _of_numpy(kind: type, numpy_kind: type) -> _Accepts:
    return lambda value: type(value) is kind or isinstance(value, numpy_kind)


def _is_real(value: Any) -> bool:
    return type(value) in (float, int) or isinstance(value, np.floating | np.integer)


def _of_pandas(name: str) -> _Accepts:
    def accepts(value: Any) -> bool:
        # Never imported for this: who has a value of it has imported it.
        kind = getattr(sys.modules.get("pandas"), name, None)
        return kind is not None and type(value) is kind

    return accepts


_NUMBERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
}
_ACCEPTS: Final[Mapping[str, _Accepts]] = {
    "None": _exactly(type(None)),
    "bool": _of_numpy(bool, np.bool_),
    "int": _of_numpy(int, np.integer),
    "float": _is_real,
    "complex": _of_numpy(complex, np.complexfloating),
    "str": _exactly(str),
    "bytes": _exactly(bytes),
    "list": _exactly(list),
    "tuple": _exactly(tuple),
    "dict": _exactly(dict),
    "set": _exactly(set),
    "ndarray": _exactly(np.ndarray),
    "DataFrame": _of_pandas("DataFrame"),
    "Series": _of_pandas("Series"),
}
