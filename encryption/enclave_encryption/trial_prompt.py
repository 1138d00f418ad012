"""The prompt of `try`: cells are typed, or come from a pipe, until the end of the input."""

import ast
import codeop
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Final

__all__ = ["typed_cells"]

_LEAVING: Final = ("exit", "exit()", "quit", "quit()")


def typed_cells() -> Iterator[str]:
    """Yield cells from stdin, up to `exit`; a block ends, as in Python, with an empty line."""
    if not sys.stdin:
        # It was closed when Python began.
        return
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            # Its import gives `input` a history and keys to move with.
            import readline  # noqa: F401
    lines: list[str] = []
    while True:
        try:
            line = _read_line("... " if lines else ">>> ") if interactive else input()
        except EOFError:
            break
        except KeyboardInterrupt:
            # As Python's own prompt: what was typed is forgotten.
            print()  # noqa: T201 (ends the line on the terminal)
            lines = []
            continue
        if not lines and line.strip() in _LEAVING:
            break
        lines.append(line)
        source = "\n".join(lines)
        if _is_complete(source):
            lines = []
            if source.strip():
                yield source
    if interactive:
        print()  # noqa: T201 (the shell's prompt shall have a line of its own)
    if "\n".join(lines).strip():
        yield "\n".join(lines)


def _read_line(prompt: str) -> str:
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt)
    finally:
        signal.signal(signal.SIGINT, outer)


def _is_complete(source: str) -> bool:
    """Whether no more lines belong to it. What Python refuses is: it says so where it runs."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= flags
    try:
        return compiler(source, "<cell>", "single") is not None
    except (SyntaxError, ValueError, OverflowError):
        return True
