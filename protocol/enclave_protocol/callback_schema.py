"""What a package may tell a function of the user's: `(x: ndarray, step: int)`.

The text comes from a stranger: it is parsed, never evaluated.

Source: docs/spec/encrypted_package.md, "Callbacks".
"""

import ast
from dataclasses import dataclass
from typing import Final

from enclave_protocol.package_errors import PackageError

__all__ = [
    "KINDS",
    "MAX_CALLBACK_PARAMETERS",
    "CallbackParameter",
    "CallbackSchemaError",
    "parse_callback",
]

MAX_CALLBACK_PARAMETERS: Final = 16
_MAX_CHARS: Final = 1000


class CallbackSchemaError(PackageError):
    """A callback's schema is not `(name: kind, ...)`."""


@dataclass(frozen=True)
class CallbackParameter:
    """One argument that the user's function gets, and what it may be."""

    name: str
    kinds: tuple[str, ...]


KINDS: Final = (
    "None", "bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict", "set",
    "ndarray", "DataFrame", "Series",
)  # fmt: skip
"""What an argument may be; containers hold plain data of any kind."""


def parse_callback(text: str) -> tuple[CallbackParameter, ...]:
    """Return the parameters that `text` declares.

    Args:
        text: For instance `(x: ndarray, best: float | None)`, at most 1000 characters.

    Raises:
        CallbackSchemaError: Anything else: a parameter without a kind, an unknown kind, a
            default, a return type.
    """
    arguments = _parse(text)
    if (
        any((arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg))
        or arguments.defaults
    ):
        raise _malformed(text)
    if len(arguments.args) > MAX_CALLBACK_PARAMETERS:
        raise CallbackSchemaError(
            f"{text!r} has {len(arguments.args)} parameters, at most {MAX_CALLBACK_PARAMETERS}"
        )
    parameters = tuple(
        CallbackParameter(argument.arg, tuple(_kinds(text, argument.annotation)))
        for argument in arguments.args
    )
    if len({parameter.name for parameter in parameters}) != len(parameters):
        raise CallbackSchemaError(f"{text!r} has two parameters of one name")
    return parameters


def _parse(text: str) -> ast.arguments:
    if len(text) > _MAX_CHARS:
        raise CallbackSchemaError(
            f"a callback has {len(text)} characters, expected at most {_MAX_CHARS}"
        )
    if not text.isprintable() or not text.startswith("(") or not text.endswith(")"):
        raise _malformed(text)
    try:
        tree = ast.parse(f"def f{text}: pass")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _malformed(text) from None
    node = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(node, ast.FunctionDef) or node.returns is not None or len(node.body) != 1:
        raise _malformed(text)
    if not isinstance(node.body[0], ast.Pass):
        raise _malformed(text)
    return node.args


def _kinds(text: str, annotation: ast.expr | None) -> list[str]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*_kinds(text, annotation.left), *_kinds(text, annotation.right)]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return ["None"]
    if not isinstance(annotation, ast.Name):
        raise _malformed(text)
    if annotation.id not in KINDS:
        raise CallbackSchemaError(
            f"{text!r}: {annotation.id!r} is no kind of value; known are {', '.join(KINDS)}"
        )
    return [annotation.id]


def _malformed(text: str) -> CallbackSchemaError:
    return CallbackSchemaError(f"{text!r} is not of the form (x: ndarray, step: int | None)")
