"""The command `enclave`: what an enclave administrator and a data scientist type.

Exit codes: 0 done, 1 failed with one line on standard error, 2 misused, 3 no enclave (`status`);
`run` has those of its script, and its own from 124.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enclave_parent_gateway.api import ChannelAttested, KeepRunning
from enclave_parent_gateway.attestation_view import attest, new_nonce
from enclave_parent_gateway.backends.base import BACKENDS
from enclave_parent_gateway.cli_text import examples as _examples
from enclave_parent_gateway.confidentiality import confidentiality_warning
from enclave_parent_gateway.egress_cli import proxy
from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.enclave_wait import wait_for_end
from enclave_parent_gateway.expectation_options import choose_expectations, expectation_options
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.interrupts import DeferredInterrupts
from enclave_parent_gateway.lifecycle import bring_down, bring_up, running_status
from enclave_parent_gateway.logs_command import logs
from enclave_parent_gateway.machine_options import chosen_machine, machine_options
from enclave_parent_gateway.metrics_command import metrics
from enclave_parent_gateway.run_cli import run
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.service_manager import say_ready
from enclave_parent_gateway.status_command import status
from enclave_parent_gateway.sync_cli import sync
from enclave_parent_gateway.trust_command import trust
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import Attest, Done

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]


class _Commands(click.Group):
    """A group whose commands show our errors as one line, exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes click's, which shows it as one line."""
        try:
            return super().invoke(ctx)
        except EnclaveError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.strerror or error}: {error.filename}") from error


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # late: 0.1 s that `status --json` can do without

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def _steps(console: "Console") -> Iterator[Any]:
    """Show one step after another: a spinner on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda step: console.print(f"  {step} ...")
        return
    with console.status("looking for an enclave") as status:
        yield status.update


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples("enclave up", "jupyter lab        # choose the kernel: Python 3 (enclave)"),
)
def main() -> None:
    """Run Jupyter kernels in an enclave."""


@main.command(
    epilog=_examples(
        "enclave up",
        "enclave up --memory 2048 --idle-timeout 600",
        "enclave up --expect-pcr0 old.eif --expect-pcr0 new.eif",
        "enclave up --backend nitro --image enclave.eif",
    )
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default=BACKENDS[0],
    envvar="ENCLAVE_BACKEND",
    show_default=True,
    help="Where the enclave runs; local: processes of this machine; nitro: a Nitro enclave of this "
    "instance.",
)
@machine_options
@click.option(
    "--idle-timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="S",
    help="Go down after so many seconds without a kernel.  [default: never]",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Stay until the enclave ends (exit code 1), and end it on Ctrl-C or SIGTERM (0).",
)
@expectation_options
def up(backend: str, idle_timeout: float, wait: bool, **options: Any) -> None:
    """Start the enclave; harmless if it is up.

    What answers is used only if its attestation document shows the PCRs that are expected. They
    are remembered: give --expect-... again to replace all of them, or --expect-pcr0 default to
    forget them (the local backend then expects the code that it starts, nitro the image).
    """
    paths = EnclavePaths.from_environment()
    console = _console()
    began = time.monotonic()
    machine = chosen_machine(options, of_environment=backend != "local")
    chosen = choose_expectations(paths, options)
    # To the last line: an interrupted `up` leaves nothing, and one that leaves it says so.
    with DeferredInterrupts() as interrupts:
        with _steps(console) as progress:
            state, started = bring_up(
                paths,
                backend=backend,
                machine=machine,
                idle_timeout_s=idle_timeout,
                progress=progress,
                interrupts=interrupts,
                wait_for_all=True,
            )
        try:
            interrupts.check()
        except KeyboardInterrupt:
            if started:
                bring_down(paths, progress=progress)
            raise
        if not started:
            # Whoever types this wants it to stay, also if a notebook had started it.
            ask_blocking(paths.gateway_socket, KeepRunning(idle_timeout), Done)
            if chosen:
                # The gateway checked it against what was expected before.
                ask_blocking(paths.gateway_socket, Attest(new_nonce()), ChannelAttested)
        found = running_status(paths.gateway_socket)
        if found is not None and found.refusal is not None:
            raise click.ClickException(found.refusal.message)
        if found is None or found.enclave is None:
            raise click.ClickException("the enclave ended right after its start; see: enclave logs")
        if started:
            console.print(f"The enclave is up ({time.monotonic() - began:.1f} s).")
        else:
            later = " --memory takes effect at the next start." if machine.memory_mib else ""
            console.print(f"The enclave was up already.{later}")
        console.print(f"PCR0 {found.enclave.pcrs.get('0', 'unknown')}")
        _print_confidential(console, state)
        if wait:
            say_ready()
            _wait(paths, state, interrupts)


def _wait(paths: EnclavePaths, state: EnclaveState, interrupts: DeferredInterrupts) -> None:
    try:
        wait_for_end(state, interrupts)
    except KeyboardInterrupt:
        bring_down(paths, progress=lambda _: None)
        return
    raise click.ClickException("the enclave has ended; see: enclave logs")


def _print_confidential(console: "Console", state: EnclaveState) -> None:
    warning = confidentiality_warning(state)
    if warning is not None:
        console.print(warning, style="bold red")


main.add_command(status)
main.add_command(attest)
main.add_command(sync)
main.add_command(run)


@main.command(epilog=_examples("enclave down"))
def down() -> None:
    """End the enclave and all its kernels; harmless if none is up.

    A notebook that is still open starts its kernel again, and with it a local enclave: close
    notebooks first.
    """
    console = _console()
    with _steps(console) as progress:
        ended = bring_down(EnclavePaths.from_environment(), progress=progress)
    console.print("The enclave is down." if ended else "No enclave was up; nothing to do.")


main.add_command(logs)
main.add_command(metrics)
main.add_command(trust)


@main.command(
    "install-kernelspec",
    epilog=_examples(
        "enclave install-kernelspec --user",
        "enclave install-kernelspec --prefix /opt/conda",
    ),
)
@click.option("--user", is_flag=True, help="For you: Jupyter's data directory in your home.")
@click.option("--sys-prefix", is_flag=True, help="Into this Python environment.  [default]")
@click.option(
    "--prefix", type=click.Path(path_type=Path, file_okay=False), help="Into PREFIX/share/jupyter."
)
def install(user: bool, sys_prefix: bool, prefix: Path | None) -> None:
    """Make the kernel known to Jupyter."""
    from enclave_parent_gateway.kernelspec_install import install_kernelspec

    if user + sys_prefix + (prefix is not None) > 1:
        raise click.UsageError("choose one of --user, --sys-prefix and --prefix")
    if user:
        from jupyter_core.paths import jupyter_data_dir

        data_dir = Path(jupyter_data_dir())
    else:
        data_dir = (prefix or Path(sys.prefix)) / "share" / "jupyter"
    click.echo(f"Installed the kernel in {install_kernelspec(data_dir)}")


main.add_command(proxy)
