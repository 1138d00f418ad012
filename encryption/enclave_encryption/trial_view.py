"""A trial's steps for people, in two columns, and for scripts."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from enclave_encryption.trial_step import CallPair, Step
from enclave_protocol.plain_text import plain_text
from enclave_protocol.trial_messages import Ended

__all__ = ["print_step", "print_walls", "steps_json"]

_SIDE_BY_SIDE_COLUMNS: Final = 100
"""A terminal narrower than this shows one side below the other."""
_MAX_LINES: Final = 200
"""Of one part of a column; `--json` has all of it."""


def print_walls(console: Console, package: str, walls: Sequence[str]) -> None:
    """Print what is tried, and how much of an enclave's isolation it has here."""
    line = Text(f"{plain_text(package)}, in a vault with a throw-away key", style="bold")
    console.print(line)
    console.print(Text(f"walls: {'; '.join(walls) or 'none'}", style="dim"))


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


def steps_json(package: str, walls: Sequence[str], steps: Sequence[Step]) -> str:
    """Return a trial as one JSON object."""
    document = {
        "package": package,
        "walls": walls,
        "steps": [_step_object(step) for step in steps],
        "crossed": all(step.crossed for step in steps),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


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
        },
        "user": {
            "output": user.output,
            "stderr": user.errors,
            "result": user.result,
            "type": user.result_type,
            "error": user.error,
            "traceback": user.traceback,
            "incident": user.incident,
            "exit_code": user.exit_code,
            "files": step.files,
        },
        "calls": [_call_object(pair) for pair in step.calls],
        "notes": step.notes,
    }


def _call_object(pair: CallPair) -> dict[str, Any]:
    return {
        "name": pair.user.name,
        "error": pair.user.error,
        "incident": pair.user.incident,
        "owner_error": "" if pair.owner is None else pair.owner.error,
        "owner_traceback": "" if pair.owner is None else pair.owner.traceback,
    }


def _owner(step: Step) -> RenderableType:
    ended = step.owner
    parts = [*_part("stdout", ended.output), *_part("stderr", ended.errors)]
    for pair in step.hidden_calls():
        if pair.owner is not None and pair.owner.traceback:
            title = f"incident {pair.user.incident}" if pair.user.incident else pair.user.name
            parts += _part(f"{title}, caught", pair.owner.traceback, "red")
    if ended.error:
        name = f"incident {step.user.incident}" if step.user.incident else "error"
        parts += _part(name, ended.traceback or ended.error, "red")
    parts += _result(ended)
    if step.kind == "script":
        parts += _part("", f"exit code {ended.exit_code}")
    return Group(*parts) if parts else Text("nothing", style="dim")


def _user(step: Step) -> RenderableType:
    ended = step.user
    parts = [*_part("output", ended.output), *_part("stderr", ended.errors)]
    for pair in step.hidden_calls():
        parts += _part(f"{pair.user.name}, caught", pair.user.error, "red")
    if ended.error:
        name = f"incident {ended.incident}" if ended.incident else "error"
        # IPython's rule above it is as wide as a notebook.
        parts += _part(name, ended.traceback.lstrip("-") or ended.error, "red")
    parts += _result(ended)
    if step.files:
        parts += _part("files", "\n".join(step.files))
    if step.kind == "script" and ended.exit_code is not None:
        parts += _part("", f"exit code {ended.exit_code}")
    return Group(*parts) if parts else Text("nothing", style="dim")


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
