"""What differs between the value that the owner's code returned and the one that its user has.

Runs in the process that ran the owner's code. Libraries are looked at where a value is of theirs,
never imported.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

__all__ = ["value_differences"]

_MAX_DIFFERENCES: Final = 12
_MAX_DEPTH: Final = 32
_MAX_TEXT: Final = 60


def value_differences(owner: object, user: object) -> tuple[str, ...]:
    """Return one line for each difference, with its place in the value; the first dozen.

    Args:
        owner: As the code returned it.
        user: Plain data.
    """
    found: list[str] = []
    for line in _differences(owner, user, "", 0):
        if len(found) == _MAX_DIFFERENCES:
            found.append("and more")
            break
        found.append(line)
    return tuple(found)


def _differences(owner: Any, user: Any, place: str, depth: int) -> Iterator[str]:
    if type(owner) is not type(user):
        yield f"{place or 'the value'} is {_type(user)} for the user, {_type(owner)} for you"
        # A file's image is another type than an image, and its pixels may be the same.
        if not (_is(owner, "PIL.Image", "Image") and _is(user, "PIL.Image", "Image")):
            return
    if depth > _MAX_DEPTH:
        return
    if isinstance(owner, dict):
        yield from _dicts(owner, user, place, depth)
    elif isinstance(owner, list | tuple):
        yield from _sequences(owner, user, place, depth)
    elif isinstance(owner, np.ndarray):
        yield from _arrays(owner, user, place)
    elif _is(owner, "pandas", "DataFrame"):
        yield from _frames(owner, user, place, depth)
    elif _is(owner, "pandas", "Series") or _is(owner, "pandas", "Index"):
        yield from _columns(owner, user, place, depth)
    elif _is(owner, "pyarrow", "Table") or _is(owner, "pyarrow", "RecordBatch"):
        yield from _tables(owner, user, place)
    elif _is(owner, "PIL.Image", "Image"):
        yield from _images(owner, user, place, depth)
    elif _is(owner, "scipy.sparse", "sparray") or _is(owner, "scipy.sparse", "spmatrix"):
        yield from _matrices(owner, user, place or "the matrix")
    elif _is(owner, "torch", "Tensor"):
        if owner.dtype != user.dtype or not owner.equal(user):
            yield f"{place or 'the tensor'} has another dtype or other elements for the user"
    elif not _same(owner, user):
        yield f"{place or 'the value'} is {_short(user)} for the user, {_short(owner)} for you"


def _dicts(owner: dict[Any, Any], user: dict[Any, Any], place: str, depth: int) -> Iterator[str]:
    for key in owner.keys() - user.keys():
        yield f"{place}[{_short(key)}] is missing for the user"
    for key in user.keys() - owner.keys():
        yield f"{place}[{_short(key)}] is there for the user only"
    for key, value in owner.items():
        if key in user:
            yield from _differences(value, user[key], f"{place}[{_short(key)}]", depth + 1)


def _sequences(owner: Any, user: Any, place: str, depth: int) -> Iterator[str]:
    if len(owner) != len(user):
        yield f"{place or 'the value'} has {len(user)} items for the user, {len(owner)} for you"
        return
    for index, (mine, theirs) in enumerate(zip(owner, user, strict=True)):
        yield from _differences(mine, theirs, f"{place}[{index}]", depth + 1)


def _arrays(owner: Any, user: Any, place: str) -> Iterator[str]:
    name = place or "the array"
    if owner.dtype != user.dtype:
        yield f"{name} has dtype {user.dtype} for the user, {owner.dtype} for you"
    if owner.shape != user.shape:
        yield f"{name} has shape {user.shape} for the user, {owner.shape} for you"
    elif not np.array_equal(owner, user, equal_nan=owner.dtype.kind in "fcmM"):
        yield f"{name} has other elements for the user"


def _matrices(owner: Any, user: Any, name: str) -> Iterator[str]:
    if owner.dtype != user.dtype:
        yield f"{name} has dtype {user.dtype} for the user, {owner.dtype} for you"
        return
    if owner.shape != user.shape:
        yield f"{name} has shape {user.shape} for the user, {owner.shape} for you"
        return
    mine, theirs = (_entries(matrix) for matrix in (owner, user))
    if any(next(_arrays(*pair, name), "") for pair in zip(mine, theirs, strict=True)):
        yield f"{name} has other elements for the user"


def _entries(matrix: Any) -> tuple[Any, Any, Any]:
    """Return rows, columns and numbers, in one order: the same whatever the format holds."""
    entries = matrix.tocoo(copy=True)
    entries.sum_duplicates()
    entries.eliminate_zeros()
    return entries.row, entries.col, entries.data.astype(matrix.dtype.newbyteorder("="))


def _frames(owner: Any, user: Any, place: str, depth: int) -> Iterator[str]:
    yield from _hidden(owner, user, place or "the table")
    if owner.shape != user.shape:
        yield f"{place or 'the table'} has shape {user.shape} for the user, {owner.shape} for you"
        return
    for part in ("columns", "index"):
        yield from _columns(getattr(owner, part), getattr(user, part), f"{place}.{part}", depth)
    for number, label in enumerate(owner.columns):
        column = f"{place}[{_short(label)}]"
        yield from _columns(
            owner.iloc[:, number], user.iloc[:, number], column, depth, of_table=True
        )


def _columns(
    owner: Any, user: Any, place: str, depth: int, *, of_table: bool = False
) -> Iterator[str]:
    if type(owner) is not type(user):
        yield f"{place} is {_type(user)} for the user, {_type(owner)} for you"
        return
    if not of_table:
        # A table's columns have the table's.
        yield from _hidden(owner, user, place or "the column")
    if not _same(getattr(owner, "name", None), getattr(user, "name", None)):
        yield f"{place or 'the column'} has name {user.name!r} for the user, {owner.name!r} for you"
    if _is(owner.dtype, "pandas", "CategoricalDtype") and _is(
        user.dtype, "pandas", "CategoricalDtype"
    ):
        gone = set(owner.dtype.categories) - set(user.dtype.categories)
        if gone:
            listed = ", ".join(sorted(map(_short, gone))[:5])
            name = place or "the column"
            yield f"{name} has categories that no row has ({listed}): the user gets none"
        if owner.dtype.ordered != user.dtype.ordered:
            yield f"{place or 'the column'} has another order of its categories for the user"
    elif owner.dtype != user.dtype:
        yield (
            f"{place or 'the column'} has dtype {user.dtype} for the user, {owner.dtype} for you"
        )
    yield from _cells(owner, user, place, depth)


def _cells(owner: Any, user: Any, place: str, depth: int) -> Iterator[str]:
    mine, theirs = owner.tolist(), user.tolist()
    if len(mine) != len(theirs):
        yield (f"{place or 'the column'} has {len(theirs)} rows for the user, {len(mine)} for you")
    elif depth <= _MAX_DEPTH and not all(map(_same, mine, theirs)):
        yield f"{place or 'the column'} has other values for the user"


def _hidden(owner: Any, user: Any, name: str) -> Iterator[str]:
    """Yield what pandas' objects carry without showing it."""
    for part in ("attrs", "flags"):
        mine, theirs = getattr(owner, part, None), getattr(user, part, None)
        if mine != theirs:
            yield f"{name} has {part} {_short(mine)}: the user gets {_short(theirs)}"


