"""The command `enclave-image`: builds enclave images and shows what is in them.

Exit codes: 0 done, 1 failed with one line on standard error, 2 misused.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from enclave_infra.image.debian_lock import ARCHITECTURES
from enclave_infra.image.debian_mirror import Mirror, configured_mirror
from enclave_protocol.errors import EnclaveError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

_DATA: Final = Path(__file__).parent / "locks"
_FLAVOURS: Final = ("base", "datascience")


class _Commands(click.Group):
    """A group whose commands show our errors as one line, exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EnclaveError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.strerror or error}: {error.filename}") from error


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # late: --help can do without

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def _steps(console: "Console") -> Iterator[Callable[[str], None]]:
    """Show one step after another: a spinner on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda step: console.print(f"  {step} ...")
        return
    with console.status("starting") as status:
        yield status.update


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build enclave images and show what is in them."""


@main.command()
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--flavour", type=click.Choice(_FLAVOURS), default=_FLAVOURS[0], show_default=True)
@click.option("--development", is_flag=True)
@click.option("--arch", type=click.Choice(list(ARCHITECTURES)), default=platform.machine())
@click.option("--kernel-dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--debian-lock", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--mirror")
def build(
    output: Path,
    flavour: str,
    development: bool,
    arch: str,
    kernel_dir: Path | None,
    debian_lock: Path | None,
    mirror: str | None,
) -> None:
    """Build an image."""
    from enclave_infra.image.build import BuildOptions, build_image

    console = _console(stderr=True)
    began = time.monotonic()
    options = BuildOptions(
        output,
        flavour,
        (_DATA / f"requirements-{flavour}.lock",),
        arch,
        Mirror(mirror) if mirror else configured_mirror(),
        debian_lock,
        kernel_dir,
        development,
    )
    with _steps(console) as progress:
        built = build_image(options, progress)
    size = output.stat().st_size / 2**20
    console.print(f"{output}: {built.name}, {size:.1f} MiB, {time.monotonic() - began:.0f} s")
    for index, value in built.eif.pcrs.items():
        click.echo(f"PCR{index} {value.hex()}")
