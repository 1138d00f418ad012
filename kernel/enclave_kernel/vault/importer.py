"""Imports a package's modules from memory.

Source text exists in no file, no `linecache` and no `.pyc`; `__file__` points to where the module
would be beside the package's data files, so that code which looks for its model next to itself
works unmodified. The package's root comes last on `sys.path`: it cannot shadow anything.
"""

import importlib.machinery
import importlib.resources.abc
import importlib.resources.readers
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import ExecutionLoader
from pathlib import Path

from enclave_protocol.package_errors import PackageError

__all__ = ["ModuleShadowedError", "PackageImporter"]


class ModuleShadowedError(PackageError):
    """A module of the package has the name of one that the vault already has."""


class PackageImporter:
    """Makes the modules of one package importable.

    Args:
        root: Directory of the package's data files, absolute and without links.
        file_name: What code objects say they come from; no path.
        sources: Python source by path within the package (`rapidocr/main.py`).
        native: Extension modules among the data files are importable, too.
    """

    def __init__(
        self,
        root: str,
        file_name: str,
        sources: Mapping[str, bytes | bytearray],
        *,
        native: bool = False,
    ) -> None:
        self.native = native
        self.root = root
        self.file_name = file_name
        self.sources = sources
        self.folders: set[str] = set()
        for path in sources:
            parts = path.split("/")[:-1]
            self.folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))

    def install(self) -> None:
        """Make the package importable in this process, after everything that already is.

        Raises:
            ModuleShadowedError: A top-level module has the name of one of the standard library
                or of an installed package.
        """
        for name in sorted(self._top_level_names()):
            if _is_taken(name):
                raise ModuleShadowedError(
                    f"its module {name!r} has the name of one that is already installed in the "
                    "enclave: the owner has to rename it"
                )
        sys.path_hooks.insert(0, self._finder_for)
        sys.path.append(self.root)

    def _top_level_names(self) -> set[str]:
        names = {folder for folder in self.folders if "/" not in folder}
        names |= {path.removesuffix(".py") for path in self.sources if "/" not in path}
        # Nothing can import `__main__.py`, or what is no identifier.
        return {name for name in names if name.isidentifier() and name != "__main__"}

    def _finder_for(self, entry: str) -> "_EntryFinder":
        if entry == self.root:
            return _EntryFinder(self, "")
        folder = entry.removeprefix(f"{self.root}/")
        if folder == entry or folder not in self.folders:
            raise ImportError("not a folder with modules of the encrypted package")
        return _EntryFinder(self, f"{folder}/")


class _EntryFinder:
    """Finds modules in one folder of the package, as `FileFinder` does on disk."""

    def __init__(self, importer: PackageImporter, prefix: str) -> None:
        self._importer = importer
        self._prefix = prefix

    def find_spec(
        self, fullname: str, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where `fullname` is, or None if it is not in this folder."""
        importer, path = self._importer, self._prefix + fullname.rpartition(".")[2]
        for candidate, is_package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if candidate in importer.sources:
                spec = importlib.machinery.ModuleSpec(
                    fullname,
                    _SourceLoader(importer, candidate),
                    origin=f"{importer.root}/{candidate}",
                    is_package=is_package,
                )
                spec.has_location = True
                break
        else:
            extension = self._find_extension(fullname, path)
            if extension is not None or path not in importer.folders:
                return extension
            # A folder without __init__.py: a portion of a namespace package.
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            is_package = True
        if is_package:
            spec.submodule_search_locations = [f"{importer.root}/{path}"]
        return spec

    def _find_extension(self, fullname: str, path: str) -> importlib.machinery.ModuleSpec | None:
        """Return where a compiled module is: a file like any other of the package's."""
        if not self._importer.native:
            return None
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = f"{self._importer.root}/{path}{suffix}"
            if Path(file).is_file():
                loader = importlib.machinery.ExtensionFileLoader(fullname, file)
                return importlib.machinery.ModuleSpec(fullname, loader, origin=file)
        return None

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """Yield the modules of this folder, for `pkgutil`."""
        start = self._prefix
        sources = self._importer.sources
        for folder in sorted(self._importer.folders):
            name = folder.removeprefix(start)
            is_package = f"{folder}/__init__.py" in sources
            if is_package and folder.startswith(start) and "/" not in name:
                yield prefix + name, True
        for path in sorted(sources):
            name = path.removeprefix(start).removesuffix(".py")
            if path.startswith(start) and "/" not in name and name != "__init__":
                yield prefix + name, False

    def invalidate_caches(self) -> None:
        """Nothing is cached: the sources never change."""


class _SourceLoader(ExecutionLoader):
    """Loads one module; hands its source to nobody."""

    def __init__(self, importer: PackageImporter, source_path: str) -> None:
        self._importer = importer
        self._source_path = source_path
        self.path = f"{importer.root}/{source_path}"

    def get_filename(self, _fullname: str) -> str:
        """Return the module's `__file__`: a path where no file is."""
        return self.path

    def is_package(self, _fullname: str) -> bool:
        """Return whether the module is a package."""
        return self._source_path.rpartition("/")[2] == "__init__.py"

    def get_source(self, _fullname: str) -> str | None:
        """Return None: tracebacks, `inspect` and warnings show no line of the package."""
        return None

    def get_code(self, _fullname: str) -> types.CodeType:
        """Return the module compiled; its code objects name the package instead of a file.

        Raises:
            SyntaxError: The owner's source does not compile.
        """
        source = bytes(self._importer.sources[self._source_path])
        return self.source_to_code(source, self._importer.file_name)

    def get_data(self, path: str) -> bytes:
        """Return a data file of the package.

        Raises:
            OSError: There is none at `path`, or it is outside the package.
        """
        target = Path(path)
        if ".." in target.parts or not target.is_relative_to(self._importer.root):
            raise FileNotFoundError("not a file of the encrypted package")
        return target.read_bytes()

    def get_resource_reader(self, _fullname: str) -> importlib.resources.abc.TraversableResources:
        """Return what `importlib.resources` reads the folder's data files with."""
        # All it takes of a loader is `path`.
        return importlib.resources.readers.FileReader(self)  # type: ignore[arg-type]


def _is_taken(name: str) -> bool:
    if name in sys.stdlib_module_names or name in sys.builtin_module_names or name in sys.modules:
        return True
    installed: Sequence[str] = sys.path
    spec = importlib.machinery.PathFinder.find_spec(name, installed)
    # A folder without code that happens to have the name is no module: ours comes before it.
    return spec is not None and spec.origin is not None
