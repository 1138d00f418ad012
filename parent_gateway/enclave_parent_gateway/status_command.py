"""`enclave status`: what runs, for people and for scripts."""

import sys
from typing import Final

import click
import msgspec

from enclave_parent_gateway.cli_text import examples
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.lifecycle import running_status
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.status_report import make_report

__all__ = ["status"]

_DOWN: Final = 3
_WIDE: Final = 160
"""Columns of a table that goes into a file or a pipe."""


@click.command(
    epilog=examples(
        "enclave status",
        "enclave status --json | jq .pcrs",
        "enclave status --json | jq '.kernels[] | {kernel_id, memory_bytes, vaults}'",
    )
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(as_json: bool) -> None:
    """Say what runs. Exit code 0: the enclave is up; 3: it is not.

    Of a kernel: its process and what that started, seen every 5 s. Of a package: what its label
    says to everybody, and memory and processors in steps, seen twice a minute: more would tell
    what its code does.
    """
    paths = EnclavePaths.from_environment()
    report = make_report(paths, read_state(paths.state_file), running_status(paths.gateway_socket))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        from rich.console import Console  # late: 0.1 s that `status --json` can do without

        from enclave_parent_gateway.status_view import print_report

        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = _WIDE
        print_report(console, report)
    if report.state != "up":
        sys.exit(_DOWN)
