"""Runs a notebook of a package in this vault: cell after cell, in IPython's shell.

What leaves is each cell's text and pixels, if the script's policy shows text, and never its source.

Source: docs/spec/scripts.md, "Notebooks"; THREATS, O-01 to O-04.
"""

import gc
import sys
from typing import TYPE_CHECKING

from enclave_kernel.end_of_main import end_main
from enclave_kernel.vault.notebook_cells import check_parameters, read_cells
from enclave_kernel.vault.notebook_outputs import NotebookOutputs
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.script_files import OutputRefusedError
from enclave_kernel.vault.script_run import ScriptRun
from enclave_kernel.vault.standard_output import StandardOutput
from enclave_protocol.notebook_parameters import (
    NotebookArguments,
    Scalar,
    parse_notebook_arguments,
)
from enclave_protocol.script_messages import CellEnded

if TYPE_CHECKING:
    from enclave_kernel.vault.notebook_shell import NotebookShell

__all__ = ["NotebookRun"]


class NotebookRun:
    """One notebook and what the user gave to it; nothing of it ran yet.

    Args:
        source: The notebook's file.
        arguments: As they came from the user.

    Attributes:
        arguments: The user's, without the parameters.
        bytes_sent: Of the outputs that left, text as UTF-8 and images as pixels.

    Raises:
        PackageError: The notebook is not valid, or does not have these parameters.
    """

    def __init__(self, source: bytes, arguments: tuple[str, ...]) -> None:
        self._given: NotebookArguments = parse_notebook_arguments(arguments)
        self._cells = read_cells(source)
        check_parameters(self._cells, self._given)
        self.arguments = self._given.others
        self.bytes_sent = 0

    def run(self, run: ScriptRun) -> BaseException | None:
        """Run the cells until one raises, calls `exit()`, or is the last.

        Returns:
            What a cell let out, or what came of an interrupt.

        Raises:
            OutputRefusedError: The outputs are more than the owner allows.
            ChannelClosedError: The notebook's process is gone.
        """
        from enclave_kernel.vault.notebook_shell import start_shell

        shown = run.script.output in ("text", "all")
        outputs = NotebookOutputs(shown=shown, hidden=str(run.inputs.root))
        shell = start_shell(outputs, run.importer.file_name, run.runner.complete)
        run.incidents.watch_notebook(shell.user_ns, run.script.file)
        if shown:
            sys.stdout = StandardOutput(outputs.write)
        bar, total = run.output.new_bar(), float(len(self._cells))
        error: BaseException | None = None
        for number, cell in enumerate(self._cells, 1):
            run.output.bar(bar, number - 1.0, total, None, 0)
            shell.compile.lines_before = cell.lines_before
            count, error = _run_cell(cell.source, shell, run.runner)
            if cell.has_parameters:
                shell.user_ns.update(self._parameters(run))
            is_last = number == len(self._cells) or error is not None or shell.exit_now
            if is_last:
                # What its threads print until they have ended is shown as well.
                error = _leave(run.runner) or error
            self._send(outputs, count, run)
            if is_last:
                break
        if error is None and not shell.exit_now:
            run.output.bar(bar, total, total, None, 1)
        return error

    def _parameters(self, run: ScriptRun) -> dict[str, Scalar]:
        given = self._given
        return {
            name: run.place(value) if isinstance(value, str) and name not in given.quoted else value
            for name, value in given.parameters.items()
        }

    def _send(self, outputs: NotebookOutputs, count: int | None, run: ScriptRun) -> None:
        taken = outputs.take()
        self.bytes_sent = outputs.bytes_taken
        most_bytes = run.label.policy.max_result_bytes
        if most_bytes and self.bytes_sent > most_bytes:
            raise OutputRefusedError(
                f"the notebook's outputs have {self.bytes_sent} bytes, the package's owner allows "
                f"{most_bytes}"
            )
        with run.output.sending:
            # In order: the bar is above what the first cell shows.
            run.output.send_waiting()
            for message, buffers in taken:
                run.channel.send(message, buffers)
            run.channel.send(CellEnded(count))


def _run_cell(
    source: str, shell: "NotebookShell", runner: PackageRunner
) -> tuple[int | None, BaseException | None]:
    """Return the cell's execution count, and what it let out."""
    if runner.interrupted:
        # While the outputs of the one before travelled.
        return None, KeyboardInterrupt()
    try:
        result = runner.run(shell.run_cell, (source,), {"store_history": True})
    except BaseException as error:  # an interrupt outside the cell's own code, mostly
        return None, error
    raised: BaseException | None = result.error_before_exec or result.error_in_exec
    if raised is None and (runner.interrupted or shell.interrupted):
        raised = KeyboardInterrupt()
    return result.execution_count, raised


def _leave(runner: PackageRunner) -> BaseException | None:
    """End what the cells left running; return what came of that."""
    try:
        # The shell is among what is called at exit: it forgets its names.
        runner.run(end_main)
        runner.run(gc.collect)
    except BaseException as error:
        return error
    return None
