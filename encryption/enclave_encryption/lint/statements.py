"""What statements do to the names of a frame."""

import ast
from collections.abc import Sequence

from enclave_encryption.lint.calls import CallEvaluator
from enclave_encryption.lint.expressions import Frame
from enclave_encryption.lint.guards import Proof, dotted
from enclave_encryption.lint.value import (
    CLEAN,
    Function,
    Instance,
    PackageClass,
    PackageModule,
    Value,
    element_of,
    join,
)

__all__ = ["StatementRunner"]


class StatementRunner(CallEvaluator):
    """Runs statements."""

    def block(self, frame: Frame, statements: Sequence[ast.stmt]) -> bool:
        """Run statements; return whether what follows them is reached."""
        reached = True
        for statement in statements:  # not all(): a generator's frame for each `elif`
            reached = reached and self._statement(frame, statement)
        return reached

    def _statement(self, frame: Frame, node: ast.stmt) -> bool:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                scope = None if frame.is_module else frame
                ref = Function(frame.module, node, scope=scope)
                self._set_name(frame, node.name, Value(refs=frozenset([ref])))
            case ast.ClassDef():
                self._class(frame, node)
            case ast.Return():
                value = self.evaluate(frame, node.value)
                frame.returned.append(value)
                frame.exits.append(frame.env)
                self.check_returned(frame, node, value)
                return False
            case ast.Assign():
                self._assignment(frame, node.targets, node.value)
            case ast.AnnAssign() if node.value is not None:
                self._assignment(frame, [node.target], node.value)
            case ast.AugAssign():
                sum_ = ast.BinOp(_loaded(node.target), node.op, node.value)
                value = self.evaluate(frame, ast.copy_location(sum_, node))
                self.assign(frame, node.target, value)
            case ast.If():
                return self._if(frame, node)
            case ast.For() | ast.AsyncFor() | ast.While():
                return self._loop(frame, node)
            case ast.Try() | ast.TryStar():
                return self._try(frame, node)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    value = self.evaluate(frame, item.context_expr)
                    if item.optional_vars is not None:
                        self.assign(frame, item.optional_vars, value)
                return self.block(frame, node.body)
            case ast.Match():
                return self._match(frame, node)
            case ast.Raise():
                self.evaluate(frame, node.exc)
                return False
            case ast.Break() | ast.Continue():
                frame.jumps.append(frame.env)
                return False
            case ast.Expr():
                self._expression(frame, node)
            case ast.Assert():
                self.evaluate(frame, node.test)
                self.refine(frame, self.proofs(frame, node.test, True))
            case ast.Global():
                frame.global_names.update(node.names)
            case ast.Nonlocal():
                frame.outer_names.update(node.names)
            case ast.Import() | ast.ImportFrom():
                self._import(frame, node)
        return True

    def _expression(self, frame: Frame, node: ast.Expr) -> None:
        self.evaluate(frame, node.value)
        if isinstance(node.value, ast.Yield | ast.YieldFrom):
            self.check_returned(frame, node, frame.returned[-1])

    def check_returned(self, frame: Frame, node: ast.Return | ast.Expr, value: Value) -> None:
        """Report an exported function that gives away what it should only use."""
        if not frame.shown:
            return
        if value.whole:
            self.report(
                frame, node, "weights", f"{frame.name} returns {value.whole}: users can keep it"
            )
        elif frame.shown in ("value", "iter"):
            names = sorted(r.cls.node.name for r in value.refs if isinstance(r, Instance))
            if names and not value.users:
                self.report(
                    frame, node, "reference",
                    f"{frame.name} returns an object of class {names[0]}, which cannot leave by "
                    "value: the call fails",
                )  # fmt: skip

    def _class(self, frame: Frame, node: ast.ClassDef) -> None:
        cls = PackageClass(frame.module, node)
        self._set_name(frame, node.name, Value(refs=frozenset([cls])))
        inner = Frame(frame.module, {}, None if frame.is_module else frame)
        for statement in node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                value = self.evaluate(inner, statement.value)
                targets = (
                    statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                )
                for target in targets:
                    if isinstance(target, ast.Name):
                        inner.env[target.id] = value
                        self.program.set_field(Instance(cls), target.id, value)

    def _assignment(self, frame: Frame, targets: list[ast.expr], node: ast.expr) -> None:
        value = self.evaluate(frame, node)
        for target in targets:
            if (
                isinstance(target, ast.Tuple | ast.List)
                and isinstance(node, ast.Tuple | ast.List)
                and len(target.elts) == len(node.elts)
                and not any(isinstance(e, ast.Starred) for e in (*target.elts, *node.elts))
            ):
                values = [self.evaluate(frame, entry) for entry in node.elts]
                for inner, entry in zip(target.elts, values, strict=True):
                    self.assign(frame, inner, entry)
            else:
                self.assign(frame, target, value)
            if isinstance(node, ast.Dict) and isinstance(target, ast.Name):
                for key, kept in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant):
                        path = f"{target.id}[{key.value!r}]"
                        frame.env[path] = self.evaluate(frame, kept)

    def assign(self, frame: Frame, target: ast.expr, value: Value) -> None:
        """Bind `target`."""
        match target:
            case ast.Name():
                self._set_name(frame, target.id, value)
            case ast.Tuple() | ast.List():
                items = [e for e in target.elts if isinstance(e, ast.Name)]
                for position, inner in enumerate(target.elts):
                    # `for key, value in kwargs.items()`: the keys are the code's own.
                    key = value.clean_keys and position == 0 and len(items) == 2
                    part = Value(value.origin, value.checked, refs=value.refs)
                    self.assign(frame, inner, CLEAN if key else part)
            case ast.Starred():
                self.assign(frame, target.value, value)
            case ast.Attribute():
                base = self.evaluate(frame, target.value)
                for ref in base.refs:
                    if isinstance(ref, Instance | PackageClass):
                        instance = ref if isinstance(ref, Instance) else Instance(ref)
                        self.program.set_field(instance, target.attr, value)
                    elif isinstance(ref, PackageModule):
                        self.program.set_global(ref.name, target.attr, value)
                if dotted(target):
                    frame.env[dotted(target)] = value
            case ast.Subscript():
                index = self.evaluate(frame, target.slice)
                kept: dict[str, Value] = {}
                if isinstance(target.slice, ast.Constant) and dotted(target.value):
                    # An entry of its own: the others stay what they are.
                    start = f"{dotted(target.value)}["
                    kept = {path: v for path, v in frame.env.items() if path.startswith(start)}
                    kept[f"{start}{target.slice.value!r}]"] = value
                self.grow(frame, target.value, join([value, index.only_taint()]))
                frame.env.update(kept)

    def _set_name(self, frame: Frame, name: str, value: Value) -> None:
        if name in frame.global_names:
            self.program.set_global(frame.module.name, name, value)
            return
        scope = frame
        if name in frame.outer_names:
            while scope.parent is not None and (scope is frame or name not in scope.env):
                scope = scope.parent
        scope.env[name] = value
        for path in [p for p in scope.env if p.startswith((f"{name}.", f"{name}["))]:
            del scope.env[path]

    def _branches(self, frame: Frame, branches: Sequence[tuple[dict[str, Value], bool]]) -> bool:
        """Go on with what any branch that goes on left."""
        alive = [env for env, reached in branches if reached]
        if alive:
            frame.env = _merged(alive)
        return bool(alive)

    def _if(self, frame: Frame, node: ast.If) -> bool:
        self.evaluate(frame, node.test)
        branches: list[tuple[dict[str, Value], bool]] = []
        before = frame.env
        for truth, body in ((True, node.body), (False, node.orelse)):
            frame.env = dict(before)
            self.refine(frame, self.proofs(frame, node.test, truth))
            reached = self.block(frame, body)
            branches.append((frame.env, reached))
        frame.env = before
        return self._branches(frame, branches)

    def _loop(self, frame: Frame, node: ast.For | ast.AsyncFor | ast.While) -> bool:
        outer, frame.jumps = frame.jumps, []
        for _ in range(2):  # the second time with what the first left
            before = frame.env
            frame.env = dict(before)
            if isinstance(node, ast.While):
                self.evaluate(frame, node.test)
                self.refine(frame, self.proofs(frame, node.test, True))
            else:
                self.assign(frame, node.target, _items(self.evaluate(frame, node.iter)))
            reached = self.block(frame, node.body)
            ends = [before, *frame.jumps, *([frame.env] if reached else [])]
            frame.env = _merged(ends)
        frame.jumps = outer
        return self.block(frame, node.orelse)

    def _try(self, frame: Frame, node: ast.Try | ast.TryStar) -> bool:
        before = dict(frame.env)
        reached = self.block(frame, node.body)
        broken = _merged([before, frame.env])
        if reached:
            reached = self.block(frame, node.orelse)
        branches = [(frame.env, reached)]
        for handler in node.handlers:
            frame.env = dict(broken)
            if handler.name:
                frame.env[handler.name] = CLEAN
            reached = self.block(frame, handler.body)
            branches.append((frame.env, reached))
        alive = self._branches(frame, branches)
        return self.block(frame, node.finalbody) and alive

    def _match(self, frame: Frame, node: ast.Match) -> bool:
        subject = self.evaluate(frame, node.subject)
        path = dotted(node.subject)
        before = frame.env
        branches: list[tuple[dict[str, Value], bool]] = []
        exhaustive = False
        for case in node.cases:
            frame.env = dict(before)
            for inner in ast.walk(case.pattern):
                name = getattr(inner, "name", None) or getattr(inner, "rest", None)
                if isinstance(name, str):
                    frame.env[name] = element_of(subject) if inner is not case.pattern else subject
            if path and _is_literal(case.pattern):
                self.refine(frame, {path: Proof.KNOWN})
            if case.guard is not None:
                self.evaluate(frame, case.guard)
                self.refine(frame, self.proofs(frame, case.guard, True))
            wild = isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
            exhaustive = exhaustive or (wild and case.guard is None)
            reached = self.block(frame, case.body)
            branches.append((frame.env, reached))
        if not exhaustive:
            branches.append((before, True))
        frame.env = before
        return self._branches(frame, branches)

    def _import(self, frame: Frame, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                value = self.program.imported(name)
                self._set_name(frame, alias.asname or name, value)
            return
        base = self.program.import_base(frame.module, node)
        own = self.program.module(base) is not None
        names = self.load_module(base) if own else {}
        for alias in node.names:
            if alias.name == "*":
                for name, value in list(names.items()):
                    if not name.startswith("_"):
                        self._set_name(frame, name, value)
                continue
            known = names.get(alias.name)
            if known is None:
                known = self.program.imported(f"{base}.{alias.name}" if base else alias.name)
            self._set_name(frame, alias.asname or alias.name, known)


def _items(value: Value) -> Value:
    """Return what a `for` loop binds; of `kwargs.items()` still told apart by its target."""
    return value if value.clean_keys else element_of(value)


def _merged(environments: Sequence[dict[str, Value]]) -> dict[str, Value]:
    if len(environments) == 1:
        return environments[0]
    merged: dict[str, Value] = {}
    for name in dict.fromkeys(name for env in environments for name in env):
        if "." in name or "[" in name:
            # An attribute that one branch does not know has there what the class has.
            if all(name in env for env in environments):
                merged[name] = join(env[name] for env in environments)
        else:
            merged[name] = join(env[name] for env in environments if name in env)
    return merged


def _loaded(target: ast.expr) -> ast.expr:
    return ast.copy_location(ast.parse(ast.unparse(target), mode="eval").body, target)


def _is_literal(pattern: ast.pattern) -> bool:
    if isinstance(pattern, ast.MatchOr):
        return all(_is_literal(inner) for inner in pattern.patterns)
    if isinstance(pattern, ast.MatchAs) and pattern.pattern is not None:
        return _is_literal(pattern.pattern)
    return isinstance(pattern, ast.MatchValue | ast.MatchSingleton)