def _tables(owner: Any, user: Any, place: str) -> Iterator[str]:
    name = place or "the table"
    if owner.schema.metadata:
        yield f"{name} has metadata {_short(owner.schema.metadata)}: the user gets none"
    if not owner.schema.remove_metadata().equals(user.schema):
        yield f"{name} has another schema for the user"
    elif not owner.equals(user):
        yield f"{name} has other values for the user"


def _images(owner: Any, user: Any, place: str, depth: int) -> Iterator[str]:
    name = place or "the image"
    for part in ("mode", "size"):
        yield from _differences(
            getattr(owner, part), getattr(user, part), f"{place}.{part}", depth + 1
        )
    if owner.info and not user.info:
        yield f"{name} has info {_short(owner.info)}: the user gets none"
    if (owner.mode, owner.size) == (user.mode, user.size) and owner.tobytes() != user.tobytes():
        yield f"{name} has other pixels for the user"


def _same(owner: Any, user: Any) -> bool:
    """Whether two values are equal, NaN being equal to NaN; what cannot be compared counts so."""
    if owner is user:
        return True
    try:
        if bool(owner == user):
            return True
        # NaN and NaT differ from themselves.
        return bool(owner != owner) and bool(user != user)
    except Exception:
        return _is_missing(owner) == _is_missing(user)


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    pandas = sys.modules.get("pandas")
    return pandas is not None and value is pandas.NA


def _is(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else _qualified(kind)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
