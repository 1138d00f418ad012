"""What the linter knows of a value: whose it is, and what of the package it may be.

Everything here only ever grows when values meet: a branch that is clean does not hide one that
is not.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from enclave_encryption.package_code import Module

__all__ = [
    "CLEAN",
    "External",
    "Function",
    "Instance",
    "PackageClass",
    "PackageModule",
    "Ref",
    "Value",
    "element_of",
    "join",
]

_MAX_REFS: Final = 16
"""More things than this a name stands for are not told apart any more."""


@dataclass(frozen=True)
class External:
    """Something from outside the package by its dotted name; or, `made`, what a call of it gave."""

    name: str
    made: bool = False


@dataclass(frozen=True)
class PackageModule:
    """A module or namespace of the package."""

    name: str


@dataclass(frozen=True)
class PackageClass:
    """A class of the package."""

    module: Module = field(compare=False)
    node: ast.ClassDef


@dataclass(frozen=True)
class Instance:
    """An object of a class of the package; `after` is the class whose `super()` it is."""

    cls: PackageClass
    after: ast.ClassDef | None = None


@dataclass(frozen=True)
class Function:
    """A function of the package.

    Attributes:
        module: Where it is written.
        node: Its syntax.
        owner: What it is bound to.
        scope: The frame around it, for a function within one.
    """

    module: Module = field(compare=False)
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    owner: "Instance | PackageClass | None" = None
    scope: Any = None


Ref = External | PackageModule | PackageClass | Instance | Function


@dataclass(frozen=True)
class Value:
    """What is known of one value.

    Attributes:
        origin: Which argument of the user's it comes from; empty: none.
        checked: It comes from one, and the code matched it with a pattern.
        prefixed: It comes from one, and begins with a word of the code's own.
        clean_keys: A mapping whose keys are not the user's though its values are.
        in_memory: The user's data, but no path: a stream over bytes, an array, a table.
        whole: What of the package it holds as a whole; empty: nothing.
        text: It is a str.
        refs: What it may be.
    """

    origin: str = ""
    checked: bool = False
    prefixed: bool = False
    clean_keys: bool = False
    in_memory: bool = False
    whole: str = ""
    text: bool = False
    refs: frozenset[Ref] = frozenset()

    @property
    def users(self) -> bool:
        """Whether the user decides what it is."""
        return bool(self.origin)

    def only_taint(self) -> "Value":
        """Return the same without what it may be."""
        return Value(self.origin, self.checked) if self.origin else CLEAN

    def shape(self) -> "Value":
        """Return what tells one analysis of a function from another: not which argument it was."""
        return replace(self, origin="x" if self.origin else "")


CLEAN: Final = Value()


def join(values: Iterable[Value]) -> Value:
    """Return what is known of something that is one of `values`."""
    every = [value for value in values if value is not CLEAN]
    if not every:
        return CLEAN
    if len(every) == 1:
        return every[0]
    users = [value for value in every if value.origin]
    refs = frozenset().union(*(value.refs for value in every))
    return Value(
        origin=users[0].origin if users else "",
        checked=bool(users) and all(value.checked for value in users),
        prefixed=bool(users) and all(value.prefixed for value in users),
        clean_keys=bool(users) and all(value.clean_keys for value in users),
        in_memory=bool(users) and all(value.in_memory for value in users),
        whole=next((value.whole for value in every if value.whole), ""),
        text=any(value.text for value in every),
        refs=refs if len(refs) <= _MAX_REFS else frozenset(),
    )


def element_of(value: Value) -> Value:
    """Return what iterating or indexing `value` gives."""
    if value.clean_keys:
        return Value(refs=value.refs)
    return Value(origin=value.origin, checked=value.checked, refs=value.refs)
