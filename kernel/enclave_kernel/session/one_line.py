"""How this project's errors look in a cell."""

import contextlib
from collections.abc import Iterator

from enclave_protocol.errors import EnclaveError

__all__ = ["in_one_line"]


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Have IPython show this project's errors as what they are: one line, no traceback."""
    try:
        yield
    except EnclaveError as error:
        line = f"{type(error).__name__}: {error}"
        error.__dict__["_render_traceback_"] = lambda: [line]
        raise
