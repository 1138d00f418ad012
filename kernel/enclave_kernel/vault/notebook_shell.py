"""IPython's shell, as a notebook in a vault has it: no history, no programs, no tracebacks.

Imported only by a vault that runs a notebook: IPython takes a while.
"""

import ast
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.ultratb import AutoFormattedTB
from traitlets import Type
from traitlets.config import Config

from enclave_kernel.vault.notebook_images import IMAGE_TYPES
from enclave_kernel.vault.notebook_outputs import NotebookOutputs

__all__ = ["NoProgramsError", "NotebookShell", "start_shell"]

_INLINE: Final = "module://matplotlib_inline.backend_inline"
_PROGRAM_MAGICS: Final = (
    *("bash", "sh", "script", "perl", "ruby", "python", "python2", "python3", "pypy"),
    *("system", "sx", "!", "!!", "pip", "conda", "mamba", "micromamba", "uv", "edit", "ed"),
)


class NoProgramsError(OSError):
    """A notebook wants to start a program: nothing can, in a vault."""


class _Compiler(CachingCompiler):
    """Compiles cells and keeps no line of them.

    Attributes:
        file_name: What code objects say they come from.
        lines_before: Of the cells before this one: lines are counted over all of them.
    """

    file_name = "<encrypted>"
    lines_before = 0

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        """Parse a cell, whose lines go on where those of the one before it ended."""
        return ast.increment_lineno(super().ast_parse(source, filename, symbol), self.lines_before)

    def cache(
        self,
        transformed_code: str,  # noqa: ARG002 (IPython's)
        number: int = 0,  # noqa: ARG002
        raw_code: str | None = None,  # noqa: ARG002
    ) -> str:
        """Return the name of the package instead of the cell's; `linecache` gets nothing."""
        return self.file_name


class _DisplayHook(DisplayHook):
    """Collects a cell's result."""

    shell: "NotebookShell"

    def quiet(self) -> bool:
        """Return whether the cell wants its result shown to nobody."""
        return self.shell.history_manager.quiet

    def write_output_prompt(self) -> None:
        """Print none."""

    def write_format_data(self, format_dict: Mapping[str, Any], _metadata: object = None) -> None:
        """Collect the result; its metadata stays."""
        self.shell.outputs.show("execute_result", format_dict, None)

    def log_output(self, format_dict: Mapping[str, Any]) -> None:
        """Keep no other copy."""

    def finish_displayhook(self) -> None:
        """Print nothing."""
        self._is_active = False


