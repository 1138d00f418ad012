"""What a package's modules define, found in their syntax: the code itself never runs here."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from enclave_encryption.errors import ExportError
from enclave_encryption.source_tree import SourceTree

__all__ = ["FUNCTION", "Definition", "Module", "PackageCode"]

_MAX_SOURCE_BYTES: Final = 16 * 1024 * 1024
"""No module a person wrote is longer; the parser needs some hundred times as much memory."""
FUNCTION: Final = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """One module: dotted name, path in the package, whether it is a package, syntax and text."""

    name: str
    path: str
    is_package: bool
    tree: ast.Module
    source: str

    def statements(self) -> Iterator[ast.stmt]:
        """Yield the statements that run on import, also those under `if`, `try` and `with`."""
        pending: list[ast.stmt] = list(reversed(self.tree.body))
        while pending:
            statement = pending.pop()
            yield statement
            if isinstance(statement, ast.If | ast.Try | ast.With):
                inner = [*statement.body, *getattr(statement, "orelse", [])]
                for handler in getattr(statement, "handlers", []):
                    inner += handler.body
                inner += getattr(statement, "finalbody", [])
                pending.extend(reversed(inner))


class PackageCode:
    """The modules of a scanned directory, parsed when asked for."""

    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree
        self._paths = {file.entry.path for file in tree.files}
        self._modules: dict[str, Module | None] = {}
        self._names: dict[str, set[str]] = {}

    def top_level(self) -> list[str]:
        """Return the names of the importable top-level modules and packages."""
        names = {path[:-3] for path in self._paths if "/" not in path and path.endswith(".py")}
        names |= {
            path.split("/")[0]
            for path in self._paths
            if path.endswith("/__init__.py") and path.count("/") == 1
        }
        return sorted(name for name in names if name.isidentifier() and name != "__init__")

    def has_folder(self, name: str) -> bool:
        """Return whether `name` (dotted) is a folder with modules somewhere in it."""
        prefix = f"{name.replace('.', '/')}/"
        return any(path.startswith(prefix) and path.endswith(".py") for path in self._paths)

    def module(self, name: str) -> Module | None:
        """Return the module `name` (dotted), None if the directory does not have it.

        Raises:
            ExportError: Its source does not parse.
            SourceTreeError: Its source cannot be read.
        """
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def names(self, module: Module) -> set[str]:
        """Return every name `module` has after import, as far as its syntax tells."""
        if module.name in self._names:
            return self._names[module.name]
        # Known before it is complete: imports may go in circles.
        found = self._names[module.name] = set()
        for statement in module.statements():
            if isinstance(statement, Definition):
                found.add(statement.name)
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = (
                    statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                )
                for target in targets:
                    found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            elif isinstance(statement, ast.Import):
                found |= {a.asname or a.name.split(".")[0] for a in statement.names}
            elif isinstance(statement, ast.ImportFrom):
                if [alias.name for alias in statement.names] != ["*"]:
                    found |= {alias.asname or alias.name for alias in statement.names}
                    continue
                source = self._imported(module, statement)
                if source is not None:
                    found |= self.public_names(source)
        return found

    def public_names(self, module: Module) -> set[str]:
        """Return `__all__` if it is a literal, else the names without an underscore."""
        for statement in module.statements():
            if isinstance(statement, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "__all__"
                for target in statement.targets
            ):
                try:
                    return set(ast.literal_eval(statement.value))
                except (ValueError, TypeError):
                    break
        return {name for name in self.names(module) if not name.startswith("_")}

    def definition(self, module: Module, name: str) -> tuple[Module, Definition] | None:
        """Return where `name` is defined, following `from x import y` inside the directory.

        None means: an assignment, or something imported from elsewhere.
        """
        return self._find(module, name, set())

    def with_bases(
        self, module: Module, definition: ast.ClassDef
    ) -> tuple[list[tuple[Module, ast.ClassDef]], bool]:
        """Return the class and its bases in the directory, and whether these are all there is."""
        found = [(module, definition)]
        # A decorator, metaclass or __getattr__ may add anything.
        complete = not definition.decorator_list and not definition.keywords
        for where, current in found:
            complete = complete and not any(
                isinstance(statement, FUNCTION)
                and statement.name in ("__getattr__", "__getattribute__")
                for statement in current.body
            )
            for base in current.bases:
                if isinstance(base, ast.Name) and base.id == "object":
                    continue
                resolved = self.definition(where, base.id) if isinstance(base, ast.Name) else None
                if resolved is None or not isinstance(resolved[1], ast.ClassDef):
                    complete = False
                elif all(resolved[1] is not known for _, known in found):
                    found.append((resolved[0], resolved[1]))
        return found, complete

    def _find(
        self, module: Module, name: str, seen: set[tuple[str, str]]
    ) -> tuple[Module, Definition] | None:
        if (module.name, name) in seen:  # imports may go in circles
            return None
        seen.add((module.name, name))
        result: tuple[Module, Definition] | None = None
        for statement in module.statements():
            if isinstance(statement, Definition) and statement.name == name:
                result = (module, statement)  # the last one wins, as at run time
            elif isinstance(statement, ast.ImportFrom):
                source = self._imported(module, statement)
                for alias in statement.names:
                    if source is not None and (alias.asname or alias.name) == name:
                        result = self._find(source, alias.name, seen) or result
                    elif source is not None and alias.name == "*":
                        result = self._find(source, name, seen) or result
        return result

    def _imported(self, module: Module, statement: ast.ImportFrom) -> Module | None:
        """Return the module of this directory that `statement` imports from."""
        if not statement.level:
            return self.module(statement.module or "")
        package = module.name.split(".")
        if not module.is_package:
            package = package[:-1]
        package = package[: len(package) - (statement.level - 1)]
        return self.module(".".join([*package, *filter(None, [statement.module])]))

    def _parse(self, name: str) -> Module | None:
        base = name.replace(".", "/")
        for path, is_package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            if path not in self._paths:
                continue
            source = self._tree.text(path, _MAX_SOURCE_BYTES)
            try:
                return Module(name, path, is_package, ast.parse(source or ""), source or "")
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                line = getattr(error, "lineno", None)
                where = f"{path}:{line}" if line else path
                raise ExportError(f"{where}: not valid Python: correct it first") from None
        return None
