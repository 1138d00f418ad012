"""`enclave-owner try`: what is typed, and what is printed."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console

from enclave_encryption.errors import OwnerError
from enclave_encryption.incident_lookup import FoundPlace, IncidentLookup
from enclave_encryption.package_notebook import check_notebook_arguments, read_notebook
from enclave_encryption.package_plan import PackagePlan, plan_package
from enclave_encryption.package_scripts import MAX_NOTEBOOK_BYTES
from enclave_encryption.trial_prompt import typed_cells
from enclave_encryption.trial_step import Step
from enclave_encryption.trial_view import (
    incident_object,
    print_place,
    print_reproduced,
    print_step,
    print_walls,
    steps_object,
)
from enclave_protocol.incident import INCIDENT_KEY_NAME, is_incident
from enclave_protocol.manifest import MANIFEST_NAME
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX

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
@click.option(
    "--script", metavar="SCRIPT", help="A script or notebook of the package, with ARGS behind --."
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="What / means in ARGS; default: here.",
)
@click.option(
    "--incident",
    metavar="ID",
    help="What a user reports: where in DIR it arose, and whether the cells raise there, too.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.argument("arguments", metavar="[-- ARGS]", nargs=-1, type=click.UNPROCESSED)
def try_command(
    directory: Path,
    codes: tuple[str, ...],
    files: tuple[Path, ...],
    script: str | None,
    workspace: Path | None,
    incident: str | None,
    as_json: bool,
    arguments: tuple[str, ...],
) -> int:
    """Show side by side what you see of DIR's code, and what its user would see.

    The same code runs twice: with DIR imported as it is, and with DIR encrypted under a key made
    for this, in a vault, under the policy of its enclave.toml. No AWS is needed, nothing is
    written. In a cell the exports are bound to their names. Without -c, -f and --script there is
    a prompt. Exit code 0: every call crossed.

    An incident id is all that users see of most errors. With DIR/incidents.key, which `init`
    writes, --incident shows the line that it stands for; with cells or a script the exit code
    is 0 if one of them raised there.

    \b
    Example:
      enclave-owner try credit_scorer/ -c "score([1, 2, 3])"
      enclave-owner try app/ --script classify.py -- -m model.h5 -d /dataset/ -o /output/
      enclave-owner try app/ --script report.ipynb -- -p threshold 0.5 -o /output/
      enclave-owner try credit_scorer/ --incident 9f86d081884c7d65 -c "score([])"
    """
    if arguments and script is None:
        raise click.UsageError("ARGS are for --script; put a cell behind -c")
    if script is not None and (codes or files):
        raise click.UsageError("--script runs alone: leave out -c and -f")
    if workspace is not None and script is None:
        raise click.UsageError("--workspace is for --script")
    if as_json and not (codes or files or script or incident):
        raise click.UsageError("--json needs -c, -f, --script or --incident")
    plan = plan_package(directory)
    found = None if incident is None else _find(plan, incident)
    file = None if script is None else _script_file(plan, script)
    if file is not None and file.endswith(NOTEBOOK_SUFFIX):
        _check_notebook(plan, file, arguments)
    cells = [*map(_read_cell, files), *codes]
    console = Console(highlight=False, markup=False)
    package = f"{plan.manifest.package.name} {plan.manifest.package.version}"
    document: dict[str, Any] = {"package": package}
    if found is not None:
        document["incident"] = incident_object(found)
        if not as_json:
            print_place(console, found)
    code = 0
    if cells or file is not None or found is None:
        wanted = _Wanted(cells, file, arguments, _folder(workspace))
        steps = _run(plan, wanted, None if as_json else console)
        document |= steps_object(steps)
        code = 0 if document["crossed"] else 1
        if found is not None:
            there = [step for step in steps if found.shown in step.places.values()]
            document["incident"]["reproduced"] = bool(there)
            code = 0 if there else 1
            if not as_json:
                print_reproduced(console, found, there)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    return code


@dataclass(frozen=True)
class _Wanted:
    """What is to run: cells, or a script with its arguments; without both there is a prompt."""

    cells: Sequence[str]
    script: str | None
    arguments: Sequence[str]
    workspace: Path


def _run(plan: PackagePlan, wanted: _Wanted, console: Console | None) -> list[Step]:
    """Run it, and print each step on `console` when it is done; None: print nothing."""
    if sys.platform != "linux":
        raise OwnerError("`try` needs Linux: the vault that it starts is made of Linux's parts")
    # Late: the other commands work elsewhere, too.
    from enclave_encryption.trial import running_trial

    steps: list[Step] = []
    with contextlib.ExitStack() as stack:
        with _waiting("Starting a vault"):
            trial = stack.enter_context(
                running_trial(plan, wanted.workspace, cells=wanted.script is None)
            )
        for step in _steps(trial, wanted):
            if console is not None and not steps:
                package = plan.manifest.package
                print_walls(console, f"{package.name} {package.version}", step.user)
            steps.append(step)
            # Loading is of interest only where it went wrong.
            if console is not None and (step.kind != "load" or step.user.error or step.owner.error):
                print_step(console, step)
    return steps


def _steps(trial: "Trial", wanted: _Wanted) -> Iterator[Step]:
    if wanted.script is not None:
        with _waiting("Running"):
            step = trial.run_script(wanted.script, wanted.arguments)
        yield step
        return
    yield trial.loaded
    if trial.loaded.user.error:
        return
    for source in wanted.cells:
        with _waiting("Running"):
            step = trial.run_cell(source)
        yield step
    if not wanted.cells:
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


def _find(plan: PackagePlan, incident: str) -> FoundPlace:
    """Return what a reported incident stands for."""
    incident = incident.strip().lower()
    if not is_incident(incident):
        raise click.UsageError(
            f"--incident {incident!r} is no incident id: those have 16 hex digits, as in "
            "[incident 9f86d081884c7d65]"
        )
    found = IncidentLookup(plan).find(incident)
    if found is None:
        raise OwnerError(
            f"incident {incident} is not of this code: look it up in the version that the user "
            f"has, with the {INCIDENT_KEY_NAME} it was encrypted with"
        )
    return found


def _folder(workspace: Path | None) -> Path:
    """Return what `/` means in a script's arguments."""
    if workspace is not None and not workspace.is_dir():
        raise OwnerError(f"--workspace {workspace}: is not a directory")
    return (workspace or Path.cwd()).resolve()


def _script_file(plan: PackagePlan, script: str) -> str:
    """Return the path of a script that is named as for `%run_encrypted`."""
    scripts = plan.manifest.scripts
    if script in scripts:
        script = scripts[script].file
    files = sorted(declared.file for declared in scripts.values())
    if script not in files:
        if any(file.entry.path == script for file in plan.tree.files):
            raise OwnerError(
                f"{script} is not declared in [scripts] of {plan.tree.root / MANIFEST_NAME}, so no "
                f"user can run it; declared: {', '.join(files) or 'none'}"
            )
        raise OwnerError(
            f"the package has no script {script!r}; it has: {', '.join(files) or 'none'}"
        )
    return script


def _check_notebook(plan: PackagePlan, file: str, arguments: Sequence[str]) -> None:
    """Refuse what no vault would run, before one is started."""
    text = plan.tree.text(file, MAX_NOTEBOOK_BYTES) or ""
    check_notebook_arguments(read_notebook(text, file), arguments, file)


def _read_cell(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise OwnerError(f"{path}: cannot be read: {reason}") from None
