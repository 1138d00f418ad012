"""What a call does with the user's values.

The package's own functions are followed; those of libraries are looked up in tables.
"""

import ast
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from enclave_encryption.lint.expressions import ExpressionEvaluator, Frame, begins_with_word
from enclave_encryption.lint.guards import Proof, dotted
from enclave_encryption.lint.sinks import (
    CLEAN_CALLS,
    CLEAN_METHODS,
    CLEAN_PREFIXES,
    COPIES,
    COPYING_METHODS,
    FUNCTION_SINKS,
    LOADERS,
    METHOD_SINKS,
    MUTATORS,
    PATH_METHODS,
    PATH_PREFIXES,
    PATTERN_CALLS,
    STREAMS,
    WHOLE_METHODS,
)
from enclave_encryption.lint.value import (
    CLEAN,
    External,
    Function,
    Instance,
    PackageClass,
    Ref,
    Value,
    element_of,
    join,
)

__all__ = ["Arguments", "CallEvaluator"]

_MESSAGES: Final = {
    "eval": "evaluates, as code, text from the user",
    "format": "takes its format string from the user, which can read attributes of the values",
    "pickle": "unpickles data from the user, which runs whatever it says",
    "getattr": "reaches whatever name comes from the user",
    "import": "loads a module whose name comes from the user",
    "open": "opens a path from the user",
    "run": "starts a command from the user",
    "regex": "takes its pattern from the user, and a pattern can be made to run for ever",
    "sql": "runs SQL text from the user",
}
_EVEN_CHECKED: Final = frozenset({"eval", "getattr", "import"})
"""A pattern such as \\w+ still lets through names of what must stay inside."""
_ENUMS: Final = frozenset({"Enum", "StrEnum", "IntEnum", "Flag", "IntFlag"})
_FRAMES: Final = frozenset({"pandas", "geopandas", "dask", "modin", "polars", "cudf"})
_SEARCHED: Final = frozenset({"k", "r", "return_distance", "distance_upper_bound", "p", "eps"})
_NEAREST: Final = ("tree", "index", "knn", "neighbors", "neighbours")
_PATTERN_METHODS: Final = frozenset({"contains", "match", "fullmatch", "extract", "findall"})
_LOOK_UPS: Final = frozenset({"get", "pop", "setdefault"})
_FROM_FILE: Final = "what a file of the package holds"


@dataclass(frozen=True)
class Arguments:
    """Of one call.

    Attributes:
        given: By position, before the first `*`.
        keywords: By name.
        rest: Of `*args` and `**kwargs`, together.
    """

    given: Sequence[Value]
    keywords: Mapping[str, Value]
    rest: Value

    def every(self) -> list[Value]:
        """Return all of them."""
        return [*self.given, *self.keywords.values(), self.rest]

    def at(self, position: int, keywords: Iterable[str]) -> Value:
        """Return one that may be given by position or by name."""
        if position < len(self.given):
            return self.given[position]
        named = [self.keywords[name] for name in keywords if name in self.keywords]
        return named[0] if named else element_of(self.rest)


