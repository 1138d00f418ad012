"""Whether what a manifest exports exists in the code, and can be called as declared."""

import ast
import inspect
from collections.abc import Iterable, Iterator

from enclave_encryption.errors import ExportError
from enclave_encryption.package_code import FUNCTION, Definition, Module, PackageCode
from enclave_encryption.package_scripts import SCRIPT_SUFFIXES
from enclave_protocol.manifest import CONTEXT_METHODS, ExportedClass, Manifest, did_you_mean
from enclave_protocol.signature import parse_signature

__all__ = ["check_exports"]


def check_exports(manifest: Manifest, code: PackageCode, paths: frozenset[str]) -> None:
    """Check `manifest` against the code, without importing it.

    What syntax cannot tell (a base class from elsewhere, an assigned function) passes.

    Args:
        manifest: With its defaults filled in.
        code: The directory's modules.
        paths: Every file in the directory.

    Raises:
        ExportError: A module, script, name, method, attribute or parameter that is not there.
    """
    for name, script in manifest.scripts.items():
        if script.file not in paths:
            raise ExportError(
                f"[scripts] {name}: there is no file {script.file!r}"
                f"{did_you_mean(script.file, (p for p in paths if p.endswith(SCRIPT_SUFFIXES)))}"
            )
    exports = manifest.exports
    if not manifest.package.module:
        if exports.functions or exports.classes:
            raise ExportError("[package] module is missing: name the module that has the exports")
        return
    module = code.module(manifest.package.module)
    if module is None:
        raise ExportError(
            f"[package] module: there is no module {manifest.package.module!r} in the directory"
            f"{did_you_mean(manifest.package.module, code.top_level())}"
        )
    names = code.names(module)
    for name in (*exports.functions, *exports.classes):
        if name not in names:
            raise ExportError(
                f"[exports]: {module.path} has no {name!r}{did_you_mean(name, names)}"
            )
    for name, text in exports.functions.items():
        found = code.definition(module, name)
        if found is not None:
            if isinstance(found[1], ast.ClassDef):
                raise ExportError(f"[exports] functions: {name!r} is a class; list it in classes")
            _check_call(text, found, bound=False)
    for name, exported in exports.classes.items():
        found = code.definition(module, name)
        if found is not None:
            _check_class(name, exported, found, code)


def _check_class(
    name: str, exported: ExportedClass, found: tuple[Module, Definition], code: PackageCode
) -> None:
    module, definition = found
    if not isinstance(definition, ast.ClassDef):
        raise ExportError(f"[exports] classes: {name!r} is a function; list it in functions")
    bases, complete = code.with_bases(module, definition)
    methods: dict[str, tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]] = {}
    attributes: set[str] = set()
    for where, base in bases:
        for statement in base.body:
            if isinstance(statement, FUNCTION):
                methods.setdefault(statement.name, (where, statement))
        attributes |= _attributes(base)
    if exported.init and "__init__" in methods:
        _check_call(exported.init, methods["__init__"], bound=True)
    known = attributes | set(methods)
    for text in exported.methods:
        method, _ = parse_signature(text)
        if method in methods and text in CONTEXT_METHODS:
            continue  # called by `with`, as Python says
        if method in methods:
            _check_call(text, methods[method], bound=True)
        elif complete and method not in attributes:
            raise ExportError(f"[exports]: {name} has no method {method!r}{_hint(method, methods)}")
    for attribute in exported.attributes:
        if complete and attribute not in known:
            raise ExportError(
                f"[exports]: {name} has no attribute {attribute!r}{_hint(attribute, known)}"
            )


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, (entry for entry in known if not entry.startswith("_")))


def _attributes(definition: ast.ClassDef) -> set[str]:
    """Return the names assigned in the class's body and to `self` in its methods."""
    return set(_assigned(definition))


def _assigned(definition: ast.ClassDef) -> Iterator[str]:
    for statement in definition.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id
        if isinstance(statement, FUNCTION):
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    yield node.attr


def _check_call(text: str, found: tuple[Module, Definition], *, bound: bool) -> None:
    """Check that every call the declared signature allows, the code's accepts."""
    module, definition = found
    if not isinstance(definition, FUNCTION) or definition.decorator_list:
        return  # a decorator may change the signature
    arguments = definition.args
    actual = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    optional = set(actual[len(actual) - len(arguments.defaults) :] if arguments.defaults else [])
    if bound:
        actual = actual[1:]
    keywords = [a.arg for a in arguments.kwonlyargs]
    optional |= {
        name
        for name, default in zip(keywords, arguments.kw_defaults, strict=True)
        if default is not None
    }
    where = f"{module.path}:{definition.lineno}: {definition.name}"
    declared = parse_signature(text)[1].parameters
    for name, parameter in declared.items():
        takes_all = (
            arguments.vararg is not None
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL
            else arguments.kwarg is not None
        )
        if parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            if not takes_all:
                raise ExportError(f"{where}() takes no such parameter as declared in {text!r}")
        elif name not in actual and name not in keywords and not takes_all:
            hint = did_you_mean(name, [*actual, *keywords])
            raise ExportError(f"{where}() has no parameter {name!r}{hint}")
    _check_positions(text, where, actual, {a.arg for a in arguments.posonlyargs})
    for name in (*actual, *keywords):
        if name not in declared and name not in optional:
            raise ExportError(f"{where}() needs {name!r}, which {text!r} does not declare")


def _check_positions(text: str, where: str, actual: list[str], nameless: set[str]) -> None:
    """Check that what is passed by position only arrives at the parameter it is declared for.

    Everything else the vault passes by name.
    """
    declared = parse_signature(text)[1].parameters.values()
    kinds = inspect.Parameter
    positional = [
        p for p in declared if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    names = [p.name for p in positional]
    leading = 0
    for index, parameter in enumerate(positional):
        if parameter.kind is kinds.POSITIONAL_ONLY or parameter.name in nameless:
            leading = index + 1
    if any(p.kind is kinds.VAR_POSITIONAL for p in declared):
        leading = len(names)
    names = names[:leading]
    if actual[: len(names)] != names:
        raise ExportError(
            f"{where}() takes {', '.join(actual) or 'nothing'} by position, and {text!r} declares "
            f"{', '.join(names)}: declare the same names in the same order"
        )
