"""`enclave run` from what was typed to an exit code."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from enclave_parent_gateway.run.output_files import OutputFiles, choose_place
from enclave_parent_gateway.run.run_display import RunDisplay, standard_streams
from enclave_parent_gateway.run.run_errors import (
    DIED,
    FAILED,
    INTERRUPTED,
    TIMED_OUT,
    RunFailedError,
    RunStoppedError,
    RunUsageError,
)
from enclave_parent_gateway.run.run_plan import (
    RunOptions,
    RunPlan,
    open_plan,
    split_arguments,
    split_environ,
)
from enclave_parent_gateway.run.run_summary import RunSummary, encode_summary, write_summary
from enclave_parent_gateway.run.shared_tree import SharedTree
from enclave_parent_gateway.run.stop_signals import StopSignals
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.sync.sync_state import read_sync_state
from enclave_protocol.errors import EnclaveError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.run_messages import RunEnded

__all__ = ["RunCommand", "RunRequest"]

_SIGPIPE_CODE: Final = 128 + signal.SIGPIPE
_MAX_LISTED: Final = 10
_ARGPARSE_CODE: Final = 2


@dataclass(frozen=True)
class RunRequest:
    """What was typed; see `enclave run --help`."""

    file: Path
    script: str
    arguments: str
    more: tuple[str, ...]
    output_dir: Path | None
    workspace: Path | None
    timeout_s: float | None
    settings: tuple[str, ...]
    unsigned: bool
    as_json: bool
    summary: Path | None
    quiet: bool


class RunCommand:
    """Runs one script and says how it went.

    Args:
        request: What was typed.
    """

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._summary = RunSummary()
        stdout, stderr = standard_streams(summary_on_stdout=request.as_json)
        self._display = RunDisplay(stdout, stderr, quiet=request.quiet or request.as_json)

    def run(self) -> int:
        """Run it and return the command's exit code."""
        began = time.monotonic()
        summary = self._summary
        try:
            summary.exit_code = self._run()
        except RunStoppedError as error:
            self._fail(error.exit_code, "interrupt", error)
        except KeyboardInterrupt:
            self._fail(INTERRUPTED, "interrupt", RunStoppedError(INTERRUPTED))
        except BrokenPipeError:
            # As of any program whose output nobody reads any more.
            summary.exit_code, summary.ended = _SIGPIPE_CODE, "interrupt"
            _silence(sys.stdout.fileno())
        except RunFailedError as error:
            self._fail(FAILED, "failed", error)
            summary.error = error.kind
        except EnclaveError as error:
            self._fail(FAILED, "failed", error)
        except OSError as error:
            name = f": {error.filename}" if error.filename else ""
            self._fail(FAILED, "failed", RunUsageError(f"{error.strerror or error}{name}"))
            summary.error = type(error).__name__
        self._display.finish()
        summary.total_seconds = round(time.monotonic() - began, 3)
        return self._report()

    def _report(self) -> int:
        summary = self._summary
        if self._request.summary is not None:
            try:
                write_summary(self._request.summary, summary)
            except EnclaveError as error:
                self._display.tell(f"Error: {error}")
                summary.exit_code = summary.exit_code or FAILED
        if self._request.as_json:
            with suppress(BrokenPipeError):
                sys.stdout.buffer.write(encode_summary(summary))
                sys.stdout.buffer.flush()
        return summary.exit_code

    def _fail(self, code: int, ended: str, error: EnclaveError) -> None:
        self._summary.exit_code, self._summary.ended = code, ended
        self._summary.reason, self._summary.error = str(error), type(error).__name__
        self._display.tell(f"Error: {error}")

    def _run(self) -> int:
        request, summary = self._request, self._summary
        paths = EnclavePaths.from_environment()
        mirrored = _mirrored(paths)
        workspace = _workspace(request.workspace, mirrored)
        summary.workspace = str(workspace)
        options = RunOptions(
            file=request.file,
            script=request.script,
            arguments=split_arguments(request.arguments, request.more),
            environ=split_environ(request.settings),
            unsigned=request.unsigned,
            timeout_s=request.timeout_s,
            workspace=workspace,
            wants_output=request.output_dir is not None,
        )
        with open_plan(options) as plan:
            label = plan.header.label
            summary.package = f"{label.package.name} {label.package.version}"
            summary.publisher = None if label.signer is None else label.package.publisher
            summary.script = plan.script.file
            outputs = plan.inputs.outputs
            place = choose_place(workspace, request.output_dir, mirrored, outputs)
            summary.output_dir = str(place.root / place.prefix)
            # Somebody else's lock cannot be taken, and their mirror is not of this user's folders.
            lock = None if paths.owner is not None else paths.sync_lock()
            files = OutputFiles(place, outputs, lambda root: SharedTree(root, lock))
            try:
                ended = self._exchange(paths, plan, files)
            finally:
                files.close()
                summary.written = [place.rel(path) for path in files.written]
                summary.problems = files.problems
        return self._tell(plan, ended, files)

    def _exchange(self, paths: EnclavePaths, plan: RunPlan, files: OutputFiles) -> RunEnded:
        # Late: they take a third of a second, which a mistyped command need not wait for.
        from enclave_parent_gateway.run.run_exchange import RunExchange
        from enclave_parent_gateway.run.run_session import open_session

        # What the caller ignores (nohup) stays so.
        previous = {
            number: signal.signal(number, _stop)
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            with open_session(paths) as session, StopSignals() as signals:
                exchange = RunExchange(session, plan, files, self._display, signals)
                try:
                    return exchange.run()
                finally:
                    self._summary.new_publisher = bool(exchange.new_publisher)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _tell(self, plan: RunPlan, ended: RunEnded, files: OutputFiles) -> int:
        """Say how it ended and what was written; return the command's exit code."""
        summary = self._summary
        summary.script_exit_code, summary.ended = ended.exit_code, ended.how
        summary.reason = plain_text(ended.reason, limit=1000)
        summary.seconds, summary.peak_memory_bytes = ended.seconds, ended.peak_memory_bytes
        name = plain_text(plan.script.file.rpartition("/")[2])
        code = _exit_code(ended)
        if files.written:
            self._display.say(_written(summary.output_dir, summary.written))
        if ended.how == "timeout":
            self._display.tell(f"Error: {name} ran for more than {plan.begin.timeout_s:g} s")
        elif ended.how == "died":
            self._display.tell(f"Error: {summary.reason}")
        elif ended.how == "interrupt":
            self._display.tell(f"Error: {name} was interrupted, and stopped")
        elif code:
            self._display.tell(_failed(name, code, summary.reason, plan))
        for path, reason in list(files.problems.items())[:_MAX_LISTED]:
            self._display.tell(f"not written: /{plain_text(path)}: {plain_text(reason)}")
        more = len(files.problems) - _MAX_LISTED
        if more > 0:
            self._display.tell(f"and {more} files more; --json names all of them")
        if files.problems and not code:
            summary.ended, summary.error = "failed", "OutputPlaceError"
            summary.reason = f"{len(files.problems)} files were not written"
            return FAILED
        return code


def _exit_code(ended: RunEnded) -> int:
    if ended.how == "timeout":
        return TIMED_OUT
    if ended.exit_code is not None:
        return ended.exit_code
    return INTERRUPTED if ended.how == "interrupt" else DIED


def _failed(name: str, code: int, reason: str, plan: RunPlan) -> str:
    line = f"{name} ended with exit code {code}"
    if reason:
        return f"{line}: {reason}"
    if code == _ARGPARSE_CODE and plan.script.output != "all":
        # What argparse says of wrong arguments.
        return f"{line}; what it writes to standard error is not shown by its owner"
    return line


def _written(folder: str, paths: list[str]) -> str:
    listed = ", ".join(plain_text(path) for path in paths[:_MAX_LISTED])
    more = len(paths) - _MAX_LISTED
    return f"Wrote to {plain_text(folder)}: {listed}" + (f" and {more} more" if more > 0 else "")


def _mirrored(paths: EnclavePaths) -> Path | None:
    if paths.owner is not None:
        # A shared gateway's mirror is its administrator's.
        return None
    state = read_sync_state(paths.sync_file)
    return Path(state.directory) if state is not None and state.is_running else None


def _workspace(chosen: Path | None, mirrored: Path | None) -> Path:
    try:
        return (chosen or mirrored or Path.cwd()).resolve(strict=True)
    except OSError as error:
        raise RunUsageError(
            f"the workspace {chosen or mirrored or 'here'} cannot be used: {error.strerror}; "
            "choose another with --workspace"
        ) from None


def _stop(number: int, _frame: FrameType | None) -> None:
    raise RunStoppedError(128 + number)


def _silence(descriptor: int) -> None:
    """Have what Python still flushes at its end go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
