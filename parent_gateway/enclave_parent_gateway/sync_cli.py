"""`enclave sync`: the mirror of a folder and the enclave's workspace."""

import sys
from pathlib import Path

import click
import msgspec

from enclave_parent_gateway.cli_text import examples
from enclave_parent_gateway.runtime_dir import EnclavePaths

__all__ = ["sync"]


@click.command(
    epilog=examples(
        "enclave sync -d project           # until Ctrl-C",
        "enclave sync -d project --once    # in a script",
    )
)
@click.option(
    "-d",
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="The folder that is to be the enclave's workspace.",
)
@click.option("--once", is_flag=True, help="End when both sides are the same.")
@click.option("--json", "as_json", is_flag=True, help="Say at the end what was done, for scripts.")
def sync(directory: Path, once: bool, as_json: bool) -> None:
    """Mirror DIR and the enclave's workspace, both ways, as they change.

    New, changed, renamed and removed files follow within a tenth of a second. What both sides
    changed is kept twice: yours under its name, the enclave's as "name (conflict DATE enclave)".
    Not mirrored: links, devices, names that programs would run by themselves when they come out of
    the enclave, and what DIR/.enclaveignore names (the syntax of .gitignore; without it .git,
    __pycache__ and .ipynb_checkpoints).

    A notebook in DIR starts in its own folder in the enclave. Exit code 1: not everything could be
    brought; standard error says what and why.
    """
    from rich.console import Console

    from enclave_parent_gateway.sync.sync_command import SyncCommand
    from enclave_parent_gateway.sync.sync_display import SyncDisplay, problem_lines

    display = SyncDisplay(Console(stderr=True, highlight=False))
    paths = EnclavePaths.from_environment()
    paths.require_own("sudo -u enclave enclave sync -d DIR")
    command = SyncCommand(paths, directory, display.show)
    try:
        report = command.run(once=once)
    except KeyboardInterrupt:
        display.close()
        click.echo("Ended; both sides keep what they have.", err=True)
        return
    finally:
        display.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        click.echo(
            f"In sync: {report.entries} files and folders, {report.brought} changes brought in "
            f"{report.seconds:.1f} s."
        )
    if report.problems:
        for line in problem_lines(report.problems):
            click.echo(line, err=True)
        sys.exit(1)
