"""`sys.stdout` of a package whose policy lets the user see what it prints.

Only this object: descriptor 1 leads nowhere, as 2 does, whatever the policy says.
"""

import codecs
import io
from collections.abc import Callable
from typing import Any

__all__ = ["StandardOutput"]


class StandardOutput(io.TextIOBase):
    """A text stream that hands on what is written to it.

    Args:
        write: Takes the text; never raises, never waits.
    """

    # Writable in the type that Python's own has.
    encoding = "utf-8"
    errors = "replace"

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.buffer = _Bytes(write)

    def writable(self) -> bool:
        """Say that text can be written."""
        return True

    def write(self, text: str, /) -> int:
        """Hand `text` on; the user sees it within a tenth of a second."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        # A subclass of the package's may lie about its length.
        self._write(str.__str__(text))
        return len(text)

    def close(self) -> None:
        """Stay open: a package that closes stdout would lose what its next call prints."""


class _Bytes(io.RawIOBase):
    """The stream below, for code that writes bytes to `sys.stdout.buffer`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Send bytes as text; what is no UTF-8 shows as the replacement character."""
        raw = bytes(data)
        self._write(self._decoder.decode(raw))
        return len(raw)

    def close(self) -> None:
        """Stay open, as the text stream does."""