class CallEvaluator(ExpressionEvaluator):
    """Evaluates calls."""

    @abstractmethod
    def proved_arguments(self, function: Function) -> Mapping[int | str, Proof]:
        """Return what holds of the arguments of a function that came back."""

    def call(self, frame: Frame, node: ast.Call) -> Value:
        """Return what a call gives, and report what it does."""
        function = node.func
        base = CLEAN
        if isinstance(function, ast.Attribute):
            base = self.evaluate(frame, function.value)
            path = dotted(function)
            bound = frame.env.get(path) if path else None
            callee = self.attribute(base, function.attr) if bound is None else bound
        else:
            callee = self.evaluate(frame, function)
        arguments = self._arguments(frame, node)
        found: list[Value] = []
        for ref in sorted(callee.refs, key=_order):
            if isinstance(ref, Function):
                found.append(self._own(frame, node, ref, arguments))
            elif isinstance(ref, PackageClass):
                found.append(self._construct(ref, arguments))
            elif isinstance(ref, Instance):
                method = self.program.method(ref, "__call__")
                if method is not None:
                    found.append(self._own(frame, node, method, arguments))
            elif isinstance(ref, External) and not ref.made:
                found.append(self._external(frame, node, ref.name, arguments))
        if found:
            return join(found)
        self._call_back(arguments, base)
        if isinstance(function, ast.Attribute):
            return self._method(frame, node, function, base, arguments)
        whole = next((value.whole for value in arguments.every() if value.whole), "")
        if callee.users and not callee.refs and whole:
            shown = dotted(function) or "a function"
            self.report(
                frame, node, "weights", f"{shown}(), the user's ({callee.origin}), is given {whole}"
            )
        taint = join(value.only_taint() for value in (callee, *arguments.every()))
        return replace(taint, refs=_made(callee.refs))

    def _arguments(self, frame: Frame, node: ast.Call) -> Arguments:
        given: list[Value] = []
        rest: list[Value] = []
        for argument in node.args:
            value = self.evaluate(frame, argument)
            if isinstance(argument, ast.Starred):
                rest.append(element_of(value))
            elif rest:
                rest.append(value)
            else:
                given.append(value)
        keywords: dict[str, Value] = {}
        for keyword in node.keywords:
            value = self.evaluate(frame, keyword.value)
            if keyword.arg is None:
                rest.append(replace(element_of(value), origin=value.origin))
            else:
                keywords[keyword.arg] = value
        return Arguments(given, keywords, join(rest))

    def _own(self, frame: Frame, node: ast.Call, ref: Function, arguments: Arguments) -> Value:
        value = self.call_function(ref, arguments.given, arguments.keywords, arguments.rest)
        for position, proof in self.proved_arguments(ref).items():
            # What a checking function let pass is checked in its caller, too.
            if isinstance(position, int):
                given = node.args[position] if position < len(node.args) else None
            else:
                given = next((k.value for k in node.keywords if k.arg == position), None)
            path = dotted(given)
            if path:
                self.refine(frame, {path: proof})
        return value

    def _construct(self, cls: PackageClass, arguments: Arguments) -> Value:
        bases = list(self.program.bases(cls))
        if any(dotted(b).rpartition(".")[2] in _ENUMS for c in bases for b in c.node.bases):
            return CLEAN  # only its members come through
        instance = Instance(cls)
        init = self.program.method(instance, "__init__")
        if init is not None:
            self.call_function(init, arguments.given, arguments.keywords, arguments.rest)
        else:
            # A dataclass, a NamedTuple: its fields in order.
            fields = [
                statement.target.id
                for base in reversed(bases)
                for statement in base.node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            ]
            for position, name in enumerate(dict.fromkeys(fields)):
                self.program.set_field(instance, name, arguments.at(position, [name]))
            after = self.program.method(instance, "__post_init__")
            if after is not None:
                self.call_function(after, [], {})
        return Value(refs=frozenset([instance]))

    def _external(self, frame: Frame, node: ast.Call, name: str, arguments: Arguments) -> Value:
        self._check_sink(frame, node, name, arguments)
        given = arguments.given
        every = arguments.every()
        if name == "builtins.super":
            return self._super(frame)
        if name == "builtins.getattr" and len(node.args) > 1:
            attribute = node.args[1]
            if isinstance(attribute, ast.Constant) and isinstance(attribute.value, str):
                return join([self.attribute(given[0], attribute.value), *given[2:]])
        self._call_back(arguments, CLEAN)
        if name in CLEAN_CALLS or name.startswith(CLEAN_PREFIXES):
            return Value(refs=frozenset([External(name, made=True)]))
        taint = join(value.only_taint() for value in every)
        first = given[0] if given else CLEAN
        whole = ""
        if name in COPIES and first.whole:
            whole = first.whole
        elif name == "builtins.vars" and given and not first.users:
            whole = "everything an object holds"
        elif (name in LOADERS or name.startswith(PATH_PREFIXES)) and every and not taint.users:
            whole = _FROM_FILE
        refs: frozenset[Ref] = frozenset([External(name, made=True)])
        if name in ("functools.partial", "builtins.iter", "builtins.reversed", "builtins.list"):
            refs |= first.refs
        return replace(
            taint,
            checked=taint.checked or (taint.users and name in PATTERN_CALLS),
            in_memory=taint.users and (name in STREAMS or name.startswith("numpy.")),
            text=name in ("builtins.str", "builtins.repr", "os.path.join"),
            whole=whole,
            refs=refs,
        )

    def _check_sink(self, frame: Frame, node: ast.Call, name: str, arguments: Arguments) -> None:
        sink = FUNCTION_SINKS.get(name)
        if sink is None and name.startswith(PATH_PREFIXES):
            sink = "open", 0, ("filepath_or_buffer", "path", "io", "source")
        if sink is None and name.endswith(".from_pretrained"):
            sink = METHOD_SINKS["from_pretrained"]
        if sink is None:
            return
        rule, position, keywords = sink
        if name == "numpy.load" and not _is(node, "allow_pickle", False, missing=True):
            rule = "pickle"
        elif name == "torch.load" and _is(node, "weights_only", True):
            rule = "open"
        elif name.startswith("yaml.") and _safe_loader(node):
            return
        self._report_if_users(frame, node, rule, arguments.at(position, keywords))

    def _report_if_users(self, frame: Frame, node: ast.Call, rule: str, value: Value) -> None:
        if not value.users or (value.checked and rule not in _EVEN_CHECKED):
            return
        if value.in_memory and rule in ("open", "sql", "import"):
            return
        if value.prefixed and rule == "getattr":
            return  # `getattr(self, f"visit_{kind}")` reaches the methods that are meant
        shown = dotted(node.func) or ast.unparse(node.func).replace("\n", " ")[-40:]
        self.report(frame, node, rule, f"{shown}() {_MESSAGES[rule]} ({value.origin})")

    def _method(
        self,
        frame: Frame,
        node: ast.Call,
        function: ast.Attribute,
        base: Value,
        arguments: Arguments,
    ) -> Value:
        name = function.attr
        self._check_method(frame, node, function, base, arguments)
        every = arguments.every()
        taint = join(value.only_taint() for value in every)
        if name in MUTATORS:
            self.grow(frame, function.value, join(every))
        if name in CLEAN_METHODS:
            return CLEAN
        refs = _made(base.refs)
        if not base.users and name in _LOOK_UPS:
            # The user chooses among the code's own values.
            return replace(
                join([*arguments.given[1:], *arguments.keywords.values()]), refs=base.refs
            )
        if base.clean_keys and name == "keys":
            return Value(refs=refs)
        if name in ("items", "values", "copy", "keys"):
            whole = base.whole if name != "keys" else ""
            return replace(base, whole=whole, in_memory=False)
        whole = ""
        if name in WHOLE_METHODS and not base.users:
            whole = f"all weights, from {name}()"
        elif base.whole and name in COPYING_METHODS and not taint.users:
            whole = base.whole
        elif name in ("read_text", "read_bytes", "open") and _is_path(base) and not base.users:
            whole = _FROM_FILE
        result = join([base.only_taint(), taint])
        prefixed = result.users and name == "format" and begins_with_word(function.value)
        text = name in ("join", "format")
        return replace(result, refs=refs, whole=whole, text=text, prefixed=prefixed)

    def _check_method(
        self,
        frame: Frame,
        node: ast.Call,
        function: ast.Attribute,
        base: Value,
        arguments: Arguments,
    ) -> None:
        name = function.attr
        if name in ("format", "format_map") and not base.in_memory:
            self._report_if_users(frame, node, "format", base)
        if name == "update" and dotted(function.value).endswith("__dict__"):
            names = [value for value in (*arguments.given, arguments.rest) if not value.clean_keys]
            self._report_if_users(frame, node, "getattr", join(names))
        if name in PATH_METHODS and _is_path(base):
            self._report_if_users(frame, node, "open", base)
        if isinstance(function.value, ast.Attribute) and function.value.attr == "str":
            literal = not _is(node, "regex", False)
            if name in _PATTERN_METHODS or (name == "replace" and _is(node, "regex", True)):
                value = arguments.at(0, ("pat",)) if literal else CLEAN
                self._report_if_users(frame, node, "regex", value)
        if name not in METHOD_SINKS:
            return
        rule, position, keywords = METHOD_SINKS[name]
        value = arguments.at(position, keywords)
        libraries = {r.name.partition(".")[0] for r in base.refs if isinstance(r, External)}
        if "duckdb" in libraries:
            rule = "sql"
        elif name in ("query", "eval"):
            # Trees of points have a `query`, too.
            hint = dotted(function.value).casefold()
            others = bool(libraries) and not libraries & _FRAMES and not base.users
            searched = any(keyword.arg in _SEARCHED for keyword in node.keywords)
            if others or searched or value.in_memory or any(word in hint for word in _NEAREST):
                return
        self._report_if_users(frame, node, rule, value)

    def _super(self, frame: Frame) -> Value:
        scope: Frame | None = frame
        while scope is not None and scope.owner is None:
            scope = scope.parent
        owner = scope.owner if scope is not None else None
        if not isinstance(owner, Instance) or scope is None or scope.written_in is None:
            return CLEAN
        return Value(refs=frozenset([Instance(owner.cls, after=scope.written_in)]))

    def _call_back(self, arguments: Arguments, base: Value) -> None:
        """Follow functions that are passed on: whoever gets them calls them with the rest."""
        every = arguments.every()
        functions = [
            ref
            for value in every
            for ref in sorted(value.refs, key=_order)
            if isinstance(ref, Function)
        ]
        if functions:
            data = join(element_of(value).only_taint() for value in (*every, base))
            for ref in functions:
                self.call_function(ref, [], {}, data)

    def grow(self, frame: Frame, target: ast.expr, value: Value) -> None:
        """Add `value` to what the container `target` holds."""
        value = replace(value, text=False, in_memory=False)
        path = dotted(target)
        for part in [known for known in frame.env if path and known.startswith(f"{path}[")]:
            del frame.env[part]
        if path in frame.env:
            frame.env[path] = join([frame.env[path], value])
        if isinstance(target, ast.Name) and path not in frame.env:
            scope = frame.parent
            while scope is not None and path not in scope.env:
                scope = scope.parent
            if scope is not None:
                scope.env[path] = join([scope.env[path], value])
            elif path in self.load_module(frame.module.name):
                self.program.set_global(frame.module.name, path, value)
        elif isinstance(target, ast.Attribute):
            for ref in self.evaluate(frame, target.value).refs:
                if isinstance(ref, Instance):
                    self.program.set_field(ref, target.attr, value)
        elif isinstance(target, ast.Subscript | ast.Call):
            inner = target.value if isinstance(target, ast.Subscript) else target.func
            self.grow(frame, inner.value if isinstance(inner, ast.Attribute) else inner, value)


