"""The first `enclave.toml` of a directory, written from its code for the owner to review."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from enclave_encryption.errors import ExportError
from enclave_encryption.package_code import FUNCTION, Definition, Module, PackageCode
from enclave_encryption.package_plan import DEFAULT_VERSION, choose_module, default_name
from enclave_encryption.package_scripts import SCRIPT_SUFFIXES, named_scripts
from enclave_encryption.source_tree import scan
from enclave_protocol.manifest import CONTEXT_METHODS, MANIFEST_NAME, parse_manifest
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.package_errors import PackageError
from enclave_protocol.signature import format_signature, parse_signature

__all__ = ["draft_manifest"]


def draft_manifest(directory: Path, module_name: str | None) -> str:
    """Return an `enclave.toml` for `directory`, made without running its code.

    Args:
        directory: The package's directory.
        module_name: The module to export from; None chooses it.

    Raises:
        SourceTreeError: The directory cannot be packed.
        ExportError: No module, or one that does not parse.
    """
    tree = scan(directory)
    code = PackageCode(tree)
    name = default_name(directory)
    runnable = (file.entry.path for file in tree.files if _is_script(code, file.entry.path))
    scripts = named_scripts(runnable)
    module = None
    # A directory of notebooks exports nothing, and is a package all the same.
    if module_name or code.top_level() or not scripts:
        module = code.module(module_name or choose_module(code, name))
        if module is None:
            raise ExportError(f"there is no module {module_name!r} in {directory}")
    functions: dict[str, str] = {}
    classes: dict[str, tuple[Module, ast.ClassDef]] = {}
    docs: dict[str, str] = {}
    returns: dict[str, str] = {}
    for exported, where, definition in _definitions(code, module):
        if isinstance(definition, ast.ClassDef):
            classes[exported] = where, definition
            for method in definition.body:
                if isinstance(method, FUNCTION) and _is_generator(method):
                    returns[f"{exported}.{method.name}"] = "iter"
        else:
            if _is_generator(definition):
                returns[exported] = "iter"
            functions[exported] = _signature(exported, definition, bound=False)
        _add_doc(docs, exported, definition)
    docstring = None if module is None else ast.get_docstring(module.tree)
    lines = _package_lines(name, "" if module is None else module.name, docstring)
    lines += ["", "[exports]", "# Nothing else is reachable. Remove what users need not call."]
    lines += [_table_line("functions", functions)]
    lines += ['# Results by reference or in batches: score = "CLASS", or "iter", or "none".']
    lines += [_table_line("returns", {k: v for k, v in returns.items() if "._" not in k})]
    for exported, (where, definition) in classes.items():
        bases = [base for _, base in code.with_bases(where, definition)[0]]
        lines += _class_lines(exported, bases, docs)
    lines += ["", "[docs]", "# Users read these."]
    lines += [f"{_key(key)} = {_quoted(text)}" for key, text in docs.items()]
    if scripts:
        lines += ["", "[scripts]"]
        lines += [
            f'{_key(script)} = {{ file = {_quoted(path)}, output = "text" }}'
            for script, path in scripts.items()
        ]
    lines += _POLICY
    text = "\n".join(lines) + "\n"
    parse_manifest(text)  # never write what `encrypt` would refuse
    return text


_POLICY = [
    "",
    "[policy]",
    'errors = []              # built-in errors whose message users may read: ["ValueError"]',
    'output = "progress"      # none | progress (numbers only) | text',
    'callbacks = {}           # functions of users: { objective = "(x: ndarray, step: int)" }',
    'workspace = "read"       # none | read',
    "native = false           # true: the package brings compiled code",
    "max_calls = 0            # 0: no limit; also max_result_bytes, calls_per_minute, expires",
    'environment = "production"   # or development: opens only in a development enclave',
]


def _package_lines(name: str, module: str, docstring: str | None) -> list[str]:
    return [
        f"# {MANIFEST_NAME}: what users may call and see. Written by `enclave-owner init`:",
        "# review every line before you encrypt. All of it can be read without a key.",
        "",
        "[package]",
        f"name = {_quoted(name)}",
        f"version = {_quoted(DEFAULT_VERSION)}",
        f"description = {_quoted(_first_line(docstring))}",
        f"module = {_quoted(module)}",
        'publisher = ""',
        'requirements = []        # what the enclave must provide: ["numpy>=2"]',
    ]


def _class_lines(name: str, bases: list[ast.ClassDef], docs: dict[str, str]) -> list[str]:
    """Return a class's table: its own methods, and the `__init__` it has or inherits.

    Args:
        name: As exported.
        bases: The class itself, then its bases in the directory.
        docs: What `[docs]` says; grows.
    """
    init = f"{name}()"
    inits = [s for b in bases for s in b.body if isinstance(s, FUNCTION) and s.name == "__init__"]
    if inits:
        init = _signature(name, inits[0], bound=True)
    methods: dict[str, str] = {}
    for statement in bases[0].body:
        if not isinstance(statement, FUNCTION):
            continue
        if not statement.name.startswith("_") and not _is_property(statement):
            # One that is written again, as after @overload, is what its last definition says.
            methods[statement.name] = _signature(
                statement.name, statement, bound=not _is_static(statement)
            )
            _add_doc(docs, f"{name}.{statement.name}", statement)
    names = {s.name for s in bases[0].body if isinstance(s, ast.FunctionDef)}
    if {"__enter__", "__exit__"} <= names:
        methods |= {text: text for text in CONTEXT_METHODS}
    return [
        "",
        f"[exports.classes.{name}]",
        f"init = {_quoted(init)}",
        f"methods = [{', '.join(map(_quoted, methods.values()))}]",
        "attributes = []",
    ]


def _definitions(
    code: PackageCode, module: Module | None
) -> Iterator[tuple[str, Module, Definition]]:
    if module is None:
        return
    for exported in _exported_names(code, module.name):
        found = code.definition(module, exported)
        # None: a constant or something from elsewhere, not callable as far as we see.
        if found is not None:
            yield exported, *found


def _exported_names(code: PackageCode, module_name: str) -> list[str]:
    module = code.module(module_name)
    if module is None:
        return []
    # Without __all__: what is defined in the module itself, not what it imports for its own use.
    declares_all = "__all__" in code.names(module)
    own = {s.name for s in module.statements() if isinstance(s, FUNCTION | ast.ClassDef)}
    names = code.public_names(module)
    return sorted(
        name
        for name in (names if declares_all else names & own)
        if not name.startswith("_") and name.isascii()
    )


def _signature(
    name: str, definition: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool
) -> str:
    """Return the signature's text; a default that is no literal becomes `...`."""
    arguments = definition.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    for argument in every:
        argument.annotation = None
    arguments.defaults = [_disclosed(default) for default in arguments.defaults]
    arguments.kw_defaults = [
        None if default is None else _disclosed(default) for default in arguments.kw_defaults
    ]
    shown, signature = parse_signature(f"{name}({ast.unparse(arguments)})")
    if bound:
        parameters = list(signature.parameters.values())
        if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            signature = signature.replace(parameters=parameters[1:])
    prefix = "async " if isinstance(definition, ast.AsyncFunctionDef) else ""
    return prefix + format_signature(shown, signature)


