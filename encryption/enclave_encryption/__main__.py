"""`enclave-owner` from its first instruction: before all that it needs is imported.

The standard library only.
"""

import io
import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Run `enclave-owner`; exit codes are those of `cli.main`."""
    _have_standard_streams()
    # Nothing has begun, so there is nothing to clean up.
    signal.signal(signal.SIGINT, _end)
    try:
        from enclave_encryption.cli import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            f"enclave-owner: there is no module {error.name}: pip install 'enclave-kernel[owner]'"
        )
    run()


def _have_standard_streams() -> None:
    # What is opened next would get the number of a closed one, and be taken for it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal has all characters; the error stream does the same.
        sys.stdout.reconfigure(errors="backslashreplace")


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"enclave-owner: interrupted; nothing was written\n")
    os._exit(130)


if __name__ == "__main__":
    main()
