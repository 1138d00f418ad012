"""`enclave run`: a script of an encrypted package, from the command line."""

import sys
from pathlib import Path

import click

from enclave_parent_gateway.cli_text import examples

__all__ = ["run"]


@click.command(
    context_settings={"ignore_unknown_options": False},
    epilog=examples(
        'enclave run -f application.encrypted -s ml_algorithm.py -a "-m model.h5 -d /dataset/ '
        '-o /output/"',
        "enclave run -f app.encrypted -s train.py --timeout 3600 --env EPOCHS=3 -- -o /output/",
        "enclave run -f app.encrypted -s report.py --json -o results | jq .exit_code",
    ),
)
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The encrypted package.",
)
@click.option("-s", "--script", required=True, metavar="SCRIPT", help="The script in it to run.")
@click.option(
    "-a",
    "--arguments",
    default="",
    metavar='"ARGS"',
    help="Its arguments, split as a shell splits them. Or give them behind --.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Put what the script writes to its output folder here.  [default: the folder of that name "
    "in the workspace, as ./output for /output/]",
)
@click.option(
    "-w",
    "--workspace",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The folder that / means in the arguments.  [default: that of `enclave sync` if it runs, "
    "else this one]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    metavar="SECONDS",
    help="Interrupt the script after so long, and end it 5 s later. Exit code 124.",
)
@click.option(
    "--env",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for the script, one that its owner named, or OMP_NUM_THREADS, LANG, TZ and "
    "the like. NAME alone takes the value from here. Can be repeated.",
)
@click.option("--unsigned", is_flag=True, help="Run a package that no publisher signed, too.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a summary for scripts on standard output; all that the script prints goes to "
    "standard error.",
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the same summary to FILE.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of our own but errors.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
def run(
    file: Path,
    script: str,
    arguments: str,
    output_dir: Path | None,
    workspace: Path | None,
    timeout: float | None,
    env: tuple[str, ...],
    unsigned: bool,
    as_json: bool,
    summary: Path | None,
    quiet: bool,
    more: tuple[str, ...],
) -> None:
    """Run a script of an encrypted package in the enclave, in a vault of its own.

    Of the arguments, a relative path means the package, an absolute one your workspace: /dataset/
    is its folder dataset. The script sees copies of the files that the arguments name, and nothing
    else of yours. The files it leaves in /output/, and in what follows -o or --output among its
    arguments, are in your workspace when the command returns.

    A publisher's key is pinned at first use, as by %load_encrypted; see `enclave trust`. No enclave
    has to be up: a local one is started.

    Ctrl-C interrupts the script, which has 5 s to end; a second one stops it at once.

    Exit code: the script's. Or 124 its time was up, 125 it could not be run or its results not be
    written, 130 interrupted, 137 it crashed, or was ended for its memory; one line on standard
    error says why.
    """
    from enclave_parent_gateway.run.run_command import RunCommand, RunRequest

    request = RunRequest(
        file=file,
        script=script,
        arguments=arguments,
        more=more,
        output_dir=output_dir,
        workspace=workspace,
        timeout_s=timeout,
        settings=env,
        unsigned=unsigned,
        as_json=as_json,
        summary=summary,
        quiet=quiet,
    )
    sys.exit(RunCommand(request).run())