def _disclosed(default: ast.expr) -> ast.expr:
    try:
        parse_signature(f"f(a={ast.unparse(default)})")
    except PackageError:
        return ast.Constant(...)
    return default


def _is_generator(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, FUNCTION | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))
    return False


def _is_static(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)


def _is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        (isinstance(d, ast.Name) and d.id in ("property", "cached_property"))
        or (isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter", "cached_property"))
        for d in function.decorator_list
    )


def _is_script(code: PackageCode, path: str) -> bool:
    if "/" in path or not path.endswith(SCRIPT_SUFFIXES):
        return False
    if path.endswith(NOTEBOOK_SUFFIX):
        return True
    if not path[:-3].isidentifier():
        return True  # cannot be imported, so it is there to be run
    module = code.module(path[:-3])
    return module is not None and any(
        isinstance(s, ast.If)
        and "__name__" in {n.id for n in ast.walk(s.test) if isinstance(n, ast.Name)}
        for s in module.tree.body
    )


def _add_doc(docs: dict[str, str], name: str, definition: ast.AST) -> None:
    if isinstance(definition, FUNCTION | ast.ClassDef):
        line = _first_line(ast.get_docstring(definition))
        if line:
            docs[name] = line


def _first_line(docstring: str | None) -> str:
    line = (docstring or "").strip().split("\n")[0]
    return "".join(character for character in line if character.isprintable())


def _table_line(name: str, entries: dict[str, str]) -> str:
    inner = ", ".join(f"{_key(key)} = {_quoted(text)}" for key, text in entries.items())
    return f"{name} = {{ {inner} }}" if inner else f"{name} = {{}}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
