"""What the egress proxy refused, in one line: libraries bury its reason in their own errors."""

import contextlib
import re
import sys
from typing import Any, Final

from IPython.core.interactiveshell import InteractiveShell

from enclave_protocol.errors import EnclaveError
from enclave_protocol.plain_text import plain_text

__all__ = ["EgressRefusedError", "refusal_in", "show_refusals"]

# As in `http.client`: "Tunnel connection failed: 403 <reason>", maybe inside a quoted repr.
_REFUSAL: Final = re.compile(r"\b(?:403|502|503) enclave: ([^'\"<>\r\n]{1,600})")
_MAX_EXCEPTIONS: Final = 64


class EgressRefusedError(EnclaveError):
    """The proxy on the parent instance does not let the notebook reach this host."""


def refusal_in(text: str) -> str | None:
    """Return the proxy's reason if there is one in this text."""
    found = _REFUSAL.search(text)
    return plain_text(found[1].rstrip(")")) if found else None


def _refusal_behind(error: BaseException) -> str | None:
    """Look for the reason in an exception and what led to it."""
    ahead: list[BaseException] = [error]
    seen: set[int] = set()
    while ahead and len(seen) < _MAX_EXCEPTIONS:
        current = ahead.pop(0)
        if id(current) in seen or isinstance(current, EgressRefusedError):
            continue
        seen.add(id(current))
        reason = None
        # Its text is made by somebody's code, which may fail.
        with contextlib.suppress(Exception):
            reason = refusal_in(str(current))
        if reason is not None:
            return reason
        linked = (current.__cause__, current.__context__, *current.args)
        ahead += [link for link in linked if isinstance(link, BaseException)]
    return None


def show_refusals(shell: InteractiveShell) -> None:
    """Have every cell that fails because of the proxy end with the line that says so."""

    def after_cell(result: Any) -> None:
        error = result.error_in_exec
        reason = _refusal_behind(error) if isinstance(error, BaseException) else None
        if reason is not None:
            print(f"enclave: {reason}", file=sys.stderr)  # noqa: T201 (the cell's output)

    shell.events.register("post_run_cell", after_cell)
