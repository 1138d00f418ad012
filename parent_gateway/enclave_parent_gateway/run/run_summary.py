"""The summary of a run, for scripts."""

from pathlib import Path

import msgspec

from enclave_parent_gateway.run.run_errors import OutputPlaceError

__all__ = ["RunSummary", "encode_summary", "write_summary"]


class RunSummary(msgspec.Struct):
    """What `--json` prints; its keys are an interface.

    Attributes:
        exit_code: The command's.
        script_exit_code: The script's; None: it did not end by itself.
        ended: `exit`, `died`, `timeout`, `interrupt`, or `failed`: it was not run, or its results
            were not written.
        reason: One line about that, "" if there is nothing to say.
        error: Class name of what failed; None if nothing did.
        seconds: From the script's start to its end; None: it did not begin.
        total_seconds: Of the whole command.
        peak_memory_bytes: Of the script's vault, files in there included, rounded up to a power of
            two; None: not known.
        package: Name and version; None: they could not be read.
        publisher: Who signed it; None: nobody.
        new_publisher: The publisher's key was pinned with this run.
        script: Its file in the package.
        workspace: The folder that `/` meant.
        output_dir: The folder that `written` is below.
        written: Files of the script's that were written.
        problems: Why others were not, by path in the workspace.
    """

    exit_code: int = 0
    script_exit_code: int | None = None
    ended: str = "failed"
    reason: str = ""
    error: str | None = None
    seconds: float | None = None
    total_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    package: str | None = None
    publisher: str | None = None
    new_publisher: bool = False
    script: str = ""
    workspace: str = ""
    output_dir: str = ""
    written: list[str] = []
    problems: dict[str, str] = {}


def encode_summary(summary: RunSummary) -> bytes:
    """Return the summary as JSON, in one document that ends with a line feed."""
    return msgspec.json.format(msgspec.json.encode(summary)) + b"\n"


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write the summary to a file.

    Raises:
        OutputPlaceError: It cannot be written.
    """
    try:
        path.write_bytes(encode_summary(summary))
    except OSError as error:
        raise OutputPlaceError(f"{path} cannot be written: {error.strerror}") from None
