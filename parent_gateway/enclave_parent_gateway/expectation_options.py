"""The options `--expect-pcr...` of `enclave up`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from enclave_parent_gateway.expected_pcrs import (
    EXPECTABLE,
    forget_pcrs,
    parse_expectation,
    remember_pcrs,
)
from enclave_parent_gateway.runtime_dir import EnclavePaths

__all__ = ["choose_expectations", "expectation_options"]

_FORGET = "default"
_HELP = {
    0: "Accept an image with this PCR0; an EIF is measured. Several: old and new side by side.",
    1: "The same for PCR1: kernel and its command line, first ramdisk.",
    2: "The same for PCR2: the other ramdisks.",
    3: "The same for PCR3: the IAM role of the parent instance.",
    8: "The same for PCR8: the certificate that the image was signed with.",
}
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _name(index: int) -> str:
    return f"expect_pcr{index}"


def expectation_options(command: _Command) -> _Command:
    """Give a command one option for each PCR that can be expected."""
    for index in reversed(EXPECTABLE):
        command = click.option(
            f"--expect-pcr{index}",
            _name(index),
            multiple=True,
            metavar="HEX" if index == 3 else "HEX|FILE.eif",
            help=_HELP[index],
        )(command)
    return command


def choose_expectations(paths: EnclavePaths, options: Mapping[str, tuple[str, ...]]) -> bool:
    """Remember what the options say; return whether there were any.

    Raises:
        ExpectedPcrsError: One is no value.
        UsageError: `default` is given together with a value.
    """
    given = {index: options[_name(index)] for index in EXPECTABLE if options[_name(index)]}
    if not given:
        return False
    if any(_FORGET in values for values in given.values()):
        if given != {0: (_FORGET,)}:
            raise click.UsageError(f"--expect-pcr0 {_FORGET} goes with no other expectation")
        forget_pcrs(paths)
        return True
    remember_pcrs(
        paths,
        {
            index: frozenset(parse_expectation(index, value) for value in values)
            for index, values in given.items()
        },
    )
    return True
