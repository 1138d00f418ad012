"""Runs one script of a package in this vault, with the workspace's files, and hands back its own.

Source: docs/spec/scripts.md; THREATS, O-01, E-01, F-01.
"""

import os
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from enclave_kernel.call_channel import CallChannel
from enclave_kernel.end_of_main import end_main
from enclave_kernel.trusted_clock import TrustedClock
from enclave_kernel.vault.budget import CallBudget
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.failures import raised
from enclave_kernel.vault.importer import PackageImporter
from enclave_kernel.vault.incidents import Incidents
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.program_run import run_program
from enclave_kernel.vault.program_start import Program, find_program
from enclave_kernel.vault.script_files import InputFiles, collect_outputs
from enclave_kernel.vault.script_run import ScriptRun, add_site_names, collect_main
from enclave_kernel.vault.standard_output import StandardOutput
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_label import Label
from enclave_protocol.script_environment import check_environ
from enclave_protocol.script_messages import OutputChunk, RunScript, ScriptEnded
from enclave_protocol.vault_messages import BODY_CHUNK_BYTES

__all__ = ["NoSuchScriptError", "run_script"]

_INTERRUPTED: Final = 130
"""What a shell says of a program that Ctrl-C ended."""


class NoSuchScriptError(PackageError):
    """The label declares no script by this name."""


def run_script(
    request: RunScript,
    label: Label,
    importer: PackageImporter,
    notebooks: Mapping[str, bytes | bytearray],
    incidents: Incidents,
    inputs: InputFiles,
    channel: CallChannel,
    clock: TrustedClock,
) -> None:
    """Run the script, send its output while it runs, then its files and how it ended.

    Args:
        request: What the notebook asks for.
        label: The package's, authentic.
        importer: The package's sources, all verified; nothing of them ran.
        notebooks: Those among the scripts, by path.
        incidents: Makes the id of its error.
        inputs: The workspace's files.
        channel: The socket to the notebook's process.
        clock: Tells whether the package has expired.

    Raises:
        ChannelClosedError: The notebook is gone.
        EnclaveError: There is no such script, the policy does not allow it, or its inputs are not
            complete, and nothing ran; or its outputs must stay.
    """
    script = label.scripts.get(request.script)
    if script is None:
        known = ", ".join(sorted(label.scripts)) or "it has none"
        raise NoSuchScriptError(f"it has no script {request.script!r}; scripts: {known}")
    CallBudget(label.policy, clock).take()
    check_environ(request.environ, script.variables)
    inputs.finish(request.folders)
    # Before anything runs: the package's own files are beside the workspace.
    inputs.check_outputs(request.outputs, request.folders)
    program = None
    if script.is_program:
        program = find_program(f"{importer.root}/{script.file}", script.file)
        # It will be in this process's memory, where a mistake of its own could show them.
        _wipe(importer.sources)
        _wipe(notebooks)
        # Not overwritten, as Python has copied it: only left to what takes its memory next.
        incidents.forget_key()
    notebook, arguments = None, request.arguments
    if script.file.endswith(NOTEBOOK_SUFFIX):
        # Late: a vault that runs no notebook needs neither IPython nor nbformat.
        from enclave_kernel.vault.notebook_service import NotebookRun

        notebook = NotebookRun(bytes(notebooks.get(script.file, b"")), request.arguments)
        arguments = notebook.arguments
    # Nothing of the package ran, and no program will: it changes what the script reads of it.
    os.environ.update(request.environ)
    time.tzset()
    importer.install()
    output = CallOutput(channel.send, script.output, patient=request.patient)
    output.install()
    _show_streams(output, script.output, str(inputs.root), importer.root)
    runner = PackageRunner()
    run = ScriptRun(label, script, importer, incidents, inputs, output, runner, channel)
    sys.argv[:] = [script.file, *map(run.place, arguments)]
    os.chdir(importer.root)
    add_site_names()
    runner.install()
    output.begin(request.request_id)
    error = _run_file(run, program) if notebook is None else notebook.run(run)
    output.end()
    ended = _ended(request.request_id, error, run)
    sent = 0 if notebook is None else notebook.bytes_sent
    most_bytes = label.policy.max_result_bytes
    pieces = collect_outputs(inputs.root, request.outputs, most_bytes, sent)
    for piece in _chunks(pieces):
        channel.send(OutputChunk(), (piece,))
    channel.send(ended)


def _run_file(run: ScriptRun, program: Program | None) -> BaseException | None:
    """Run a file as `python FILE` would, or a program; return what it let out."""
    file = run.script.file
    try:
        if program is None:
            run.runner.run(lambda: _execute(run.importer, file))
        else:
            run.runner.run(lambda: run_program(program, sys.argv, output=run.script.output))
    except BaseException as error:  # whatever a script lets out
        return error
    return None


def _execute(importer: PackageImporter, file: str) -> None:
    module = types.ModuleType("__main__")
    module.__file__ = path = f"{importer.root}/{file}"
    sys.modules["__main__"] = module
    source = bytes(importer.sources[file])
    code = compile(source, importer.file_name, "exec", dont_inherit=True)
    try:
        # The owner's own code, verified; it is what this process is for.
        exec(code, module.__dict__)  # noqa: S102
    finally:
        end_main()
        collect_main(module.__dict__, path)


def _ended(request_id: int, error: BaseException | None, run: ScriptRun) -> ScriptEnded:
    if error is None:
        return ScriptEnded(0)
    if isinstance(error, SystemExit):
        return _exit(error)
    if isinstance(error, KeyboardInterrupt):
        return ScriptEnded(_INTERRUPTED, "KeyboardInterrupt")
    failure = raised(request_id, error, frozenset(run.label.policy.errors), run.incidents)
    return ScriptEnded(1, failure.type_name, failure.message, failure.incident)


def _exit(error: SystemExit) -> ScriptEnded:
    """Return how `sys.exit` ended it; a text given to it is the owner's."""
    code = error.code
    if code is None:
        return ScriptEnded(0)
    return ScriptEnded(code & 0xFF if isinstance(code, int) else 1)


def _show_streams(output: CallOutput, shown: str, workspace: str, package: str) -> None:
    """Send what the script prints, as far as its label allows."""

    def show(text: str, stream: Literal["stdout", "stderr"] = "stdout") -> None:
        # What the vault calls the two folders is of no use to anybody.
        output.text(text.replace(workspace, "").replace(f"{package}/", ""), stream)

    if shown in ("text", "all"):
        sys.stdout = StandardOutput(show)
    if shown == "all":
        sys.stderr = StandardOutput(lambda text: show(text, "stderr"))


def _wipe(texts: Mapping[str, bytes | bytearray]) -> None:
    for text in texts.values():
        if isinstance(text, bytearray):
            text[:] = bytes(len(text))


def _chunks(pieces: Iterator[bytes | bytearray | memoryview]) -> Iterator[memoryview]:
    """Gather small pieces: a message for each header of an archive would cost more than it."""
    buffer = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = view[: BODY_CHUNK_BYTES - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == BODY_CHUNK_BYTES:
                yield memoryview(buffer)
                buffer = bytearray()
    if buffer:
        yield memoryview(buffer)
