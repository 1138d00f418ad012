"""`%enclave`: which enclave this notebook runs in, and what stands around it."""

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from enclave_kernel.session.not_in_enclave import supervisor_link
from enclave_kernel.session.one_line import in_one_line
from enclave_kernel.session_messages import About
from enclave_protocol.plain_text import plain_text

__all__ = ["EnclaveMagic", "describe"]

_RED, _PLAIN = "\x1b[1;31m", "\x1b[0m"
_LABEL_CHARS: Final = 12


@magics_class
class EnclaveMagic(Magics):
    """The magic `%enclave`."""

    @line_magic
    def enclave(self, line: str) -> None:
        """Show which enclave this notebook runs in, and the isolation that was checked.

        Usage:
          %enclave
        """
        if line.strip():
            raise UsageError("%enclave takes no arguments; %encrypted lists loaded packages")
        with in_one_line():
            print(describe(supervisor_link(self.shell).about()))  # noqa: T201 (the cell's output)


def describe(about: About) -> str:
    """Return what a person reads; every part is on a line of its own."""
    lines: list[str] = []
    if about.development or about.debug:
        why = "debug mode: its console can be read" if about.debug else "development enclave"
        lines.append(f"{_RED}NOT CONFIDENTIAL ({why}){_PLAIN}")
    rows = [
        ("enclave", about.module_id),
        ("version", about.version),
        ("PCR0", about.pcr0),
        ("up for", f"{about.uptime_s:g} s"),
        *(("isolation" if not number else "", wall) for number, wall in enumerate(about.isolation)),
    ]
    lines += [f"{name.ljust(_LABEL_CHARS)}{plain_text(value)}" for name, value in rows]
    return "\n".join(lines)
