"""The package as the linter sees it: names of modules, bases of classes, what objects hold."""

import ast
from collections.abc import Iterator
from typing import Final, TypeVar

from enclave_encryption.errors import OwnerError
from enclave_encryption.lint.value import (
    CLEAN,
    External,
    Function,
    Instance,
    PackageClass,
    PackageModule,
    Value,
    join,
)
from enclave_encryption.package_code import Module, PackageCode

__all__ = ["Program"]

_FUNCTION: Final = ast.FunctionDef | ast.AsyncFunctionDef
_MAX_BASES: Final = 50
_Key = TypeVar("_Key")


class Program:
    """Facts about the whole package; they only grow, and `changed` says that one did.

    Args:
        code: The directory's modules.

    Attributes:
        globals: Names of each module that was looked into.
        fields: What objects of a class hold, by class and attribute.
        changed: Something grew since this was last set to False.
        modules: Every module that was read, by path.
    """

    def __init__(self, code: PackageCode) -> None:
        self._code = code
        self.globals: dict[str, dict[str, Value]] = {}
        self.fields: dict[tuple[ast.ClassDef, str], Value] = {}
        self.changed = False
        self.modules: dict[str, Module] = {}
        self._bases: dict[ast.ClassDef, tuple[PackageClass, ...]] = {}
        self._methods: dict[ast.ClassDef, dict[str, ast.FunctionDef | ast.AsyncFunctionDef]] = {}

    def module(self, name: str) -> Module | None:
        """Return a module of the package, None for what is not in it or cannot be read."""
        try:
            found = self._code.module(name)
        except OwnerError:
            # One that does not parse and was not exported from: a template, an old Python.
            return None
        if found is not None:
            self.modules[found.path] = found
        return found

    def in_package(self, name: str) -> bool:
        """Return whether a dotted name is a module or folder of the package."""
        return self.module(name) is not None or self._code.has_folder(name)

    def import_base(self, module: Module, statement: ast.ImportFrom) -> str:
        """Return the dotted name that `from X import y` takes from; relative ones made absolute."""
        if not statement.level:
            return statement.module or ""
        package = module.name.split(".")
        if not module.is_package:
            package = package[:-1]
        package = package[: len(package) - (statement.level - 1)]
        return ".".join([*package, *filter(None, [statement.module])])

    def imported(self, name: str) -> Value:
        """Return what `import name` binds."""
        if self.in_package(name):
            return Value(refs=frozenset([PackageModule(name)]))
        return Value(refs=frozenset([External(name)]))

    def set_global(self, module: str, name: str, value: Value) -> None:
        """Add to what a module's name may be."""
        names = self.globals.setdefault(module, {})
        self._grow(names, name, value)

    def set_field(self, instance: Instance, attribute: str, value: Value) -> None:
        """Add to what an attribute of a class's objects may be."""
        self._grow(self.fields, (instance.cls.node, attribute), value)

    def field(self, cls: PackageClass, attribute: str) -> Value | None:
        """Return what was stored in an attribute; None: nothing, anywhere."""
        found = [
            self.fields[(base.node, attribute)]
            for base in self.bases(cls)
            if (base.node, attribute) in self.fields
        ]
        return join(found) if found else None

    def module_loaded(self, name: str, names: dict[str, Value]) -> None:
        """Take over the names of a module that ran to its end."""
        self.globals[name] = names
        # Bases may be known now that were not.
        self._bases.clear()

    def bases(self, cls: PackageClass) -> tuple[PackageClass, ...]:
        """Return the class and its bases in the package, nearest first."""
        if cls.node not in self._bases:
            found = [cls]
            for current in found:
                for base in current.node.bases:
                    for resolved in self._class_named(current.module, base):
                        if all(resolved.node is not known.node for known in found):
                            found.append(resolved)
            self._bases[cls.node] = tuple(found[:_MAX_BASES])
        return self._bases[cls.node]

    def method(self, instance: Instance | PackageClass, name: str) -> Function | None:
        """Return a method, bound."""
        cls = instance.cls if isinstance(instance, Instance) else instance
        after = instance.after if isinstance(instance, Instance) else None
        for base in self.bases(cls):
            if after is not None:
                after = None if base.node is after else after
                continue
            if base.node not in self._methods:
                self._methods[base.node] = dict(_methods(base.node))
            statement = self._methods[base.node].get(name)
            if statement is not None:
                return _bound(base.module, statement, instance)
        return None

    def is_property(self, function: Function) -> bool:
        """Return whether reading the attribute calls the function."""
        return bool(_decorators(function.node) & {"property", "cached_property"})

    def _class_named(self, module: Module, node: ast.expr) -> Iterator[PackageClass]:
        value = CLEAN
        names = self.globals.get(module.name, {})
        if isinstance(node, ast.Name):
            value = names.get(node.id, CLEAN)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            for ref in names.get(node.value.id, CLEAN).refs:
                if isinstance(ref, PackageModule):
                    value = self.globals.get(ref.name, {}).get(node.attr, CLEAN)
        for ref in value.refs:
            if isinstance(ref, PackageClass):
                yield ref

    def _grow(self, table: dict[_Key, Value], key: _Key, value: Value) -> None:
        old = table.get(key)
        new = value if old is None else join([old, value])
        if old is None or new.shape() != old.shape():
            table[key] = new
            self.changed = True


def _methods(
    cls: ast.ClassDef,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for statement in cls.body:
        # Not what is written only for type checkers, nor what is called on assignment.
        if isinstance(statement, _FUNCTION) and not (
            _decorators(statement) & {"overload", "setter", "deleter"}
        ):
            yield statement.name, statement


def _decorators(node: ast.AST) -> set[str]:
    return {
        d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "")
        for d in getattr(node, "decorator_list", [])
    }


def _bound(
    module: Module,
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    instance: Instance | PackageClass,
) -> Function:
    names = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    if "staticmethod" in names:
        return Function(module, node)
    if isinstance(instance, Instance):
        owner = instance.cls if "classmethod" in names else Instance(instance.cls)
        return Function(module, node, owner)
    return Function(module, node, instance if "classmethod" in names else None)
