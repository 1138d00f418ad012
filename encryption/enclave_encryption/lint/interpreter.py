"""Runs a package's functions on what is known of values instead of on values."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from enclave_encryption.lint.expressions import Frame
from enclave_encryption.lint.guards import Proof
from enclave_encryption.lint.program import Program
from enclave_encryption.lint.statements import StatementRunner
from enclave_encryption.lint.value import (
    CLEAN,
    Function,
    Instance,
    Value,
    join,
)

__all__ = ["Interpreter"]

_MAX_DEPTH: Final = 60
"""Calls inside each other; deeper ones are not followed, which `complete` then says."""
_MAX_CONTEXTS: Final = 24
"""Ways a function is called that are told apart."""
_MAX_CLOSURES: Final = 400
_FUNCTION: Final = ast.FunctionDef | ast.AsyncFunctionDef
_Key = tuple[object, ...]


class Interpreter(StatementRunner):
    """Runs modules and functions; each once for each way it is called.

    Args:
        program: The package.

    Attributes:
        complete: No call was too deep to be followed.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.complete = True
        self._results: dict[_Key, Value] = {}
        self._contexts: dict[ast.AST, int] = {}
        self._active: list[ast.AST] = []
        self._proofs: dict[ast.AST, dict[int | str, Proof | None]] = {}
        self._assigned: dict[ast.AST, set[str]] = {}
        self._loading: dict[str, Frame] = {}

    def forget_results(self) -> None:
        """Look into every function again: something they read has grown."""
        self._results.clear()
        self._contexts.clear()

    def load_module(self, name: str) -> Mapping[str, Value]:
        """Return the names of a module of the package, run on first use."""
        if name in self._loading:
            return self._loading[name].env
        if name not in self.program.globals:
            module = self.program.module(name)
            if module is None:
                return {}
            frame = Frame(module, is_module=True)
            self._loading[name] = frame
            self.block(frame, module.tree.body)
            del self._loading[name]
            self.program.module_loaded(name, frame.env)
        return self.program.globals[name]

    def call_function(
        self,
        function: Function,
        arguments: Sequence[Value],
        keywords: Mapping[str, Value],
        rest: Value = CLEAN,
    ) -> Value:
        """Return what a function of the package gives."""
        bound = self._bind(function, arguments, keywords, rest)
        node = function.node
        shapes = tuple((name, value.shape()) for name, value in bound.items())
        key: _Key = node, function.owner, function.scope, shapes
        if key in self._results:
            return self._results[key]
        count = self._contexts.get(node, 0)
        limit = _MAX_CLOSURES if function.scope is not None else _MAX_CONTEXTS
        if node in self._active:
            return CLEAN  # recursion: what it gives, its other branches give
        if count >= limit:
            return join(value.only_taint() for value in bound.values())
        if len(self._active) >= _MAX_DEPTH:
            self.complete = False
            return join(value.only_taint() for value in bound.values())
        self._contexts[node] = count + 1
        self._active.append(node)
        try:
            value = self._run(self._frame(function, bound), node)
        finally:
            self._active.pop()
        self._results[key] = value
        return value

    def enter(
        self,
        function: Function,
        keywords: Mapping[str, Value],
        rest: Value,
        shown: str,
        name: str,
    ) -> None:
        """Run a function as the user's call of it does.

        Args:
            function: Bound, for a method.
            keywords: The user's arguments by the names of parameters; `*` is for more by position.
            rest: For keywords of any name; `CLEAN` where none are declared.
            shown: What the user gets of its result, as `returns` declares; "" is nothing.
            name: For messages.
        """
        by_name = {key: value for key, value in keywords.items() if key != "*"}
        bound = self._bind(function, [], by_name, rest)
        if function.node.args.vararg is not None:
            bound[function.node.args.vararg.arg] = keywords.get("*", CLEAN)
        frame = self._frame(function, bound)
        frame.shown, frame.name = shown, name
        self._active.append(function.node)
        try:
            value = self._run(frame, function.node)
        finally:
            self._active.pop()
        if isinstance(function.node, ast.Lambda):
            statement = ast.copy_location(ast.Return(function.node.body), function.node.body)
            self.check_returned(frame, statement, value)

    def _frame(self, function: Function, bound: dict[str, Value]) -> Frame:
        frame = Frame(function.module, bound, function.scope, function.owner)
        frame.written_in = self._class_of(function)
        return frame

    def _run(
        self, frame: Frame, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    ) -> Value:
        """Run a function whose arguments are bound in `frame`."""
        given = dict(frame.env)
        if isinstance(node, ast.Lambda):
            return self.evaluate(frame, node.body)
        if self.block(frame, node.body):
            frame.exits.append(frame.env)
        self._note_proofs(node, given, frame)
        return join(frame.returned)

    def proved_arguments(self, function: Function) -> dict[int | str, Proof]:
        """Return what holds of the arguments of a function that came back, by position and name."""
        proofs = self._proofs.get(function.node, {})
        return {key: proof for key, proof in proofs.items() if proof is not None}

    def _note_proofs(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, given: Mapping[str, Value], frame: Frame
    ) -> None:
        if not any(value.users for value in given.values()):
            return
        if node not in self._assigned:
            self._assigned[node] = {
                inner.id
                for inner in ast.walk(node)
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            }
        assigned = self._assigned[node]
        found = self._proofs.setdefault(node, {})
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        skipped = 0 if frame.owner is None else 1
        for name, value in given.items():
            if not value.users or value.checked:
                continue
            ends = [env.get(name, value) for env in frame.exits]
            proof: Proof | None = None
            if ends and name not in assigned and all(not e.users or e.checked for e in ends):
                proof = Proof.PATTERN if any(end.users for end in ends) else Proof.KNOWN
            keys: list[int | str] = [name]
            if name in names:
                keys.append(names.index(name) - skipped)
            for key in keys:
                # However else it was called: what holds is what held every time.
                known = found.get(key, proof)
                found[key] = None if proof is None or known is None else min(known, proof)

    def _class_of(self, function: Function) -> ast.ClassDef | None:
        owner = function.owner
        if owner is None:
            return None
        cls = owner.cls if isinstance(owner, Instance) else owner
        for base in self.program.bases(cls):
            if function.node in base.node.body:
                return base.node
        return None

    def _bind(
        self,
        function: Function,
        arguments: Sequence[Value],
        keywords: Mapping[str, Value],
        rest: Value,
    ) -> dict[str, Value]:
        parameters = function.node.args
        bound: dict[str, Value] = {}
        given = list(arguments)
        if function.owner is not None:
            given.insert(0, Value(refs=frozenset([function.owner])))
        positional = [*parameters.posonlyargs, *parameters.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(parameters.defaults))
        defaults += parameters.defaults
        pairs = [
            *zip(positional, defaults, strict=True),
            *zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True),
        ]
        for index, (parameter, default) in enumerate(pairs):
            name = parameter.arg
            if index < min(len(given), len(positional)):
                bound[name] = given[index]
            elif name in keywords:
                bound[name] = keywords[name]
            elif default is not None and not rest.users:
                bound[name] = self._default(function, default)
            else:
                bound[name] = rest
        if parameters.vararg is not None:
            bound[parameters.vararg.arg] = join([*given[len(positional) :], rest])
        if parameters.kwarg is not None:
            names = {parameter.arg for parameter, _ in pairs}
            extra = join([*(v for k, v in keywords.items() if k not in names), rest])
            bound[parameters.kwarg.arg] = replace(extra, clean_keys=extra.users and not rest.users)
        return bound

    def _default(self, function: Function, default: ast.expr) -> Value:
        if isinstance(default, ast.Constant):
            return CLEAN
        return self.evaluate(Frame(function.module, {}, function.scope), default)
