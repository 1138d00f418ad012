"""The command `enclave-image`: builds enclave images and shows what is in them.

Exit codes: 0 done, 1 failed with one line on standard error (compare: they differ), 2 misused,
130 interrupted.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from enclave_infra.image.debian_lock import ARCHITECTURES, write_lock
from enclave_infra.image.debian_mirror import Mirror, configured_mirror
from enclave_infra.image.errors import ImageError
from enclave_protocol.errors import EnclaveError

if TYPE_CHECKING:
    from rich.console import Console

    from enclave_infra.image.image_view import ImageView

__all__ = ["main"]

_LOCKS: Final = Path(__file__).parent / "locks"
_DEBIAN_LOCK: Final = _LOCKS / "debian.lock"
_FLAVOURS: Final = ("base", "datascience")
_INTERRUPTED: Final = 130
_DIFFERENT: Final = 1


class _Commands(click.Group):
    """A group whose commands show our errors as one line, exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EnclaveError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.strerror or error}: {error.filename}") from error
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
            ctx.exit(_INTERRUPTED)


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _console() -> "Console":
    from rich.console import Console  # late: --help can do without

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _steps(console: "Console") -> Iterator[Callable[[str], None]]:
    """Show one step after another, and how long it has taken so far."""
    if not console.is_terminal:
        yield lambda step: console.print(f"  {step} ...")
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def step(text: str) -> None:
            for task in progress.tasks:
                progress.update(task.id, total=1, completed=1)
            progress.add_task(text, total=None)

        yield step


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "enclave-image")


_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_output = click.Path(dir_okay=False, path_type=Path)
_mirror_option = click.option(
    "--mirror",
    metavar="URL",
    help="Debian's archive; security updates are then not asked for.  "
    "[default: what apt on this machine uses]",
)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples("enclave-image build -o base.eif", "enclave-image describe base.eif"),
)
def main() -> None:
    """Build enclave images and show what is in them."""


@main.command(
    epilog=_examples(
        "enclave-image build -o base.eif",
        "enclave-image build -o vm.eif --development",
        "enclave-image build -o ec2.eif --kernel-dir /usr/share/nitro_enclaves/blobs",
        "enclave-image build -o ours.eif --flavour datascience --requirements ours.lock",
    )
)
@click.option("-o", "--output", required=True, type=_output, help="The EIF to write.")
@click.option(
    "--flavour",
    type=click.Choice(_FLAVOURS),
    default=_FLAVOURS[0],
    show_default=True,
    help="base: what a kernel needs, with numpy; datascience: pandas, scikit-learn, pyarrow, "
    "onnxruntime, matplotlib as well.",
)
@click.option(
    "--requirements",
    multiple=True,
    type=_file,
    help="More Python packages: exact versions with hashes, as enclave-image lock-requirements "
    "writes them. Can be given several times.",
)
@click.option(
    "--development",
    is_flag=True,
    help="With a software NSM, for machines that have none: NOT CONFIDENTIAL.",
)
@click.option(
    "--arch",
    type=click.Choice(list(ARCHITECTURES)),
    default=platform.machine(),
    show_default=True,
    help="aarch64 is Graviton.",
)
@click.option(
    "--kernel-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="nitro-cli's blobs, for EC2.  [default: Debian's cloud kernel, for a VM]",
)
@click.option("--tar", type=_output, help="Write the root file system as a tar file, too.")
@click.option("--debian-lock", type=_file, help="Debian packages.  [default: this version's list]")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps fetched packages.  [default: ~/.cache/enclave-image]",
)
@_mirror_option
def build(
    output: Path,
    flavour: str,
    requirements: tuple[Path, ...],
    development: bool,
    arch: str,
    kernel_dir: Path | None,
    tar: Path | None,
    debian_lock: Path | None,
    cache: Path | None,
    mirror: str | None,
) -> None:
    """Build an image and print its PCRs.

    The same version of this command makes the same image on every machine, bit for bit. Beside it
    stands FILE.spdx.json, the list of what is in it.
    """
    from enclave_infra.image.build import BuildOptions, build_image

    if not output.absolute().parent.is_dir():
        raise ImageError(f"there is no folder {output.absolute().parent} to write to")
    console = _console()
    began = time.monotonic()
    options = BuildOptions(
        output=output,
        flavour=flavour,
        requirements=(_LOCKS / f"requirements-{flavour}.lock", *requirements),
        machine=arch,
        mirror=Mirror(mirror) if mirror else configured_mirror(),
        debian_lock=debian_lock or _DEBIAN_LOCK,
        kernel_folder=kernel_dir,
        development=development,
        tar=tar,
        cache=cache or _default_cache(),
    )
    with _steps(console) as progress:
        built = build_image(options, progress)
    size_mib = output.stat().st_size / 2**20
    took_s = time.monotonic() - began
    console.print(f"{output}: {built.name}, {size_mib:.1f} MiB, in {took_s:.0f} s; {built.sbom}")
    if development:
        console.print("NOT CONFIDENTIAL: this image has a software NSM, for development")
    for index, value in built.eif.pcrs.items():
        click.echo(f"PCR{index} {value.hex()}")


