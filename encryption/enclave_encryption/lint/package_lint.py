"""Looks through what users can reach of a package, and through its manifest.

Nothing of the package runs. Each exported function is followed with its declared parameters as
the user's; what it calls in the package is followed, too.
"""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from enclave_encryption.lint.comments import (
    allowed_in_python,
    allowed_in_toml,
    unknown_rules,
    without_allowed,
)
from enclave_encryption.lint.expressions import BudgetSpentError
from enclave_encryption.lint.finding import Finding
from enclave_encryption.lint.interpreter import Interpreter
from enclave_encryption.lint.manifest_lint import line_of, lint_manifest
from enclave_encryption.lint.program import Program
from enclave_encryption.lint.value import CLEAN, Function, Instance, PackageClass, Value
from enclave_encryption.package_code import PackageCode
from enclave_protocol.manifest import CONTEXT_METHODS, MANIFEST_NAME, ExportedClass, Manifest
from enclave_protocol.signature import parse_signature

__all__ = ["LintResult", "lint_package"]

_MAX_ROUNDS: Final = 5
_RECURSION_LIMIT: Final = 4000
"""Frames; a fraction of what fits into the main thread's 8 MiB of stack."""
_KIND: Final = inspect.Parameter


@dataclass(frozen=True)
class LintResult:
    """What was found.

    Attributes:
        findings: In the order of files and lines.
        complete: The code was followed to its ends.
    """

    findings: tuple[Finding, ...]
    complete: bool


def lint_package(manifest: Manifest, text: str, code: PackageCode) -> LintResult:
    """Return what an owner should look at before encrypting.

    Args:
        manifest: Checked against the code.
        text: Its file; empty if there is none.
        code: The package's modules.
    """
    program = Program(code)
    interpreter = Interpreter(program)
    findings = list(lint_manifest(manifest, text)) if text else []
    finished = False
    before = sys.getrecursionlimit()
    try:
        # Python's own limit is soon reached by a long chain of `elif` some calls deep.
        sys.setrecursionlimit(max(before, _RECURSION_LIMIT))
        for _ in range(_MAX_ROUNDS):
            program.changed = False
            interpreter.forget_results()
            attributes = list(_follow_exports(manifest, text, interpreter))
            if not program.changed:
                break
        findings += attributes
        finished = True
    except (BudgetSpentError, RecursionError):
        pass  # what was found until then is worth showing
    finally:
        sys.setrecursionlimit(before)
    findings += interpreter.findings.values()
    allowed = {path: allowed_in_python(m.source) for path, m in program.modules.items()}
    allowed[MANIFEST_NAME] = allowed_in_toml(text)
    left = list(without_allowed(findings, allowed))
    for path, lines in allowed.items():
        left += unknown_rules(path, lines)
    return LintResult(tuple(sorted(left)), finished and interpreter.complete)


def _follow_exports(manifest: Manifest, text: str, interpreter: Interpreter) -> Iterator[Finding]:
    """Run every export; yields what is wrong with exported attributes."""
    exports = manifest.exports
    names = interpreter.load_module(manifest.package.module)
    for name, signature in exports.functions.items():
        for ref in names.get(name, CLEAN).refs:
            if isinstance(ref, Function):
                _enter(interpreter, ref, signature, f"{name}()", exports.returned_by(name))
    for name, exported in exports.classes.items():
        for ref in names.get(name, CLEAN).refs:
            if isinstance(ref, PackageClass):
                yield from _follow_class(manifest, text, interpreter, ref, name, exported)


def _follow_class(
    manifest: Manifest,
    text: str,
    interpreter: Interpreter,
    cls: PackageClass,
    name: str,
    exported: ExportedClass,
) -> Iterator[Finding]:
    instance = Instance(cls)
    program = interpreter.program
    if exported.init:
        init = program.method(instance, "__init__")
        if init is not None:
            _enter(interpreter, init, exported.init, f"{name}()", "")
        else:
            for parameter, value in _arguments(exported.init, f"{name}()")[0].items():
                program.set_field(instance, parameter, value)
    for signature in exported.methods:
        method = parse_signature(signature)[0]
        found = program.method(instance, method)
        if found is not None:
            # What `with` calls gives users nothing: they have the object.
            context = signature in CONTEXT_METHODS
            shown = "" if context else manifest.exports.returned_by(f"{name}.{method}")
            _enter(interpreter, found, signature, f"{name}.{method}()", shown)
    for attribute in exported.attributes:
        found = program.method(instance, attribute)
        if found is not None:
            interpreter.enter(found, {}, CLEAN, "value", f"{name}.{attribute}")
            continue
        value = interpreter.attribute(Value(refs=frozenset([instance])), attribute)
        if value.whole:
            line = line_of(text, f'"{attribute}"', after=name)
            yield Finding(
                MANIFEST_NAME,
                line,
                "weights",
                f"the exported attribute {name}.{attribute} is {value.whole}: users can keep it",
                line,
            )


def _enter(
    interpreter: Interpreter, function: Function, signature: str, name: str, returns: str
) -> None:
    keywords, rest = _arguments(signature, name)
    interpreter.enter(function, keywords, rest, "" if returns == "none" else returns, name)


def _arguments(signature: str, name: str) -> tuple[dict[str, Value], Value]:
    """Return the user's arguments by name, `*` for more by position; and any other keywords."""
    found: dict[str, Value] = {}
    rest = CLEAN
    for parameter in parse_signature(signature)[1].parameters.values():
        value = Value(origin=f"{parameter.name} of {name}")
        if parameter.kind is _KIND.VAR_KEYWORD:
            rest = value
        else:
            found["*" if parameter.kind is _KIND.VAR_POSITIONAL else parameter.name] = value
    return found, rest
