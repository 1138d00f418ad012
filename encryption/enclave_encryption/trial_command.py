"""`enclave-owner try`: what is typed, and what is printed."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from enclave_encryption.errors import OwnerError
from enclave_encryption.package_plan import PackagePlan, plan_package
from enclave_encryption.trial_prompt import typed_cells
from enclave_encryption.trial_step import Step
from enclave_encryption.trial_view import print_step, print_walls, steps_json

if TYPE_CHECKING:
    from enclave_encryption.trial import Trial

__all__ = ["try_command"]

_INTERRUPTS_OF_A_CELL: Final = 2


@click.command("try")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-c", "codes", metavar="CODE", multiple=True, help="A cell; may be given again.")
@click.option(
    "-f",
    "files",
    metavar="CELL.py",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file with a cell, run before those of -c.",
)
@click.option("--script", metavar="SCRIPT", help="A script of the package, with ARGS behind --.")
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="What / means in ARGS; default: here.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.argument("arguments", metavar="[-- ARGS]", nargs=-1, type=click.UNPROCESSED)
def try_command(
    directory: Path,
    codes: tuple[str, ...],
    files: tuple[Path, ...],
    script: str | None,
    workspace: Path | None,
    as_json: bool,
    arguments: tuple[str, ...],
) -> int:
    """Show side by side what you see of DIR's code, and what its user would see.

    The same code runs twice: with DIR imported as it is, and with DIR encrypted under a key made
    for this, in a vault, under the policy of its enclave.toml. No AWS is needed, nothing is
    written. In a cell the exports are bound to their names. Without -c, -f and --script there is
    a prompt. Exit code 0: every call crossed.

    \b
    Example:
      enclave-owner try credit_scorer/ -c "score([1, 2, 3])"
      enclave-owner try app/ --script classify.py -- -m model.h5 -d /dataset/ -o /output/
    """
    if arguments and script is None:
        raise click.UsageError("ARGS are for --script; put a cell behind -c")
    if script is not None and (codes or files):
        raise click.UsageError("--script runs alone: leave out -c and -f")
    if as_json and not (codes or files or script):
        raise click.UsageError("--json needs -c, -f or --script")
    if sys.platform != "linux":
        raise OwnerError("`try` needs Linux: the vault that it starts is made of Linux's parts")
    # Late: the other commands work elsewhere, too.
    from enclave_encryption.trial import running_trial

    plan = plan_package(directory)
    package = f"{plan.manifest.package.name} {plan.manifest.package.version}"
    file = None if script is None else _script_file(plan, script)
    cells = [*map(_read_cell, files), *codes]
    typed = not cells and file is None
    console = Console(highlight=False, markup=False)
    steps: list[Step] = []
    with contextlib.ExitStack() as stack:
        with _waiting("Starting a vault"):
            place = (workspace or Path.cwd()).resolve()
            trial = stack.enter_context(running_trial(plan, place, cells=script is None))
        for step in _steps(trial, cells, file, arguments, typed=typed):
            if not as_json and not steps:
                print_walls(console, package, step.user.walls)
            steps.append(step)
            # Loading is of interest only where it went wrong.
            if not as_json and (step.kind != "load" or step.user.error or step.owner.error):
                print_step(console, step)
    if as_json:
        click.echo(steps_json(package, steps[-1].user.walls, steps))
    return 0 if all(step.crossed for step in steps) else 1


def _steps(
    trial: "Trial",
    cells: Sequence[str],
    script: str | None,
    arguments: Sequence[str],
    *,
    typed: bool,
) -> Iterator[Step]:
    if script is not None:
        with _waiting("Running"):
            step = trial.run_script(script, arguments)
        yield step
        return
    yield trial.loaded
    if trial.loaded.user.error:
        return
    for source in cells:
        with _waiting("Running"):
            step = trial.run_cell(source)
        yield step
    if typed:
        for source in typed_cells():
            with _passing_on_interrupts(trial):
                step = trial.run_cell(source)
            yield step


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def _passing_on_interrupts(trial: "Trial") -> Iterator[None]:
    """Have Ctrl-C interrupt the cell on both sides; the third time it ends `try`."""
    presses = 0
    outer: Any = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > _INTERRUPTS_OF_A_CELL:
            outer(number, frame)
        # Without an exception: what is being read is read to its end.
        trial.interrupt()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outer)


def _script_file(plan: PackagePlan, script: str) -> str:
    """Return the path of a script that is named as for `%run_encrypted`."""
    scripts = plan.manifest.scripts
    if script in scripts:
        return scripts[script].file
    files = sorted(declared.file for declared in scripts.values())
    if script not in files:
        raise OwnerError(
            f"the package has no script {script!r}; it has: {', '.join(files) or 'none'}"
        )
    return script


def _read_cell(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise OwnerError(f"{path}: cannot be read: {reason}") from None
