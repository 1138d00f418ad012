"""Runs one script of a package in this vault, with the workspace's files, and hands back its own.

Source: docs/spec/scripts.md; THREATS, O-01, E-01, F-01.
"""

import atexit
import gc
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enclave_kernel.call_channel import CallChannel
from enclave_kernel.trusted_clock import TrustedClock
from enclave_kernel.vault.budget import CallBudget
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.failures import raised
from enclave_kernel.vault.importer import PackageImporter
from enclave_kernel.vault.incidents import Incidents
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.script_files import InputFiles, collect_outputs
from enclave_kernel.vault.standard_output import StandardOutput
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_label import Label
from enclave_protocol.script_messages import OutputChunk, RunScript, ScriptEnded, workspace_path
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
        incidents: Makes the id of its error.
        inputs: The workspace's files.
        channel: The socket to the notebook's process.
        clock: Tells whether the package has expired.

    Raises:
        ChannelClosedError: The notebook is gone.
        EnclaveError: There is no such script, the policy does not allow it, or its inputs are not
            complete; nothing ran.
    """
    script = label.scripts.get(request.script)
    if script is None:
        known = ", ".join(sorted(label.scripts)) or "it has none"
        raise NoSuchScriptError(f"it has no script {request.script!r}; scripts: {known}")
    CallBudget(label.policy, clock).take()
    inputs.finish(request.folders)
    importer.install()
    output = CallOutput(channel.send, script.output)
    output.install()
    if script.output == "text":
        # What the vault calls the workspace's folder is of no use to anybody.
        sys.stdout = StandardOutput(lambda text: output.text(text.replace(str(inputs.root), "")))
    sys.argv[:] = [script.file, *(_argument(text, inputs.root) for text in request.arguments)]
    os.chdir(importer.root)
    runner = PackageRunner()
    runner.install()
    output.begin(request.request_id)
    ended = ScriptEnded(0)
    try:
        runner.run(lambda: _run(importer, script.file))
    except SystemExit as error:
        ended = _exit(error)
    except KeyboardInterrupt:
        ended = ScriptEnded(_INTERRUPTED, "KeyboardInterrupt")
    except BaseException as error:  # whatever a script lets out
        failure = raised(request.request_id, error, frozenset(label.policy.errors), incidents)
        ended = ScriptEnded(1, failure.type_name, failure.message, failure.incident)
    output.end()
    pieces = collect_outputs(inputs.root, request.outputs, label.policy.max_result_bytes)
    for piece in _chunks(pieces):
        channel.send(OutputChunk(), (piece,))
    channel.send(ended)


def _argument(text: str, root: Path) -> str:
    found = workspace_path(text)
    if found is None:
        return text
    before, path, after = found
    return f"{before}{root}/{path}{after}"


def _run(importer: PackageImporter, file: str) -> None:
    """Run a file as `python FILE` would, its clean-up at exit included."""
    module = types.ModuleType("__main__")
    module.__file__ = path = f"{importer.root}/{file}"
    sys.modules["__main__"] = module
    source = bytes(importer.sources[file])
    code = compile(source, importer.file_name, "exec", dont_inherit=True)
    try:
        # The owner's own code, verified; it is what this process is for.
        exec(code, module.__dict__)  # noqa: S102
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
    finally:
        atexit._run_exitfuncs()
        # Files that it left open are written when they are collected.
        module.__dict__.clear()
        # For the incident id, if it raised.
        module.__file__ = path
        gc.collect()


def _exit(error: SystemExit) -> ScriptEnded:
    """Return how `sys.exit` ended it; a text given to it is the owner's."""
    code = error.code
    if code is None:
        return ScriptEnded(0)
    return ScriptEnded(code & 0xFF if isinstance(code, int) else 1)


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
