"""Runs a script of an encrypted package in a fresh vault: `%run_encrypted`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_kernel.session.executed_notebook import ExecutedNotebook
from enclave_kernel.session.package_failures import rebuild_raised
from enclave_kernel.session.package_loading import open_encrypted, send_body, vault_failure
from enclave_kernel.session.proxy_parts import shown_name
from enclave_kernel.session.script_client import ScriptClient
from enclave_kernel.session.script_outputs import OutputFiles
from enclave_kernel.session.vault_link import VaultLink
from enclave_protocol.errors import EnclaveError
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX, parse_notebook_arguments
from enclave_protocol.plain_text import plain_text
from enclave_protocol.publisher_line import publisher_line
from enclave_protocol.script_choice import script_name
from enclave_protocol.script_messages import ScriptEnded
from enclave_protocol.vault_messages import LoadFailed, Raised
from enclave_protocol.workspace.script_inputs import plan_inputs, read_inputs

__all__ = ["ScriptFailedError", "ScriptResult", "run_script", "script_failure"]

Progress = Callable[[str, float], None]

_NOTEBOOK_OUTPUT: Final = "/output"
"""Where an executed notebook goes, if the arguments name no other folder."""


class ScriptFailedError(EnclaveError):
    """A script ended with another exit code than 0.

    Attributes:
        exit_code: Which.
        notebook: Path of what a notebook showed until then, below the workspace.
    """

    def __init__(self, message: str, exit_code: int, notebook: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.notebook = notebook


@dataclass(frozen=True)
class ScriptResult:
    """A script that ended with exit code 0.

    Attributes:
        written: Paths of the files it wrote, below the workspace.
        workspace: The folder that `/` means.
        notebook: Of these files the executed notebook; None for a script.
    """

    written: tuple[str, ...]
    workspace: Path
    notebook: str | None = None


def run_script(
    file_name: str,
    script: str,
    arguments: tuple[str, ...],
    outputs: tuple[str, ...],
    link: VaultLink,
    progress: Progress,
    results: Path | None = None,
    *,
    tell: Callable[[str], None] = lambda _line: None,
    unsigned: bool = False,
) -> ScriptResult:
    """Run a script and return when it has ended and its files are in the workspace.

    Args:
        file_name: The encrypted file, as the user typed it.
        script: The script's name, or its file's.
        arguments: Of `sys.argv`; an absolute path is one of the workspace, a relative one means
            the package.
        outputs: Folders besides `-o` and `/output` whose files come back.
        link: The way to the supervisor.
        progress: Called while files travel; it decides what to show.
        results: Where its files are put, if not in the workspace.
        tell: Given a line about the publisher, when there is something new about it.
        unsigned: Whether a package without a publisher's signature will do.

    Raises:
        ScriptFailedError: It ended with another exit code than 0; its files are in the workspace.
        EnclaveError: It did not begin, or its files cannot be taken.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    with open_encrypted(file_name, unsigned=unsigned) as opened:
        name = script_name(opened.header.label, script)
        # Where this kernel started, or the enclave's workspace.
        workspace = Path(os.environ.get("ENCLAVE_WORKSPACE") or Path.cwd())
        inputs = plan_inputs(workspace, arguments, outputs)
        notebook, file = None, opened.header.label.scripts[name].file
        if file.endswith(NOTEBOOK_SUFFIX):
            # The vault does the same: here, so that a slip of the pen costs no time.
            parse_notebook_arguments(arguments)
            if not inputs.outputs:
                inputs = plan_inputs(workspace, arguments, (_NOTEBOOK_OUTPUT,))
            notebook = ExecutedNotebook(f"{inputs.outputs[0]}/{file.rpartition('/')[2]}")
        client = opened.start(link, ScriptClient, progress)
        if opened.new_publisher or opened.header.label.signer is None:
            tell(publisher_line(opened.header.label, is_new=opened.new_publisher))
        files = OutputFiles(results or workspace, inputs.outputs)
        try:
            send_body(opened.stream, client, progress)
            if inputs.entries:
                total = max(1, inputs.size)
                pieces = read_inputs(
                    workspace, inputs, lambda done: progress("sending files", done / total)
                )
                client.send_inputs(pieces)
            # A notebook has a bar of its own.
            progress("running" if notebook is None else "", 1.0)
            ended = client.run(name, arguments, inputs.folders, files, notebook)
            if isinstance(ended, LoadFailed):
                raise vault_failure(ended, file_name)
            failure = script_failure(ended, shown_name(opened.header.label))
            if notebook is not None:
                files.place(notebook.path, notebook.encode(failure))
            written = files.publish()
        except OSError as error:
            place = results or workspace
            raise EnclaveError(
                f"what the script wrote cannot be put into {place}: {error.strerror or error}"
            ) from None
        finally:
            files.close()
            client.close()
    path = None if notebook is None else notebook.path
    if ended.exit_code:
        raise _failed(ended, failure, script, path)
    return ScriptResult(written, workspace, path)


def script_failure(ended: ScriptEnded, package: str) -> BaseException | None:
    """Return the exception that ended a script, as its user may see it; None: there was none."""
    if ended.type_name is None or ended.incident is None:
        return None
    return rebuild_raised(Raised(1, ended.type_name, ended.message, ended.incident), package)


def _failed(
    ended: ScriptEnded, failure: BaseException | None, script: str, notebook: str | None
) -> ScriptFailedError:
    line = f"{Path(script).name} ended with exit code {ended.exit_code}"
    if failure is not None:
        line += f": {type(failure).__name__}: {failure}"
    if notebook is not None:
        line += f"; what it showed until then is in /{plain_text(notebook)}"
    return ScriptFailedError(line, ended.exit_code, notebook)