def _order(ref: Ref) -> tuple[str, str, int]:
    if isinstance(ref, External):
        return "External", ref.name, ref.made
    if isinstance(ref, Function | PackageClass):
        return type(ref).__name__, ref.module.path, ref.node.lineno
    if isinstance(ref, Instance):
        return "Instance", ref.cls.module.path, ref.cls.node.lineno
    return "PackageModule", ref.name, 0


def _made(refs: frozenset[Ref]) -> frozenset[Ref]:
    """Return which libraries' objects a method of such an object may give."""
    return frozenset(ref for ref in refs if isinstance(ref, External) and ref.made)


def _is_path(value: Value) -> bool:
    return any(isinstance(ref, External) and ref.name.startswith("pathlib.") for ref in value.refs)


def _is(node: ast.Call, keyword: str, value: bool, *, missing: bool = False) -> bool:
    """Return whether a keyword is that literal; `missing` if it is not given."""
    for given in node.keywords:
        if given.arg == keyword:
            return isinstance(given.value, ast.Constant) and given.value.value is value
    return missing


def _safe_loader(node: ast.Call) -> bool:
    loaders = [k.value for k in node.keywords if k.arg == "Loader"] or node.args[1:2]
    name = dotted(loaders[0]).rpartition(".")[2] if loaders else ""
    return name in ("SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader")
