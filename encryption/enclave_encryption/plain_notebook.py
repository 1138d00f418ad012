"""A notebook on the owner's side of `try`: its cells in IPython's shell, and what each one shows.

It runs in the process of `plain_run`, with the owner's rights, and is no boundary.
"""

import ast
import contextlib
import linecache
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from enclave_encryption.package_notebook import NotebookCell, read_notebook
from enclave_encryption.plain_errors import ended_by
from enclave_encryption.trial_step import last_drawn
from enclave_protocol.notebook_parameters import parse_notebook_arguments
from enclave_protocol.trial_messages import Ended, RunPlainNotebook, ShownCell, fitting_cells

__all__ = ["run_notebook"]

_INLINE: Final = "module://matplotlib_inline.backend_inline"
_MAX_READ_BYTES: Final = 256 * 1024
_IMAGES: Final = frozenset({"image/png", "image/jpeg"})
"""What a vault makes pixels of; the user gets one image of a display."""
_TEXT: Final = "text/plain"


def run_notebook(request: RunPlainNotebook, directory: str) -> Ended:
    """Run a notebook until a cell raises, calls `exit()`, or is the last; say what cells showed.

    Args:
        request: Which one.
        directory: The package's, which is the working directory.
    """
    os.environ.setdefault("MPLBACKEND", _INLINE)
    given = parse_notebook_arguments(request.arguments)
    path = Path(directory) / request.file
    cells = read_notebook(path.read_text("utf-8"), request.file)
    sys.argv[:] = [request.file, *given.others]
    os.chdir(directory)
    # Without history, and in a folder of the trial's: nothing is left in the owner's home.
    config = Config({"HistoryManager": {"enabled": False}})
    shell: _Shell = _Shell.instance(config=config, ipython_dir=request.scratch)
    shown: list[ShownCell] = []
    ended = Ended(exit_code=0)
    for number, cell in enumerate(cells, 1):
        name = f"{request.file}, code cell {number}"
        error = _run_cell(shell, cell, name)
        if cell.has_parameters:
            shell.user_ns.update(given.parameters)
        is_last = number == len(cells) or error is not None or shell.exit_now
        if is_last:
            _wait_for_threads()
        shown.append(shell.screen.take(number, cell.source))
        if error is not None:
            ended = ended_by(error, name)
        if is_last:
            break
    return msgspec.structs.replace(ended, cells=fitting_cells(shown))


def _run_cell(shell: "_Shell", cell: NotebookCell, name: str) -> BaseException | None:
    compiler: Any = shell.compile
    compiler.cell_name = name
    lines = cell.source.split("\n")
    # IPython takes away the empty lines that a cell begins with.
    compiler.empty_lines = next((index for index, line in enumerate(lines) if line.strip()), 0)
    shell.screen.begin()
    result: Any = shell.run_cell(cell.source, store_history=True)
    error: BaseException | None = result.error_before_exec or result.error_in_exec
    return error


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


class _Screen:
    """What a cell shows, in its order: displays, and between them what is written to stdout."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a cell."""
        _flush()
        self._positions = _sizes()
        self._parts: list[tuple[object, str]] = []
        self._left_out: set[str] = set()
        self._clear_next = False

    def show(self, bundle: Mapping[str, Any], display_id: object = None) -> None:
        """Take a display; one with an id of before takes the other's place.

        Args:
            bundle: Contents by MIME type.
            display_id: Of a display that can be replaced.
        """
        self._take_printed()
        self._clear_waiting()
        lines = [str(bundle.get(_TEXT, ""))]
        lines += ["[image]"] if _IMAGES & bundle.keys() else []
        text = "\n".join(filter(None, lines))
        self._left_out |= bundle.keys() - _IMAGES - {_TEXT}
        for index, (other, _) in enumerate(self._parts):
            if other == display_id is not None:
                self._parts[index] = (display_id, f"{text}\n")
                return
        self._parts.append((display_id, f"{text}\n"))

    def clear(self, *, wait: bool) -> None:
        """Forget what was shown, at once or when there is something else."""
        self._take_printed()
        self._clear_next = True
        if not wait:
            self._clear_waiting()

    def take(self, number: int, source: str) -> ShownCell:
        """Return what the cell showed."""
        self._take_printed()
        end = _sizes()[1]
        errors = last_drawn(_written(2, self._positions[1], end))
        text = ""
        for _, part in self._parts:
            text += part if not text or text.endswith("\n") else f"\n{part}"
        return ShownCell(number, source, text, errors, tuple(sorted(self._left_out)))

    def _take_printed(self) -> None:
        _flush()
        end = _sizes()[0]
        text = _written(1, self._positions[0], end)
        self._positions = (end, self._positions[1])
        if text:
            self._clear_waiting()
            self._parts.append((None, text))

    def _clear_waiting(self) -> None:
        if self._clear_next:
            self._parts.clear()
            self._clear_next = False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A cell may have put anything there.
        with contextlib.suppress(Exception):
            stream.flush()


