"""A trial's steps for people, in two columns, and for scripts."""

import os
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from enclave_encryption.incident_lookup import FoundPlace
from enclave_encryption.trial_step import CallPair, Step, last_drawn
from enclave_protocol.plain_text import plain_text
from enclave_protocol.trial_messages import Ended, ShownCell

__all__ = [
    "incident_object",
    "print_place",
    "print_reproduced",
    "print_step",
    "print_walls",
    "steps_object",
]

_SIDE_BY_SIDE_COLUMNS: Final = 100
"""A terminal narrower than this shows one side below the other."""
_MAX_LINES: Final = 200
"""Of one part of a column; `--json` has all of it."""


def print_walls(console: Console, package: str, user: Ended) -> None:
    """Print what is tried, and how much of an enclave's isolation it has here."""
    line = Text(f"{plain_text(package)}, in a vault with a throw-away key", style="bold")
    console.print(line)
    console.print(Text(f"walls: {'; '.join(user.walls) or 'none'}", style="dim"))
    if user.missing_walls:
        hint = "" if os.geteuid() == 0 else " (run as root for more)"
        missing = "; ".join(user.missing_walls)
        console.print(Text(f"only in an enclave: {missing}{hint}", style="dim"))


def print_step(console: Console, step: Step) -> None:
    """Print one step: the source, both sides, and what is to be known about the difference."""
    if step.kind == "cell":
        console.print(Syntax(_plain(step.source), "python", background_color="default"))
    elif step.kind == "script":
        console.print(Text(f"script {_plain(step.source)}", style="bold"))
    owner = Panel(_owner(step), title="you see", border_style="cyan", title_align="left")
    user = Panel(_user(step), title="the user sees", border_style="magenta", title_align="left")
    if console.width >= _SIDE_BY_SIDE_COLUMNS:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(owner, user)
        console.print(grid)
    else:
        console.print(owner)
        console.print(user)
    for note in step.notes:
        console.print(Text(f"! {_plain(note)}", style="yellow"))


def print_place(console: Console, found: FoundPlace) -> None:
    """Print where an incident arose, with the lines around it."""
    console.print(Text(f"incident {found.incident} arose at {_plain(found.shown)}", style="bold"))
    if found.lines:
        lines = Syntax(
            _plain("\n".join(found.lines)),
            "python",
            line_numbers=True,
            start_line=found.first_line,
            highlight_lines={found.place.line},
            background_color="default",
        )
        console.print(lines)


def print_reproduced(console: Console, found: FoundPlace, there: Sequence[Step]) -> None:
    """Print which steps raised at the place of an incident that a user reported."""
    if not there:
        line = f"incident {found.incident} is not reproduced: nothing above raised there"
        console.print(Text(line, style="yellow"))
    for step in there:
        source = " ".join(_plain(step.source).split())
        line = f"incident {found.incident} is reproduced by the {step.kind} {source}"
        console.print(Text(line, style="bold"))


def incident_object(found: FoundPlace) -> dict[str, Any]:
    """Return what `--json` says of an incident that a user reported."""
    lines = found.lines
    return {
        "id": found.incident,
        "path": found.place.path,
        "line": found.place.line,
        "source": lines[found.place.line - found.first_line].strip() if lines else "",
    }


def steps_object(steps: Sequence[Step]) -> dict[str, Any]:
    """Return what `--json` says of a trial's steps."""
    return {
        "walls": steps[-1].user.walls,
        "missing_walls": steps[-1].user.missing_walls,
        "steps": [_step_object(step) for step in steps],
        "crossed": all(step.crossed for step in steps),
    }


def _step_object(step: Step) -> dict[str, Any]:
    owner, user = step.owner, step.user
    return {
        "kind": step.kind,
        "source": step.source,
        "crossed": step.crossed,
        "owner": {
            "stdout": owner.output,
            "stderr": owner.errors,
            "result": owner.result,
            "type": owner.result_type,
            "error": owner.error,
            "traceback": owner.traceback,
            "exit_code": owner.exit_code if step.kind == "script" else None,
            "cannot_leave": owner.refusal,
            "cells": [_cell_object(cell) for cell in owner.cells],
        },
        "user": {
            "output": user.output,
            "stderr": user.errors,
            "result": user.result,
            "type": user.result_type,
            "error": user.error,
            "traceback": user.traceback,
            "incident": user.incident,
            "place": step.places.get(user.incident, ""),
            "exit_code": user.exit_code,
            "files": step.files,
            "notebook": f"/{user.notebook}" if user.notebook else "",
            "cells": [_cell_object(cell) for cell in user.cells],
        },
        "calls": [_call_object(pair, step) for pair in step.calls],
        "notes": step.notes,
    }


