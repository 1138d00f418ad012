"""What a condition proves about the names in it."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from enclave_encryption.lint.value import CLEAN, Value

__all__ = ["Proof", "Surroundings", "dotted", "proved", "refined"]


class Proof(IntEnum):
    """How much is known; the larger, the more."""

    TEXT = 0
    """It is text or a path, which arrays and streams are not."""
    NO_PATH = 1
    """It is data: an array, a table, a list."""
    PATTERN = 2
    """It matches a pattern, so it leads into no other folder; as code it may still be anything."""
    KNOWN = 3
    """It is one of the code's own values, or a number."""


_NUMBERS: Final = frozenset(
    [
        "int",
        "float",
        "bool",
        "complex",
        "Number",
        "Integral",
        "Real",
        "integer",
        "floating",
        "number",
        "generic",
        "bool_",
        "date",
        "datetime",
        "time",
        "timedelta",
        "UUID",
        "Decimal",
        "Enum",
        "NoneType",
    ]
)
_DATA: Final = frozenset(
    [
        "ndarray",
        "DataFrame",
        "Series",
        "Index",
        "Table",
        "RecordBatch",
        "Image",
        "Tensor",
        "list",
        "tuple",
        "dict",
        "set",
        "frozenset",
        "Sequence",
        "Mapping",
        "csr_matrix",
        "csc_matrix",
        "coo_matrix",
        "spmatrix",
        "sparray",
        "BytesIO",
    ]
)
_TEXT: Final = frozenset({"str", "bytes", "Path", "PurePath", "PathLike"})
_SAME: Final = frozenset({"lower", "upper", "strip", "casefold", "lstrip", "rstrip"})
_DIGITS: Final = frozenset({"isdigit", "isdecimal", "isnumeric"})
_WORDS: Final = frozenset({"isalnum", "isalpha", "isidentifier"})
_OF: Final = frozenset({"str", "set", "frozenset", "type"})