@main.command(
    epilog=_examples("enclave-image describe base.eif", "enclave-image describe base.eif --json")
)
@click.argument("image", metavar="FILE.eif", type=_file)
@click.option("--json", "as_json", is_flag=True, help="As nitro-cli describe-eif, and sections.")
def describe(image: Path, as_json: bool) -> None:
    """Show sections, sizes and PCRs of an image."""
    from enclave_infra.image.image_view import SECTION_NAMES, view_image

    view = view_image(image)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_described(view))).decode())
        return
    name, version = view.metadata.get("ImageName", "?"), view.metadata.get("ImageVersion", "?")
    machine = "aarch64" if view.eif.arm64 else "x86_64"
    click.echo(f"{name} {version}, {machine}, {image.stat().st_size / 2**20:.1f} MiB")
    for kind, offset, size in view.sections():
        click.echo(f"  {SECTION_NAMES[kind]:9} {size:>12} bytes at {offset}")
    click.echo(f"  command line: {view.cmdline}")
    for index, value in view.eif.pcrs.items():
        click.echo(f"PCR{index} {value.hex()}")


def _described(view: "ImageView") -> dict[str, Any]:
    """Return what nitro-cli 1.5 prints, under its names, and our `Sections`."""
    from enclave_infra.image.image_view import SECTION_NAMES

    pcrs = {f"PCR{index}": value.hex() for index, value in view.eif.pcrs.items()}
    return {
        "EifVersion": 4,
        "Measurements": {"HashAlgorithm": "Sha384 { ... }", **pcrs},
        "IsSigned": 8 in view.eif.pcrs,
        "CheckCRC": True,  # a file whose CRC is another is refused
        "ImageName": view.metadata.get("ImageName"),
        "ImageVersion": view.metadata.get("ImageVersion"),
        "Metadata": view.metadata,
        "Sections": [
            {"type": SECTION_NAMES[kind], "offset": offset, "size": size}
            for kind, offset, size in view.sections()
        ],
    }


@main.command(epilog=_examples("enclave-image compare ours.eif theirs.eif"))
@click.argument("one", metavar="A.eif", type=_file)
@click.argument("other", metavar="B.eif", type=_file)
@click.option("--json", "as_json", is_flag=True, help="As a list of differences.")
@click.pass_context
def compare(ctx: click.Context, one: Path, other: Path, as_json: bool) -> None:
    """Say what differs between two images, down to the file.

    Exit code 0 if they are the same image, 1 if they differ.
    """
    from enclave_infra.image.comparison import compare_images
    from enclave_infra.image.image_view import view_image

    found = compare_images(view_image(one), view_image(other))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    for difference in () if as_json else found:
        click.echo(f"{difference.what}: {difference.one or '-'} | {difference.other or '-'}")
    if not found and not as_json:
        click.echo("the same image")
    ctx.exit(_DIFFERENT if found else 0)


@main.command(epilog=_examples("enclave-image lock", "enclave-image lock --debian-only -d /tmp"))
@click.option(
    "-d",
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=_LOCKS,
    help="Where the lock files go.  [default: this installation's own]",
)
@click.option("--debian-only", is_flag=True, help="Leave the Python packages as they are.")
@_mirror_option
def lock(directory: Path, debian_only: bool, mirror: str | None) -> None:
    """Write the lock files anew, from what the mirror and the package index have now.

    Review the change before you commit it: it is what every image is made of.
    """
    from enclave_infra.image.lock import lock_debian, lock_python, requirements_of

    source = Mirror(mirror) if mirror else configured_mirror()
    texts: dict[str, str] = {}
    with _steps(_console()) as progress:
        base: str | None = None
        for flavour in () if debian_only else _FLAVOURS:
            text = lock_python(flavour, requirements_of(flavour), progress, base)
            texts[f"requirements-{flavour}.lock"] = text
            base = base or text
        packages = lock_debian(source, progress)
    for name, text in texts.items():
        (directory / name).write_text(text)
    write_lock(directory / _DEBIAN_LOCK.name, packages)
    click.echo(f"{directory}: written")


@main.command(
    "lock-requirements", epilog=_examples("enclave-image lock-requirements ours.in -o ours.lock")
)
@click.argument("requirements", type=_file)
@click.option("-o", "--output", required=True, type=_output, help="The lock file to write.")
@click.option("--flavour", type=click.Choice(_FLAVOURS), default=_FLAVOURS[0], show_default=True)
def lock_requirements(requirements: Path, output: Path, flavour: str) -> None:
    """Turn requirements into a lock file for `build --requirements`.

    Packages that the flavour has already keep its versions and are left out.
    """
    from enclave_infra.image.lock import lock_python, without

    lines = [line.partition("#")[0].strip() for line in requirements.read_text().splitlines()]
    base = (_LOCKS / f"requirements-{flavour}.lock").read_text()
    with _steps(_console()) as progress:
        text = lock_python(requirements.name, [line for line in lines if line], progress, base)
    output.write_text(without(text, base))
    click.echo(f"{output}: written")
