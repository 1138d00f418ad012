"""`%run_encrypted`: a script or notebook of an encrypted package, in a vault of its own."""

import shlex
from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from enclave_kernel.session.load_progress import LoadProgress
from enclave_kernel.session.not_in_enclave import supervisor_link
from enclave_kernel.session.one_line import in_one_line
from enclave_protocol.plain_text import plain_text

__all__ = ["RunMagic"]

_USAGE: Final = "usage: %run_encrypted [--unsigned] [--output /DIR/] FILE SCRIPT [ARGUMENTS...]"
_MAX_LISTED: Final = 10


@magics_class
class RunMagic(Magics):
    """The magic `%run_encrypted`."""

    @line_magic
    def run_encrypted(self, line: str) -> None:
        """Run a script of an encrypted package and wait until it has ended.

        Usage:
          %run_encrypted [--unsigned] [--output /DIR/] FILE SCRIPT [ARGUMENTS...]

        Example:
          %run_encrypted app.encrypted classify.py -m model.h5 -d /dataset/ -o /output/

        A relative path among the arguments means the package; an absolute one means your
        workspace, the folder that this notebook started in: /dataset/ is its folder dataset. The
        script sees copies of what the arguments name, and nothing else of yours. What it writes to
        /output/, to what follows -o or --output, and to folders named by --output in front of FILE
        comes back. `_exit_code` is the script's exit code. --unsigned and the publisher's key are
        as in %load_encrypted.

        A notebook of the package runs the same way, with parameters:
          %run_encrypted app.encrypted report.ipynb -p threshold 0.5 -p data /dataset/ -o /output/

        This cell shows what its cells show, text and images, and /output/report.ipynb holds it,
        without the code. A parameter is a number, true, false, null or text; '"0.5"' is text too.
        """
        # Late: it needs NumPy, which must not be imported before the kernel was forked.
        from enclave_kernel.session.script_run import ScriptFailedError, run_script

        file_name, script, arguments, outputs, unsigned = _parse(line)
        with in_one_line():
            link = supervisor_link(self.shell)
            progress = LoadProgress()
            try:
                result = run_script(
                    file_name,
                    script,
                    arguments,
                    outputs,
                    link,
                    progress,
                    unsigned=unsigned,
                    tell=print,
                )
            except ScriptFailedError as error:
                self._tell_exit_code(error.exit_code)
                raise
            finally:
                progress.finish()
        self._tell_exit_code(0)
        if result.written:
            print(_summary(result.written))  # noqa: T201 (the cell's output)

    def _tell_exit_code(self, code: int) -> None:
        if self.shell is not None:
            self.shell.user_ns["_exit_code"] = code


def _parse(line: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...], bool]:
    """Return file, script, arguments, outputs and whether the file may be unsigned."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{_USAGE}: {error}") from None
    outputs: list[str] = []
    unsigned = False
    while words and words[0] in ("--output", "--unsigned"):
        if words[0] == "--unsigned":
            unsigned = True
            words = words[1:]
            continue
        outputs += words[1:2]
        words = words[2:]
    if len(words) < 2 or words[0].startswith("-"):
        raise UsageError(_USAGE)
    return words[0], words[1], tuple(words[2:]), tuple(outputs), unsigned


def _summary(written: tuple[str, ...]) -> str:
    listed = ", ".join(f"/{plain_text(path)}" for path in written[:_MAX_LISTED])
    more = len(written) - _MAX_LISTED
    return f"Wrote {listed}" + (f" and {more} more" if more > 0 else "")