def _sizes() -> tuple[int, int]:
    """Return how much was written to stdout and stderr, which are files of `try`."""
    return os.fstat(1).st_size, os.fstat(2).st_size


def _written(descriptor: int, start: int, end: int) -> str:
    # The end tells more than the beginning.
    start = max(start, end - _MAX_READ_BYTES)
    return os.pread(descriptor, end - start, start).decode("utf-8", "replace")


class _Compiler(CachingCompiler):
    """Gives each cell the name and the line numbers that an incident's place has."""

    cell_name = ""
    empty_lines = 0

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        """Parse a cell, lines counted with the empty ones that it begins with."""
        return ast.increment_lineno(super().ast_parse(source, filename, symbol), self.empty_lines)

    def cache(
        self,
        transformed_code: str,
        number: int = 0,  # noqa: ARG002 (IPython's)
        raw_code: str | None = None,  # noqa: ARG002
    ) -> str:
        """Return the cell's name; tracebacks find its lines."""
        text = "\n" * self.empty_lines + transformed_code
        lines = text.splitlines(keepends=True)
        linecache.cache[self.cell_name] = (len(text), None, lines, self.cell_name)
        return self.cell_name


class _DisplayHook(DisplayHook):
    """Collects a cell's result."""

    shell: "_Shell"

    def quiet(self) -> bool:
        """Return whether the cell ends with a semicolon."""
        return self.shell.is_quiet

    def write_output_prompt(self) -> None:
        """Write none."""

    def write_format_data(
        self, format_dict: Mapping[str, Any], _md_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Collect it."""
        self.shell.screen.show(format_dict)

    def finish_displayhook(self) -> None:
        """Write nothing."""
        self._is_active = False


class _DisplayPublisher(DisplayPublisher):
    """Collects what a cell displays."""

    shell: "_Shell"

    def publish(
        self,
        data: Mapping[str, Any],
        *_: object,
        transient: Mapping[str, Any] | None = None,
        **__: object,
    ) -> None:
        """Collect it."""
        self.shell.screen.show(data, (transient or {}).get("display_id"))

    def clear_output(self, wait: bool = False) -> None:
        """Forget what the cell showed so far."""
        self.shell.screen.clear(wait=wait)


class _Shell(InteractiveShell):
    """Runs the cells; errors are told by `try`."""

    displayhook_class = Type(_DisplayHook)
    display_pub_class = Type(_DisplayPublisher)
    compiler_class = Type(_Compiler)
    screen: _Screen
    exit_now = False
    is_quiet = False

    def init_io(self) -> None:
        """Begin to collect, before anything can be shown."""
        super().init_io()  # type: ignore[no-untyped-call]
        self.screen = _Screen()

    def run_cell(self, raw_cell: str, *arguments: Any, **options: Any) -> Any:
        """Run a cell."""
        quiet: Any = DisplayHook.semicolon_at_end_of_expression
        self.is_quiet = bool(quiet(raw_cell))
        run: Any = super().run_cell
        return run(raw_cell, *arguments, **options)

    def ask_exit(self) -> None:
        """End the notebook after this cell, as a kernel that was told to exit."""
        self.exit_now = True

    def showtraceback(self, *_args: object, **_options: object) -> None:
        """Print nothing."""

    def showsyntaxerror(self, *_args: object, **_options: object) -> None:
        """Print nothing."""
