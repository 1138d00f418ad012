"""What of a package is reachable: tables built once from the label.

A name from the notebook is only ever a key of these tables.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from enclave_protocol.manifest import CONTEXT_METHODS
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_label import Label
from enclave_protocol.signature import parse_signature

__all__ = [
    "ArgumentsError",
    "Export",
    "ExportError",
    "ExportedType",
    "Exports",
    "build_exports",
]

_KIND = inspect.Parameter
_ENTER: Final = "__enter__()"
_EXIT: Final = "__exit__(failed)"


class ExportError(PackageError):
    """The label and the package's code do not agree about an export."""


class ArgumentsError(TypeError):
    """Arguments do not fit the declared signature; the message reads like Python's own."""


class Export:
    """One callable with its declared signature.

    Attributes:
        target: The function or class of the package; None for a method, found on its object. What
            `with` calls is our own, and takes the object first.
        attribute: The method's name; "" otherwise.
        parameters: Names of all parameters.
        positions: Names of the parameters that may be passed by position, in their order.
        returns: `value`, `iter`, `none`, or the name of the exported class it returns by reference.

    `actual` is the code's own signature without `self`, None where Python cannot tell.
    """

    def __init__(
        self,
        signature_text: str,
        *,
        returns: str,
        actual: inspect.Signature | None,
        target: Callable[..., Any] | None = None,
        attribute: str = "",
    ) -> None:
        self.name, self._signature = parse_signature(signature_text)
        self.target = target
        self.attribute = attribute
        self.returns = returns
        self.positions = tuple(
            parameter.name
            for parameter in self._signature.parameters.values()
            if parameter.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD)
        )
        self.parameters = frozenset(self._signature.parameters)
        self._by_position, self._by_name = _arrangement(self.name, self._signature, actual)
        required, most = 0, 0
        plain = True
        for parameter in self._signature.parameters.values():
            if parameter.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD):
                most += 1
                required += parameter.default is _KIND.empty
            elif parameter.kind is _KIND.KEYWORD_ONLY and parameter.default is _KIND.empty:
                plain = False
        self._positional = range(required, most + 1) if plain else range(0)

    def arrange(
        self, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the arguments as the code is called with them.

        What was declared by name is passed by name, however the notebook wrote it: a parameter of
        the code that the signature leaves out cannot be reached by counting positions.

        Raises:
            ArgumentsError: They do not fit the declared signature.
        """
        # The usual case without `bind`, which takes longer than the rest of an empty call.
        if kwargs or len(args) not in self._positional:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise ArgumentsError(f"{self.name}() {error}") from None
        if len(args) <= self._by_position:
            return args, kwargs
        named = dict(zip(self._by_name, args[self._by_position :], strict=False))
        return args[: self._by_position], {**named, **kwargs}


def _arrangement(
    name: str, declared: inspect.Signature, actual: inspect.Signature | None
) -> tuple[int, tuple[str, ...]]:
    """Return how many leading arguments go by position, and the names of those after them.

    Raises:
        ExportError: An argument that can only go by position would arrive at another parameter.
    """
    positional = [
        parameter
        for parameter in declared.parameters.values()
        if parameter.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD)
    ]
    names = [parameter.name for parameter in positional]
    takes_rest = any(p.kind is _KIND.VAR_POSITIONAL for p in declared.parameters.values())
    if actual is None:
        # Compiled code without a signature: it knows positions only, and has no others to hide.
        return (sys.maxsize if takes_rest else len(names)), ()
    theirs = list(actual.parameters.values())
    nameless = {p.name for p in theirs if p.kind is _KIND.POSITIONAL_ONLY}
    leading = len(names) if takes_rest else 0
    for index, parameter in enumerate(positional):
        if parameter.kind is _KIND.POSITIONAL_ONLY or parameter.name in nameless:
            leading = max(leading, index + 1)
    order = [
        p.name for p in theirs if p.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD)
    ]
    if order[:leading] != names[:leading]:
        # Which ones the code takes is the owner's: a signature may leave out the others.
        raise ExportError(
            f"it exports {name}{declared}, but the code takes other parameters by position; its "
            "owner has to declare the same names in the same order"
        )
    return (sys.maxsize if takes_rest else leading), tuple(names[leading:])


def _signature_of(target: Any, *, skip_first: bool = False) -> inspect.Signature | None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if skip_first and parameters and parameters[0].kind is not _KIND.VAR_POSITIONAL:
        return signature.replace(parameters=parameters[1:])
    return signature


def _method_signature(cls: type, method: str) -> inspect.Signature | None:
    found = inspect.getattr_static(cls, method)
    bound = isinstance(found, staticmethod | classmethod)
    return _signature_of(getattr(cls, method), skip_first=not bound)


class BlockFailedError(Exception):
    """What `__exit__` is told when the user's block raised: that it did, and nothing else."""


def _enter(instance: Any) -> None:
    type(instance).__enter__(instance)


def _exit(instance: Any, failed: bool) -> None:
    if failed is True:
        error = BlockFailedError("the block raised")
        type(instance).__exit__(instance, BlockFailedError, error, None)
    else:
        type(instance).__exit__(instance, None, None, None)


class ExportedType:
    """One class that is reachable by reference.

    Attributes:
        cls: The package's class.
        init: How it is made; None if only calls return instances.
        methods: Declared methods by name.
        attributes: Declared attributes.
    """

    def __init__(self, name: str, cls: type, label: Label) -> None:
        declared = label.exports.classes[name]
        self.name = name
        self.cls = cls
        self.init: Export | None = None
        if declared.init:
            actual = _signature_of(cls)
            self.init = Export(declared.init, returns=name, actual=actual, target=cls)
        self.methods: dict[str, Export] = {}
        for text in declared.methods:
            method = parse_signature(text)[0]
            if not callable(getattr(cls, method, None)):
                raise ExportError(f"it exports the method {name}.{method}, which does not exist")
            if text in CONTEXT_METHODS:
                # Never found by their names on the object: see `Dispatcher`.
                continue
            returns = _returns(label, f"{name}.{method}")
            actual = _method_signature(cls, method)
            self.methods[method] = Export(text, returns=returns, actual=actual, attribute=method)
        self.attributes = frozenset(declared.attributes)
        if set(CONTEXT_METHODS) <= set(declared.methods):
            for text, code in ((_ENTER, _enter), (_EXIT, _exit)):
                export = Export(text, returns="none", actual=None, attribute="", target=code)
                self.methods[export.name] = export


class Exports:
    """All that is reachable of one package.

    Attributes:
        functions: Exported functions by name.
        types: Exported classes by name.
    """

    def __init__(self, functions: dict[str, Export], types: dict[str, ExportedType]) -> None:
        self.functions = functions
        self.types = types


def build_exports(label: Label, module: ModuleType) -> Exports:
    """Return the tables for `module`.

    Raises:
        ExportError: The label exports what the module does not have, or in a way this enclave
            cannot serve.
    """
    functions: dict[str, Export] = {}
    for name, text in label.exports.functions.items():
        target = getattr(module, name, None)
        if not callable(target):
            raise ExportError(f"it exports the function {name}, which does not exist")
        functions[name] = Export(
            text, returns=_returns(label, name), actual=_signature_of(target), target=target
        )
    types: dict[str, ExportedType] = {}
    for name in label.exports.classes:
        cls = getattr(module, name, None)
        if not isinstance(cls, type):
            raise ExportError(f"it exports the class {name}, which does not exist")
        types[name] = ExportedType(name, cls, label)
    return Exports(functions, types)


def _returns(label: Label, name: str) -> str:
    returns = label.exports.returned_by(name)
    if returns not in ("value", "iter", "none", *label.exports.classes):
        raise ExportError(
            f"its {name} returns {returns!r}, which this version of the enclave cannot deliver; "
            "expected value, iter, none or an exported class"
        )
    return returns
