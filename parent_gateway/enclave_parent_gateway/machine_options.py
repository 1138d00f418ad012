"""The options of `enclave up` that say what the enclave runs on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from enclave_parent_gateway.backends.base import Machine

__all__ = ["chosen_machine", "machine_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--memory",
        type=click.IntRange(min=64),
        metavar="MIB",
        help="nitro: the enclave's memory in MiB, at least four times the image.  [default: all "
        "that the allocator keeps]  local: most memory that each kernel may use together with what "
        "it starts, in MiB. One that needs more is ended, and no other. Packages do not count.  "
        "[default: no limit]",
    ),
    click.option(
        "--image",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="ENCLAVE_IMAGE",
        metavar="FILE.eif",
        help="nitro: the enclave's image.",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(min=1),
        metavar="N",
        help="nitro: its CPUs, whole cores.  [default: all that the allocator keeps]",
    ),
    click.option(
        "--cid",
        type=click.IntRange(min=4, max=2**32 - 2),
        metavar="N",
        help="nitro: its vsock CID.  [default: chosen by nitro-cli]",
    ),
    click.option(
        "--debug-mode",
        is_flag=True,
        help="nitro: `enclave logs` shows its console, and so can root on this machine. NOT "
        "CONFIDENTIAL: the enclave proves nothing, and gets no key for a production package.",
    ),
    click.option(
        "--no-gateway",
        is_flag=True,
        help="nitro: start no gateway, one runs already (as systemd's unit).",
    ),
)


def machine_options(command: _Command) -> _Command:
    """Give a command the options; it hands what it gets of them to `chosen_machine`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_machine(options: Mapping[str, Any], *, of_environment: bool) -> Machine:
    """Return what the options ask for.

    Args:
        options: What click made of them; other keys are not looked at.
        of_environment: Whether the variable ENCLAVE_IMAGE counts: not for a backend without images.

    Raises:
        UsageError: Two contradict each other.
    """
    if options["no_gateway"] and options["cid"] is None:
        raise click.UsageError("--no-gateway needs --cid: the gateway that runs must know it")
    context = click.get_current_context()
    source = context.get_parameter_source("image")
    given = of_environment or source is not click.core.ParameterSource.ENVIRONMENT
    return Machine(
        memory_mib=options["memory"],
        image=options["image"] if given else None,
        cpus=options["cpus"],
        cid=options["cid"],
        debug=options["debug_mode"],
        with_gateway=not options["no_gateway"],
    )
