"""What of a package is reachable: tables built once from the label.

A name from the notebook is only ever a key of these tables.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

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


class ExportError(PackageError):
    """The label and the package's code do not agree about an export."""


class ArgumentsError(TypeError):
    """Arguments do not fit the declared signature; the message reads like Python's own."""


class Export:
    """One callable with its declared signature.

    Attributes:
        target: The function or class of the package; None for a method, found on its object.
        attribute: The method's name; "" otherwise.
        returns: `value`, `none`, or the name of the exported class it returns by reference.
    """

    def __init__(
        self,
        signature_text: str,
        *,
        returns: str,
        target: Callable[..., Any] | None = None,
        attribute: str = "",
    ) -> None:
        self.name, self._signature = parse_signature(signature_text)
        self.target = target
        self.attribute = attribute
        self.returns = returns
        required, most = 0, 0
        plain = True
        for parameter in self._signature.parameters.values():
            if parameter.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD):
                most += 1
                required += parameter.default is _KIND.empty
            elif parameter.kind is _KIND.KEYWORD_ONLY and parameter.default is _KIND.empty:
                plain = False
        self._positional = range(required, most + 1) if plain else range(0)

    def check(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Check that the arguments fit the declared signature.

        Raises:
            ArgumentsError: They do not.
        """
        # The usual case without `bind`, which takes longer than the rest of an empty call.
        if not kwargs and len(args) in self._positional:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsError(f"{self.name}() {error}") from None


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
        self.init = Export(declared.init, returns=name, target=cls) if declared.init else None
        self.methods: dict[str, Export] = {}
        for text in declared.methods:
            method = parse_signature(text)[0]
            if not callable(getattr(cls, method, None)):
                raise ExportError(f"it exports the method {name}.{method}, which does not exist")
            returns = _returns(label, f"{name}.{method}")
            self.methods[method] = Export(text, returns=returns, attribute=method)
        self.attributes = frozenset(declared.attributes)


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
        functions[name] = Export(text, returns=_returns(label, name), target=target)
    types: dict[str, ExportedType] = {}
    for name in label.exports.classes:
        cls = getattr(module, name, None)
        if not isinstance(cls, type):
            raise ExportError(f"it exports the class {name}, which does not exist")
        types[name] = ExportedType(name, cls, label)
    return Exports(functions, types)


def _returns(label: Label, name: str) -> str:
    returns = label.exports.returned_by(name)
    if returns not in ("value", "none", *label.exports.classes):
        raise ExportError(
            f"its {name} returns {returns!r}, which this version of the enclave cannot deliver; "
            "expected value, none or an exported class"
        )
    return returns
