"""What in an `enclave.toml` shows users more than its owner may have meant."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

from enclave_encryption.lint.finding import Finding
from enclave_protocol.manifest import MANIFEST_NAME, Manifest
from enclave_protocol.signature import parse_signature

__all__ = ["line_of", "lint_manifest", "signatures"]

# Only exactly these types, with one text as their argument, cross at all: an OSError with a number
# and a name, or a UnicodeDecodeError with a document, shows no message anyway.
_TELLING_ERRORS: Final = {
    "KeyError": "its message is the key that was looked for",
    "AttributeError": "its message names classes and attributes of the code",
    "NameError": "its message names variables of the code",
    "UnboundLocalError": "its message names variables of the code",
    "ImportError": "its message names modules of the package",
    "ModuleNotFoundError": "its message names modules of the package",
    "Exception": "libraries raise it with values, paths and names in the message",
    "RuntimeError": "libraries raise it with shapes, paths and names in the message",
}
_MAX_PLAIN_CHARS: Final = 40
_MAX_PLAIN_ITEMS: Final = 4
_MAX_PLAIN_DIGITS: Final = 5


def lint_manifest(manifest: Manifest, text: str) -> Iterator[Finding]:
    """Yield what is careless in a manifest.

    Args:
        manifest: Checked.
        text: Its file, for line numbers.
    """
    policy = manifest.policy
    for name in policy.errors:
        if name in _TELLING_ERRORS:
            line = line_of(text, name, after="errors")
            yield _finding(
                line,
                "errors",
                f"users read the message of every {name}, and {_TELLING_ERRORS[name]}",
            )
    if policy.output == "text":
        yield _finding(
            line_of(text, "output", after="[policy]"),
            "output",
            "users read whatever exported code and the libraries under it print",
        )
    for signature in signatures(manifest):
        line = line_of(text, signature)
        name, parameters = parse_signature(signature)
        for parameter in parameters.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                yield _finding(
                    line,
                    "kwargs",
                    f"{name}() takes any keyword from users (**{parameter.name}): also those that "
                    "the code passes on to libraries",
                )
            reason = _telling_default(parameter.default)
            if reason:
                yield _finding(
                    line,
                    "defaults",
                    f"anyone can read the default of {parameter.name!r} in {name}(): {reason}",
                )


def signatures(manifest: Manifest) -> Iterator[str]:
    """Yield the text of every exported signature."""
    yield from manifest.exports.functions.values()
    for exported in manifest.exports.classes.values():
        if exported.init:
            yield exported.init
        yield from exported.methods


def line_of(text: str, needle: str, *, after: str = "") -> int:
    """Return the line where `needle` stands, the first one at or below `after`; 1 if nowhere."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if after and after in _code(line)), 0)
    for number, line in enumerate(lines[start:], start + 1):
        if needle in _code(line) or needle in _code(line).replace('\\"', '"'):
            return number
    return start + 1


def _code(line: str) -> str:
    return re.sub(r"#[^'\"]*$", "", line)


def _finding(line: int, rule: str, message: str) -> Finding:
    return Finding(MANIFEST_NAME, line, rule, message, line)


def _telling_default(value: Any) -> str:
    """Say why a published default is worth a thought; nothing for one that is not."""
    if isinstance(value, bytes) and value:
        return "it is binary data"
    if isinstance(value, str):
        if len(value) > _MAX_PLAIN_CHARS:
            return f"it is {len(value)} characters long"
        if "/" in value or "\\" in value or "://" in value:
            return "it looks like a path or an address"
    if isinstance(value, float) and len(re.sub(r"e.*|\D", "", repr(value)).strip("0")) > (
        _MAX_PLAIN_DIGITS
    ):
        return "it has the digits of a fitted number"
    if isinstance(value, list | tuple | dict | set | frozenset):
        if len(value) > _MAX_PLAIN_ITEMS:
            return f"it holds {len(value)} values"
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_telling_default, inner)), "")
    return ""