class _DisplayPublisher(DisplayPublisher):
    """Collects what a cell displays."""

    shell: "NotebookShell"

    def publish(
        self,
        data: Mapping[str, Any],
        metadata: object = None,  # noqa: ARG002 (IPython's)
        source: object = None,  # noqa: ARG002
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Collect it; its metadata stays."""
        display_id = (transient or {}).get("display_id")
        self.shell.outputs.show("display_data", data, display_id, update=update)

    def clear_output(self, wait: bool = False) -> None:
        """Forget what the cell displayed so far."""
        self.shell.outputs.clear(wait=wait)


class _NoHistory(HistoryManager):
    """Keeps no cell: `In`, `_i`, `%history` and `globals()` have nothing to show.

    Attributes:
        quiet: The cell that runs ends with a semicolon: its result is not shown.
    """

    quiet = False

    def store_inputs(self, _line_num: int, source: str, _source_raw: str | None = None) -> None:
        """Store nothing of it."""
        self.quiet = DisplayHook.semicolon_at_end_of_expression(source)  # type: ignore[no-untyped-call]


class _NoTracebacks(AutoFormattedTB):
    """Formats nothing, whichever part of IPython asks for it."""

    def structured_traceback(self, *_args: object, **_options: object) -> list[str]:
        """Return no line."""
        return []


class NotebookShell(InteractiveShell):
    """Runs a notebook's cells.

    Attributes:
        outputs: Takes what they show.
        interrupted: An interrupt came where IPython itself would have swallowed it.
        exit_now: A cell called `exit()`.
    """

    displayhook_class = Type(_DisplayHook)
    display_pub_class = Type(_DisplayPublisher)
    compiler_class = Type(_Compiler)
    outputs: NotebookOutputs
    history_manager: _NoHistory
    compile: _Compiler
    interrupted = False
    exit_now = False

    def init_magics(self) -> None:
        """Leave out the magics that start programs."""
        super().init_magics()  # type: ignore[no-untyped-call]
        for name in _PROGRAM_MAGICS:
            self.magics_manager.register_function(_no_programs, "line_cell", name)

    def init_events(self) -> None:
        """Say nothing of a callback that fails: IPython would print it, and the cell's source."""
        super().init_events()  # type: ignore[no-untyped-call]
        self.events.print_on_error = False

    def init_history(self) -> None:
        """Keep no cell."""
        self.history_manager = _NoHistory(shell=self, parent=self)
        configurables: list[Any] = self.configurables
        configurables.append(self.history_manager)

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        """Format no traceback, not even one that a handler of the notebook's failed with."""
        super().init_traceback_handlers(custom_exceptions)
        self.InteractiveTB = _NoTracebacks(mode="Minimal", theme_name=self.colors)  # type: ignore[no-untyped-call]

    def auto_rewrite_input(self, _command: str) -> None:
        """Show nobody what `%autocall` made of a line."""

    def system(self, _command: str) -> None:
        """Refuse what `!` in front of a line asks for."""
        _no_programs()

    system_piped = system_raw = system

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> None:  # noqa: ARG002
        """Refuse the same with a result."""
        _no_programs()

    def ask_exit(self) -> None:
        """End the notebook after this cell, as a kernel that was told to exit."""
        self.exit_now = True

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing: there are no windows."""

    def showtraceback(self, exc_tuple: Any = None, *_args: object, **_options: object) -> None:
        """Show nothing: what may be seen of an error is for the policy to say."""
        error = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
        self.interrupted |= isinstance(error, KeyboardInterrupt)

    def showsyntaxerror(self, *_args: object, **_kwargs: object) -> None:
        """Show nothing."""

    def show_usage_error(self, _error: object) -> None:
        """Show nothing."""

    def _showtraceback(self, _type: object, _error: object, _text: object) -> None:
        """Show nothing, whoever formatted it."""

    def _format_exception_for_storage(self, *_args: object, **_options: object) -> list[str]:
        return []

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:  # noqa: ARG002 (IPython's)
        """Keep no copy of what is printed."""
        yield


def start_shell(
    outputs: NotebookOutputs,
    file_name: str,
    complete: Callable[[Coroutine[Any, Any, Any]], Any],
) -> NotebookShell:
    """Return this process's shell; there is one, which `get_ipython()` finds.

    Args:
        outputs: Takes what cells show.
        file_name: What code objects say they come from; no path.
        complete: Runs the coroutine of a cell that awaits something, to its end.
    """
    # As ipykernel: a figure is displayed at the end of its cell, without a line of magic.
    os.environ.setdefault("MPLBACKEND", _INLINE)
    _Compiler.file_name = file_name
    # Neither a database nor a thread that writes to it. Startup files are an application's.
    config = Config({"HistoryManager": {"enabled": False}})
    shell: NotebookShell = NotebookShell.instance(config=config)
    shell.outputs = outputs
    shell.loop_runner = complete
    # Names that a notebook may use, and that nothing else gives a value to here.
    shell.user_ns.update(_i="", _ii="", _iii="")
    # HTML, SVG, JavaScript and LaTeX are not even made.
    formatter: Any = shell.display_formatter
    formatter.active_types = ["text/plain", *IMAGE_TYPES]
    return shell


def _no_programs(*_: object) -> None:
    raise NoProgramsError("a notebook in a vault starts no programs")
