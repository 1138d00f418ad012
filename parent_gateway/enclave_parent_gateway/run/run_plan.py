"""What a run needs, found and checked on the parent before anything is started."""

import io
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_parent_gateway.run.run_errors import RunUsageError
from enclave_protocol.manifest import Script
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_label import check_label
from enclave_protocol.package_reader import read_header
from enclave_protocol.plain_text import plain_text
from enclave_protocol.run_messages import BeginRun
from enclave_protocol.script_choice import script_name
from enclave_protocol.script_environment import check_environ
from enclave_protocol.script_messages import MAX_ARGUMENT_CHARS, MAX_ARGUMENTS, MAX_FOLDERS
from enclave_protocol.workspace.script_inputs import ScriptInputs, plan_inputs

__all__ = ["RunOptions", "RunPlan", "open_plan", "split_arguments", "split_environ"]

_DEFAULT_OUTPUT: Final = "/output"


@dataclass(frozen=True)
class RunOptions:
    """What the user typed.

    Attributes:
        file: The encrypted file.
        script: A script's name or file.
        arguments: `sys.argv` behind the script's name.
        environ: Variables for the script.
        unsigned: A package without a publisher's signature will do.
        timeout_s: Seconds that the script may run; None: no limit.
        workspace: The folder that `/` means in the arguments.
        wants_output: A folder for results was named.
    """

    file: Path
    script: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    unsigned: bool
    timeout_s: float | None
    workspace: Path
    wants_output: bool


@dataclass(frozen=True)
class RunPlan:
    """A run that may begin.

    Attributes:
        header: The package's: a claim until the body verified.
        script: What runs, as the label declares it.
        stream: The file, at the body's first byte.
        begin: The first message.
        inputs: The user's files.
        workspace: Where they are.
        size: Bytes of body and files to send.
    """

    header: PackageHeader
    script: Script
    stream: io.FileIO
    begin: BeginRun
    inputs: ScriptInputs
    workspace: Path
    size: int


def split_arguments(text: str, more: Sequence[str]) -> tuple[str, ...]:
    """Return the script's arguments, split as a shell splits them.

    Raises:
        RunUsageError: A quotation is not closed, or they are too many or too long.
    """
    try:
        arguments = (*shlex.split(text), *more)
    except ValueError as error:
        raise RunUsageError(f"the arguments {text[:200]!r} cannot be split: {error}") from None
    if len(arguments) > MAX_ARGUMENTS or any(len(a) > MAX_ARGUMENT_CHARS for a in arguments):
        raise RunUsageError(
            f"at most {MAX_ARGUMENTS} arguments of at most {MAX_ARGUMENT_CHARS} characters can be "
            "given; put the rest into a file of the workspace"
        )
    return arguments


def split_environ(settings: Sequence[str]) -> dict[str, str]:
    """Return variables by name from `NAME=VALUE`, or `NAME` for one of this process's.

    Raises:
        RunUsageError: One is neither.
    """
    environ: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            found = os.environ.get(name)
            if found is None:
                raise RunUsageError(f"--env {name[:128]}: it is not set here; give NAME=VALUE")
            value = found
        environ[name] = value
    return environ


@contextmanager
def open_plan(options: RunOptions) -> Iterator[RunPlan]:
    """Open the package and plan the run; errors of the file's contents name it.

    Raises:
        PackageError: The file is no encrypted package.
        NoScriptError: It has no such script.
        ScriptEnvironmentError: A variable must not be set.
        WorkspaceFileError: An argument names what cannot be sent.
        RunUsageError: There is no such file, or the script cannot be run like this.
    """
    name = str(options.file)
    with _open(options.file) as stream:
        header = read_header(stream, file=name)
        try:
            check_label(header.label)
        except PackageError as error:
            raise error.with_file(name) from None
        chosen = script_name(header.label, options.script)
        script = header.label.scripts[chosen]
        if script.file.endswith(NOTEBOOK_SUFFIX):
            raise RunUsageError(
                f"{plain_text(script.file)} is a notebook: run it in one, with %run_encrypted"
            )
        check_environ(options.environ, script.variables)
        more = (_DEFAULT_OUTPUT,) if options.wants_output else ()
        inputs = plan_inputs(options.workspace, options.arguments, ())
        if not inputs.outputs and more:
            inputs = plan_inputs(options.workspace, options.arguments, more)
        if inputs.entries and header.label.policy.workspace == "none":
            raise RunUsageError(
                "the package's owner does not let it see your files: leave out the arguments that "
                "begin with / and name some"
            )
        if len(inputs.folders) > MAX_FOLDERS:
            raise RunUsageError(f"the arguments name more than {MAX_FOLDERS} folders")
        begin = BeginRun(
            file_name=name[-1024:],
            script=chosen,
            arguments=options.arguments,
            folders=inputs.folders,
            outputs=inputs.outputs,
            environ=dict(options.environ),
            unsigned=options.unsigned,
            timeout_s=options.timeout_s,
        )
        body = max(0, os.fstat(stream.fileno()).st_size - stream.tell())
        size = body + inputs.size
        yield RunPlan(header, script, stream, begin, inputs, options.workspace, size)


def _open(path: Path) -> io.FileIO:
    try:
        # Not blocking: a FIFO by this name must not hang the command.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a file's name"
        folder = path.parent
        found = sorted(p.name for p in folder.glob("*.encrypted"))[:5] if folder.is_dir() else []
        hint = f"; there are {', '.join(found)}" if found else ""
        raise RunUsageError(
            plain_text(f"{path} cannot be opened: {reason}{hint}; give the encrypted file with -f")
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunUsageError(
            plain_text(f"{path} is not a file; expected one that `enclave-owner encrypt` wrote")
        )
    return io.FileIO(descriptor, "rb")