def _cell_object(cell: ShownCell) -> dict[str, Any]:
    return {
        "number": cell.number,
        "source": cell.source,
        "output": cell.output,
        "stderr": cell.errors,
    }


def _call_object(pair: CallPair, step: Step) -> dict[str, Any]:
    return {
        "name": pair.user.name,
        "error": pair.user.error,
        "incident": pair.user.incident,
        "place": step.places.get(pair.user.incident, ""),
        "owner_error": "" if pair.owner is None else pair.owner.error,
        "owner_traceback": "" if pair.owner is None else pair.owner.traceback,
    }


def _owner(step: Step) -> RenderableType:
    ended = step.owner
    if ended.cells:
        parts = _cells(ended.cells, step)
    else:
        parts = [*_part("stdout", ended.output), *_part("stderr", ended.errors)]
    for pair in step.hidden_calls():
        if pair.owner is not None and pair.owner.traceback:
            title = _incident(step, pair.user.incident) or pair.user.name
            parts += _part(f"{title}, caught", pair.owner.traceback, "red")
    if ended.error:
        name = _incident(step, step.user.incident) or "error"
        parts += _part(name, ended.traceback or ended.error, "red")
    elif step.user.incident in step.places:
        parts += _part("", f"{_incident(step, step.user.incident)}, for the user only", "red")
    parts += _result(ended)
    if step.kind == "script":
        parts += _part("", f"exit code {ended.exit_code}")
    return Group(*parts) if parts else Text("nothing", style="dim")


def _incident(step: Step, incident: str) -> str:
    place = step.places.get(incident)
    return f"incident {incident}{f', arose at {place}' if place else ''}" if incident else ""


def _user(step: Step) -> RenderableType:
    ended = step.user
    parts = []
    if ended.notebook:
        parts += _part("notebook", f"/{ended.notebook}: {_sources(ended.cells)}")
        parts += _cells(ended.cells, step)
    if not any(cell.output for cell in ended.cells):
        # Otherwise the cell that called shows the same, below a bar.
        parts += _part("output", ended.output)
    parts += _part("stderr", ended.errors)
    for pair in step.hidden_calls():
        parts += _part(f"{pair.user.name}, caught", pair.user.error, "red")
    if ended.error:
        name = f"incident {ended.incident}" if ended.incident else "error"
        parts += _part(name, _narrow(ended.traceback) or ended.error, "red")
    parts += _result(ended)
    if step.files:
        parts += _part("files", "\n".join(step.files))
    if step.kind == "script" and ended.exit_code is not None:
        parts += _part("", f"exit code {ended.exit_code}")
    return Group(*parts) if parts else Text("nothing", style="dim")


def _cells(cells: Sequence[ShownCell], step: Step) -> list[RenderableType]:
    """Return the cells that show something on one of the sides."""
    every = (*step.owner.cells, *step.user.cells)
    numbers = {cell.number for cell in every if cell.output or cell.errors}
    parts: list[RenderableType] = []
    for cell in cells:
        if cell.number not in numbers:
            continue
        first = next((line.strip() for line in cell.source.split("\n") if line.strip()), "")
        title = f"code cell {cell.number}{f': {first}' if first else ''}"
        parts += _part(title, last_drawn(cell.output)) or _part("", title, "dim")
        parts += _part("stderr", cell.errors)
    return parts


def _sources(cells: Sequence[ShownCell]) -> str:
    with_source = sum(1 for cell in cells if cell.source)
    count = f"{len(cells)} code cell{'' if len(cells) == 1 else 's'}"
    return f"{count}, {with_source or 'none'} with source"


def _narrow(shown: str) -> str:
    """Return a traceback of IPython's without what makes its head as wide as a notebook."""
    head, newline, rest = shown.lstrip("-\n").partition("\n")
    return " ".join(head.split()) + newline + rest


def _result(ended: Ended) -> list[RenderableType]:
    return _part(ended.result_type, ended.result, "green") if ended.result_type else []


def _part(title: str, text: str, style: str = "") -> list[RenderableType]:
    """Return a part of a column, long ones cut: both sides' texts are strangers' to a terminal."""
    text = text.strip("\n")
    if not text:
        return []
    lines = _plain(text).split("\n")
    if len(lines) > _MAX_LINES:
        left = len(lines) - _MAX_LINES
        half = _MAX_LINES // 2
        lines = [*lines[:half], f"[... {left} lines left out; --json has them ...]", *lines[-half:]]
    shown: list[RenderableType] = [Text(_plain(title), style="dim")] if title else []
    return [*shown, Text("\n".join(lines), style=style, overflow="fold")]


def _plain(text: str) -> str:
    return plain_text(text.expandtabs(4), limit=None, keep_lines=True)
