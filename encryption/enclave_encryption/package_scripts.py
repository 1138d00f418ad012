"""What of a directory can be run: its top-level scripts and notebooks, and what these are."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from enclave_encryption.errors import ExportError
from enclave_encryption.source_tree import SourceTree
from enclave_protocol.manifest import NAME_PATTERN, Script
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX

__all__ = [
    "MAX_NOTEBOOK_BYTES",
    "SCRIPT_SUFFIXES",
    "check_notebooks",
    "code_cells",
    "named_scripts",
]

SCRIPT_SUFFIXES: Final = (".py", NOTEBOOK_SUFFIX)
MAX_NOTEBOOK_BYTES: Final = 32 * 1024 * 1024
"""As much as a vault takes."""


def named_scripts(paths: Iterable[str]) -> dict[str, str]:
    """Return the top-level scripts and notebooks among `paths` by the names they are run by.

    That is the file's name without its ending; a notebook beside a script of the same name keeps
    its ending.
    """
    named: dict[str, str] = {}
    ordered = sorted(paths)
    # Scripts first.
    for suffix in SCRIPT_SUFFIXES:
        for path in ordered:
            name = path.removesuffix(suffix)
            if name in named:
                name = path
            if path.endswith(suffix) and "/" not in path and NAME_PATTERN.fullmatch(name):
                named[name] = path
    return named


def check_notebooks(scripts: Mapping[str, Script], tree: SourceTree) -> None:
    """Check that what is to be run as a notebook is one, and in Python.

    Raises:
        ExportError: It is not.
        SourceTreeError: It cannot be read, or is longer than a vault takes.
    """
    for name, script in scripts.items():
        if script.file.endswith(NOTEBOOK_SUFFIX):
            text = tree.text(script.file, MAX_NOTEBOOK_BYTES)
            where = f"[scripts] {name}: {script.file}"
            if text is not None:
                _check_notebook(text, where)


def code_cells(text: str) -> list[str]:
    """Return the sources of a notebook's code cells; none of versions before 4, and of no notebook.

    Args:
        text: The file's.
    """
    try:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        # A file may have the source as lines, which hold their line feeds.
        return ["".join(cell["source"]) for cell in cells]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


def _check_notebook(text: str, where: str) -> None:
    try:
        notebook = json.loads(text)
        version, metadata = notebook["nbformat"], notebook["metadata"]
        # Before version 4 cells were in worksheets.
        if type(version) is not int or not notebook["cells" if version >= 4 else "worksheets"]:
            raise ValueError
        language = _language(metadata)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ExportError(
            f"{where} is no notebook, or an empty one: save it with Jupyter"
        ) from None
    if language not in ("", "python"):
        raise ExportError(f"{where} is in {language[:40]!r}: only Python runs in a vault")


def _language(metadata: Mapping[str, Any]) -> str:
    kernel, language = metadata.get("kernelspec", {}), metadata.get("language_info", {})
    return str(language.get("name") or kernel.get("language") or "").lower()