def dotted(node: ast.expr | None) -> str:
    """Return `a.b.c` for such an expression, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def refined(value: Value, proof: Proof) -> Value:
    """Return `value` with what was proved of it."""
    if not value.users:
        return value
    if proof is Proof.KNOWN:
        return replace(value, origin="", checked=False, in_memory=False) if value.refs else CLEAN
    if proof is Proof.TEXT:
        # Never reached with data that was told from a path before.
        return CLEAN if value.in_memory else value
    if proof is Proof.PATTERN:
        return replace(value, checked=True)
    return replace(value, in_memory=True)


@dataclass(frozen=True)
class Surroundings:
    """What a condition is read in.

    Attributes:
        is_users: Whether an expression's value is the user's: being in a list that they passed,
            or equal to something else of theirs, proves nothing.
        inlined: For a call of a function of the package that does nothing but return an
            expression: that, what its parameters are called here, and its own surroundings.
    """

    is_users: Callable[[ast.expr], bool]
    inlined: Callable[[ast.Call], "tuple[ast.expr, Mapping[str, str], Surroundings] | None"]


def proved(test: ast.expr, truth: bool, here: Surroundings) -> dict[str, Proof]:
    """Return what holds of names when `test` came out as `truth`."""
    is_users = here.is_users
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return proved(test.operand, not truth, here)
    if isinstance(test, ast.BoolOp):
        parts = [proved(part, truth, here) for part in test.values]
        if isinstance(test.op, ast.And) == truth:
            every: dict[str, Proof] = {}
            for part in parts:
                for name, proof in part.items():
                    every[name] = max(proof, every.get(name, proof))
            return every
        return {
            name: min(part[name] for part in parts)
            for name in parts[0]
            if all(name in part for part in parts)
        }
    if isinstance(test, ast.NamedExpr):
        return proved(test.value, truth, here)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compared(test, truth, is_users)
    if isinstance(test, ast.Call):
        inlined = here.inlined(test)
        if inlined is not None:
            body, names, there = inlined
            found = proved(body, truth, there)
            return {names[name]: proof for name, proof in found.items() if names.get(name)}
        return _called(test, is_users) if truth else {}
    return {}


def _compared(
    test: ast.Compare, truth: bool, is_users: Callable[[ast.expr], bool]
) -> dict[str, Proof]:
    operator, other = test.ops[0], test.comparators[0]
    if isinstance(test.left, ast.Call) and _is_none(other):
        matched = isinstance(operator, ast.IsNot if truth else ast.Is)
        return _called(test.left, is_users) if matched else {}
    positive = isinstance(operator, ast.In | ast.Eq | ast.Is | ast.LtE)
    negative = isinstance(operator, ast.NotIn | ast.NotEq | ast.IsNot)
    if not (positive if truth else negative):
        return {}
    left = test.left
    if isinstance(operator, ast.LtE) and not _is_call_of(left, {"set", "frozenset"}):
        return {}  # numbers, not sets
    if _is_call_of(left, {"type"}) and isinstance(left, ast.Call):
        return _typed(left.args[:1], other)
    name = _subject(left)
    if not name and isinstance(operator, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
        name, other = _subject(other), left
    return {name: Proof.KNOWN} if name and not is_users(other) else {}


def _called(test: ast.Call, is_users: Callable[[ast.expr], bool]) -> dict[str, Proof]:
    function, arguments = test.func, test.args
    if isinstance(function, ast.Name) and function.id == "isinstance" and len(arguments) == 2:
        return _typed(arguments[:1], arguments[1])
    if not isinstance(function, ast.Attribute):
        return {}
    name, proof = "", Proof.KNOWN
    if function.attr == "fullmatch" and arguments:
        of_module = dotted(function.value) in ("re", "regex") and len(arguments) > 1
        name, proof = _subject(arguments[1 if of_module else 0]), Proof.PATTERN
    elif not arguments and function.attr in _DIGITS | _WORDS:
        name = _subject(function.value)
        proof = Proof.KNOWN if function.attr in _DIGITS else Proof.PATTERN
    elif len(arguments) == 1 and function.attr in ("issubset", "issuperset"):
        inner, outer = function.value, arguments[0]
        if function.attr == "issuperset":
            inner, outer = outer, inner
        name = "" if is_users(outer) else _subject(inner)
    return {name: proof} if name else {}


def _typed(subject: list[ast.expr], kinds: ast.expr) -> dict[str, Proof]:
    name = dotted(subject[0]) if subject else ""
    names = _type_names(kinds)
    if not name or not names:
        return {}
    if names <= _NUMBERS:
        return {name: Proof.KNOWN}
    if names <= _TEXT:
        return {name: Proof.TEXT}
    return {name: Proof.NO_PATH} if names <= _NUMBERS | _DATA else {}


def _type_names(kinds: ast.expr) -> set[str]:
    if isinstance(kinds, ast.Tuple | ast.List | ast.Set):
        parts = [_type_names(kind) for kind in kinds.elts]
    elif isinstance(kinds, ast.BinOp) and isinstance(kinds.op, ast.BitOr):
        parts = [_type_names(kinds.left), _type_names(kinds.right)]
    elif _is_none(kinds):
        return {"NoneType"}
    else:
        # An unknown expression makes the whole unknown: "?" is in no list.
        return {dotted(kinds).rpartition(".")[2] or "?"}
    return set().union(*parts) if all(parts) else {"?"}


def _subject(node: ast.expr) -> str:
    """Return the name a comparison is about: `x`, `x.lower()`, `str(x)`, `set(x)`."""
    if isinstance(node, ast.NamedExpr):
        return node.target.id
    if isinstance(node, ast.Call) and not node.keywords:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _SAME and not node.args:
            return _subject(function.value)
        if _is_call_of(node, _OF) and len(node.args) == 1:
            return _subject(node.args[0])
        return ""
    return dotted(node)


def _is_call_of(node: ast.expr, names: frozenset[str] | set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
