"""Signatures as text, the way an owner publishes them: `score(applicants, *, threshold=0.5)`.

The text comes from a stranger: it is parsed, never evaluated. A default is a literal, or `...`
for one the owner does not disclose.
"""

import ast
import inspect
from typing import Any, Final

from enclave_protocol.package_errors import PackageError

__all__ = [
    "MAX_SIGNATURE_CHARS",
    "SignatureTextError",
    "format_signature",
    "is_async",
    "parse_signature",
]

MAX_SIGNATURE_CHARS: Final = 2000
"""Longer than any signature a person reads; bounds the parser's work."""

_KIND = inspect.Parameter
_ASYNC: Final = "async "


class SignatureTextError(PackageError):
    """A signature's text is not `name(parameters)` with literal defaults."""


def parse_signature(text: str) -> tuple[str, inspect.Signature]:
    """Return the function's name and signature that `text` declares.

    Args:
        text: For instance `score(applicants, /, *, threshold=0.5, seed=...)`, at most 2000
            characters. Defaults are literals; `...` stands for one that is not disclosed and
            is the `Ellipsis` object in the result. `async` may stand in front: see `is_async`.

    Raises:
        SignatureTextError: Not a signature, annotated, or a default that is no literal.

    Source: docs/spec/encrypted_package.md, "Signatures".
    """
    if len(text) > MAX_SIGNATURE_CHARS:
        raise SignatureTextError(
            f"a signature has {len(text)} characters, expected at most {MAX_SIGNATURE_CHARS}"
        )
    node = _parse_def(text.removeprefix(_ASYNC))
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    if node.returns is not None or any(argument.annotation is not None for argument in every):
        raise SignatureTextError(f"signature {text!r} has annotations: write names and defaults")
    parameters: list[inspect.Parameter] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        positional_only = index < len(arguments.posonlyargs)
        kind = _KIND.POSITIONAL_ONLY if positional_only else _KIND.POSITIONAL_OR_KEYWORD
        default = _KIND.empty
        if index >= first_default:
            default = _default(text, arguments.defaults[index - first_default])
        parameters.append(_KIND(argument.arg, kind, default=default))
    if arguments.vararg is not None:
        parameters.append(_KIND(arguments.vararg.arg, _KIND.VAR_POSITIONAL))
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = _KIND.empty if value is None else _default(text, value)
        parameters.append(_KIND(argument.arg, _KIND.KEYWORD_ONLY, default=default))
    if arguments.kwarg is not None:
        parameters.append(_KIND(arguments.kwarg.arg, _KIND.VAR_KEYWORD))
    try:
        return node.name, inspect.Signature(parameters)
    except ValueError as error:  # for instance a name used twice
        raise SignatureTextError(f"signature {text!r}: {error}") from None


def is_async(text: str) -> bool:
    """Say whether a signature is declared as `async name(...)`: its users await the call."""
    return text.startswith(_ASYNC)


def format_signature(name: str, signature: inspect.Signature) -> str:
    """Return the text that `parse_signature` turns into `name` and `signature`.

    Annotations are left out; an `Ellipsis` default is written as `...`.
    """
    parts: list[str] = []
    previous: Any = None
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if previous is _KIND.POSITIONAL_ONLY and kind is not _KIND.POSITIONAL_ONLY:
            parts.append("/")
        if kind is _KIND.KEYWORD_ONLY and previous not in (
            _KIND.KEYWORD_ONLY,
            _KIND.VAR_POSITIONAL,
        ):
            parts.append("*")
        previous = kind
        shown = parameter.name
        if kind is _KIND.VAR_POSITIONAL:
            shown = f"*{shown}"
        elif kind is _KIND.VAR_KEYWORD:
            shown = f"**{shown}"
        if parameter.default is ...:
            shown += "=..."
        elif parameter.default is not _KIND.empty:
            shown += f"={parameter.default!r}"
        parts.append(shown)
    if previous is _KIND.POSITIONAL_ONLY:
        parts.append("/")
    return f"{name}({', '.join(parts)})"


def _parse_def(text: str) -> ast.FunctionDef:
    # One line and no second statement: what is parsed is what a person reads.
    if not text.isprintable():
        raise SignatureTextError(f"signature {text!r} has characters that do not print")
    try:
        tree = ast.parse(f"def {text}: pass")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _malformed(text) from None
    node = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(node, ast.FunctionDef) or len(node.body) != 1:
        raise _malformed(text)
    if not isinstance(node.body[0], ast.Pass) or not text.endswith(")"):
        raise _malformed(text)
    return node


def _malformed(text: str) -> SignatureTextError:
    return SignatureTextError(f"signature {text!r} is not of the form name(a, b=1, *, c=...)")


def _default(text: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and node.value is ...:
        return ...
    try:
        value = ast.literal_eval(node)
        # What cannot be written back (1e999, [...]) could not be shown either.
        if ast.literal_eval(repr(value)) != value:
            raise ValueError
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise SignatureTextError(
            f"signature {text!r}: a default is no literal; write ... for one you do not disclose"
        ) from None
    return value
