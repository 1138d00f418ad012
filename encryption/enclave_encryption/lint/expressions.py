"""What an expression is worth: every kind of it but calls."""

import ast
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from enclave_encryption.lint.finding import Finding
from enclave_encryption.lint.guards import Proof, Surroundings, dotted, proved, refined
from enclave_encryption.lint.names import model_name, weights_name
from enclave_encryption.lint.program import Program
from enclave_encryption.lint.sinks import CLEAN_ATTRIBUTES
from enclave_encryption.lint.value import (
    CLEAN,
    External,
    Function,
    Instance,
    PackageClass,
    PackageModule,
    Value,
    element_of,
    join,
)
from enclave_encryption.package_code import Module

__all__ = ["BudgetSpentError", "ExpressionEvaluator", "Frame", "begins_with_word"]

_MAX_STEPS: Final = 300_000
"""Some five seconds; no package's exports that a person wrote come near."""
_MAX_INLINED: Final = 3
_DICTS: Final = frozenset({"builtins.globals", "builtins.locals", "builtins.vars"})


class BudgetSpentError(Exception):
    """The code is larger than the linter follows."""


@dataclass
class Frame:
    """One function while it is looked into.

    Attributes:
        module: Where it is written.
        env: What its names are now; also dotted ones that were assigned, such as `self.path`.
        parent: The frame around it.
        owner: What `self` is.
        shown: What the user gets of what it returns: "" not the user, else as `returns` declares.
        name: For messages.
        returned: What it returns, so far.
        exits: `env` where it ended normally.
        jumps: `env` where the innermost loop was left or begun anew.
        global_names: Declared `global`.
        outer_names: Declared `nonlocal`.
        is_module: The module's own body.
        written_in: The class whose method it is.
    """

    module: Module
    env: dict[str, Value] = field(default_factory=dict)
    parent: "Frame | None" = None
    owner: Instance | PackageClass | None = None
    shown: str = ""
    name: str = ""
    returned: list[Value] = field(default_factory=list)
    exits: list[dict[str, Value]] = field(default_factory=list)
    jumps: list[dict[str, Value]] = field(default_factory=list)
    global_names: set[str] = field(default_factory=set)
    outer_names: set[str] = field(default_factory=set)
    is_module: bool = False
    written_in: ast.ClassDef | None = None

    # A closure is told from another by the frame it was made in.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class ExpressionEvaluator(ABC):
    """Evaluates expressions in a frame.

    Args:
        program: The package.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.findings: dict[tuple[str, int, str], Finding] = {}
        self._steps = 0

    @abstractmethod
    def call(self, frame: Frame, node: ast.Call) -> Value:
        """Return what a call gives, and report what it does."""

    @abstractmethod
    def call_function(
        self,
        function: Function,
        arguments: Sequence[Value],
        keywords: Mapping[str, Value],
        rest: Value = CLEAN,
    ) -> Value:
        """Return what a function of the package gives."""

    @abstractmethod
    def load_module(self, name: str) -> Mapping[str, Value]:
        """Return the names of a module of the package."""

    @abstractmethod
    def assign(self, frame: Frame, target: ast.expr, value: Value) -> None:
        """Bind `target`."""

    def report(self, frame: Frame, node: ast.expr | ast.stmt, rule: str, message: str) -> None:
        """Add a finding, once for each line and rule."""
        key = frame.module.path, node.lineno, rule
        last = node.end_lineno or node.lineno
        self.findings.setdefault(key, Finding(*key, message, last))

    def evaluate(self, frame: Frame, node: ast.expr | None) -> Value:
        """Return what is known of `node`; whatever is dangerous in it is reported."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise BudgetSpentError
        match node:
            case None:
                return CLEAN
            case ast.Constant():
                return Value(text=True) if isinstance(node.value, str) else CLEAN
            case ast.Name():
                return self.name(frame, node.id)
            case ast.Attribute():
                return self._attribute(frame, node)
            case ast.Call():
                return self.call(frame, node)
            case ast.Subscript():
                return self._subscript(frame, node)
            case ast.BinOp():
                return self._binary(frame, node)
            case ast.BoolOp():
                return self._boolean(frame, node)
            case ast.IfExp():
                self.evaluate(frame, node.test)
                return join(
                    self._assuming(frame, node.test, truth, branch)
                    for truth, branch in ((True, node.body), (False, node.orelse))
                )
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                return self._comprehension(frame, node.generators, [node.elt])
            case ast.DictComp():
                return self._comprehension(frame, node.generators, [node.key, node.value])
            case ast.Lambda():
                scope = None if frame.is_module else frame
                return Value(refs=frozenset([Function(frame.module, node, scope=scope)]))
            case ast.NamedExpr():
                value = self.evaluate(frame, node.value)
                self.assign(frame, node.target, value)
                return value
            case _:
                return self._other(frame, node)

    def name(self, frame: Frame, name: str) -> Value:
        """Return what a name stands for."""
        scope: Frame | None = frame
        while scope is not None:
            if name in scope.env and name not in scope.global_names:
                return scope.env[name]
            scope = scope.parent
        known = self.load_module(frame.module.name).get(name)
        if known is None:
            return Value(refs=frozenset([External(f"builtins.{name}")]))
        return _by_name(known, name)

    def refine(self, frame: Frame, proofs: Mapping[str, Proof]) -> None:
        """Take over what a condition proved."""
        for path, proof in proofs.items():
            base = path.partition(".")[0]
            if path in frame.env:
                frame.env[path] = refined(frame.env[path], proof)
            elif path != base and base in frame.env:
                node = ast.parse(path, mode="eval").body
                frame.env[path] = refined(self.evaluate(frame, node), proof)

    def proofs(self, frame: Frame, test: ast.expr, truth: bool) -> dict[str, Proof]:
        """Return what `test` proves in this frame."""
        here = Surroundings(
            lambda node: self.evaluate(frame, node).users,
            lambda node: self._inlined(frame, node, 0),
        )
        return proved(test, truth, here)

    def _inlined(
        self, frame: Frame, node: ast.Call, depth: int
    ) -> tuple[ast.expr, Mapping[str, str], Surroundings] | None:
        """Look into a function that only returns an expression, such as `name in ALLOWED`."""
        known = depth < _MAX_INLINED and dotted(node.func)
        refs = list(self.evaluate(frame, node.func).refs) if known else []
        function = refs[0] if len(refs) == 1 else None
        if not isinstance(function, Function) or isinstance(function.node, ast.Lambda):
            return None
        body = function.node.body
        last = body[-1]
        documented = isinstance(body[0], ast.Expr)
        if len(body) != 1 + documented or not isinstance(last, ast.Return) or last.value is None:
            return None
        parameters = [a.arg for a in (*function.node.args.posonlyargs, *function.node.args.args)]
        inner = Frame(function.module, {}, function.scope, function.owner)
        if function.owner is not None and parameters:
            inner.env[parameters.pop(0)] = Value(refs=frozenset([function.owner]))
        names = {name: dotted(given) for name, given in zip(parameters, node.args, strict=False)}
        names.update({k.arg: dotted(k.value) for k in node.keywords if k.arg})

        def is_users(part: ast.expr) -> bool:
            # Without running anything: what would be reported belongs to a call, not to this.
            used = {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
            if used & set(names):
                return True
            return bool(dotted(part)) and self.evaluate(inner, part).users

        there = Surroundings(is_users, lambda call: self._inlined(inner, call, depth + 1))
        return last.value, names, there

    def _assuming(self, frame: Frame, test: ast.expr, truth: bool, node: ast.expr) -> Value:
        before = frame.env
        frame.env = dict(before)
        self.refine(frame, self.proofs(frame, test, truth))
        value = self.evaluate(frame, node)
        frame.env = before
        return value

    def _attribute(self, frame: Frame, node: ast.Attribute) -> Value:
        path = dotted(node)
        if path and path in frame.env:
            return frame.env[path]
        return self.attribute(self.evaluate(frame, node.value), node.attr)

    def attribute(self, base: Value, name: str) -> Value:
        """Return an attribute of a value."""
        found: list[Value] = []
        for ref in base.refs:
            if isinstance(ref, PackageModule):
                known = self.load_module(ref.name).get(name)
                if known is None:
                    known = self.program.imported(f"{ref.name}.{name}")
                found.append(_by_name(known, name))
            elif isinstance(ref, External):
                found.append(_external_attribute(ref, name))
            elif isinstance(ref, Instance | PackageClass):
                found.append(self._member(ref, name))
        if base.users:
            if name in CLEAN_ATTRIBUTES:
                return join(found)
            of_path = any(
                isinstance(ref, External) and ref.name.startswith("pathlib.") for ref in base.refs
            )
            checked = base.checked or (of_path and name in ("name", "stem", "suffix"))
            found.append(Value(base.origin, checked))
        elif name == "__dict__":
            found.append(Value(whole="everything an object holds"))
        elif base.whole and name in ("T", "values", "flat", "data", "A", "files"):
            found.append(Value(whole=base.whole))
        result = join(found)
        return result if base.users else _by_name(result, name)

    def _member(self, ref: Instance | PackageClass, name: str) -> Value:
        cls = ref.cls if isinstance(ref, Instance) else ref
        stored = self.program.field(cls, name)
        found = [] if stored is None else [stored]
        method = self.program.method(ref, name)
        if method is not None:
            if self.program.is_property(method):
                found.append(self.call_function(method, [], {}))
            else:
                found.append(Value(refs=frozenset([method])))
        return join(found)

    def _subscript(self, frame: Frame, node: ast.Subscript) -> Value:
        path = dotted(node.value)
        base = self.evaluate(frame, node.value)
        index = self.evaluate(frame, node.slice)
        spaces = isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__"
        if isinstance(node.value, ast.Call):
            called = self.evaluate(frame, node.value.func)
            spaces = any(isinstance(r, External) and r.name in _DICTS for r in called.refs)
        if spaces and index.users:
            self.report(
                frame, node, "getattr",
                f"{ast.unparse(node.value)}[...] reaches whatever name comes from the user "
                f"({index.origin})",
            )  # fmt: skip
        if isinstance(node.slice, ast.Slice) and not (
            node.slice.lower or node.slice.upper or node.slice.step
        ):
            return base
        if isinstance(node.slice, ast.Constant) and f"{path}[{node.slice.value!r}]" in frame.env:
            return frame.env[f"{path}[{node.slice.value!r}]"]
        return replace(element_of(base), clean_keys=False, origin=base.origin)

    def _binary(self, frame: Frame, node: ast.BinOp) -> Value:
        left, right = self.evaluate(frame, node.left), self.evaluate(frame, node.right)
        if isinstance(node.op, ast.Mod) and left.users:
            values = isinstance(node.right, ast.Tuple | ast.Dict) or right.text or left.text
            if values or (right.whole and isinstance(node.right, ast.Attribute)):
                self.report(
                    frame,
                    node,
                    "format",
                    f"% takes its format string from the user ({left.origin})",
                )
        both = join([left.only_taint(), right.only_taint()])
        refs = left.refs | right.refs if isinstance(node.op, ast.Div) else frozenset()
        paths = frozenset(r for r in refs if isinstance(r, External) and r.made)
        prefixed = both.users and (left.prefixed or begins_with_word(node.left))
        return replace(both, text=left.text or right.text, refs=paths, prefixed=prefixed)

    def _boolean(self, frame: Frame, node: ast.BoolOp) -> Value:
        before = frame.env
        frame.env = dict(before)
        values: list[Value] = []
        for operand in node.values:
            values.append(self.evaluate(frame, operand))
            truth = isinstance(node.op, ast.And)
            self.refine(frame, self.proofs(frame, operand, truth))
        frame.env = before
        return join(values)

    def _comprehension(
        self, frame: Frame, generators: list[ast.comprehension], results: list[ast.expr]
    ) -> Value:
        before = frame.env
        frame.env = dict(before)
        whole = ""
        for generator in generators:
            source = self.evaluate(frame, generator.iter)
            whole = whole or ("" if generator.ifs else source.whole)
            self.assign(frame, generator.target, element_of(source))
            for test in generator.ifs:
                self.evaluate(frame, test)
                self.refine(frame, self.proofs(frame, test, True))
        values = [self.evaluate(frame, result) for result in results]
        frame.env = before
        result = join(values)
        keyed = len(values) == 2 and not values[0].users and result.users
        return replace(
            result, clean_keys=keyed, whole="" if result.users else whole or result.whole
        )

    def _other(self, frame: Frame, node: ast.expr) -> Value:
        match node:
            case ast.Dict():
                keys = [self.evaluate(frame, key) for key in node.keys if key is not None]
                values = [self.evaluate(frame, value) for value in node.values]
                clean = not any(key.users for key in keys)
                result = join([*(key.only_taint() for key in keys), *values])
                unpacked = any(key is None for key in node.keys)
                return replace(result, clean_keys=clean and not unpacked, text=False)
            case ast.List() | ast.Tuple() | ast.Set():
                result = join(self.evaluate(frame, entry) for entry in node.elts)
                return replace(result, text=False, in_memory=False)
            case ast.JoinedStr():
                parts = join(self.evaluate(frame, part).only_taint() for part in node.values)
                prefixed = parts.users and begins_with_word(node.values[0])
                return replace(parts, text=True, prefixed=prefixed)
            case ast.FormattedValue():
                self.evaluate(frame, node.format_spec)
                return self.evaluate(frame, node.value)
            case ast.Compare():
                self._all(frame, [node.left, *node.comparators])
                return CLEAN
            case ast.UnaryOp():
                value = self.evaluate(frame, node.operand)
                return CLEAN if isinstance(node.op, ast.Not) else value.only_taint()
            case ast.Starred() | ast.Await():
                return self.evaluate(frame, node.value)
            case ast.Yield() | ast.YieldFrom():
                value = self.evaluate(frame, node.value)
                frame.returned.append(value)
                return CLEAN
            case ast.Slice():
                return join(self._all(frame, [node.lower, node.upper, node.step]))
            case _:
                return CLEAN

    def _all(self, frame: Frame, nodes: Iterable[ast.expr | None]) -> list[Value]:
        return [self.evaluate(frame, node) for node in nodes]


def _external_attribute(ref: External, name: str) -> Value:
    # Of an object that a call made we know only which library it is of.
    inner = ref if ref.made else External(f"{ref.name}.{name}")
    return Value(refs=frozenset([inner]))


def begins_with_word(node: ast.expr) -> bool:
    """Return whether a text, or a format, begins with a word: no `__class__` comes of it."""
    return isinstance(node, ast.Constant) and (
        isinstance(node.value, str) and node.value.lstrip("_")[:1].isalnum()
    )


def _by_name(value: Value, name: str) -> Value:
    """Call a value weights, or a model, that is called so."""
    made = all(isinstance(ref, External) and ref.made for ref in value.refs)
    if value.users or value.whole or not made:
        return value
    if weights_name(name):
        return replace(value, whole=f"what is called `{name}`")
    if model_name(name):
        return replace(value, whole=f"the model itself, `{name}`")
    return value
