"""`enclave-owner try`: the same code for the owner and for the user, one step after the other."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from enclave_encryption.incident_lookup import IncidentLookup
from enclave_encryption.package_encryption import write_encrypted
from enclave_encryption.package_plan import PackagePlan
from enclave_encryption.throw_away_key import ThrowAwayKey
from enclave_encryption.trial_cells import notebook_notes
from enclave_encryption.trial_files import copy_inputs, file_notes, files_in, without_path
from enclave_encryption.trial_process import TrialProcess, TrialProcessEndedError
from enclave_encryption.trial_step import Step, last_drawn, paired, plain_notes
from enclave_protocol.chunked_encryption import BytesLike
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.signature import parse_signature
from enclave_protocol.trial_messages import (
    MAX_COMPARED_BYTES,
    Compared,
    CompareValue,
    Ended,
    OpenForUser,
    OpenPlain,
    RunCell,
    RunPlainNotebook,
    RunTrialScript,
    TrialMessageError,
    TrialRequest,
    clipped,
)

__all__ = ["Trial", "running_trial"]

_PASSABLE: Final = 0o711
_VAULT_END_S: Final = 3.0
"""Killed after that, it leaves nothing either: its vaults die with it, its folder goes here."""


@dataclass
class Trial:
    """A package on both sides. Make it with `running_trial`.

    Attributes:
        plan: The package.
        loaded: How loading went.
    """

    plan: PackagePlan
    loaded: Step
    _owner: TrialProcess
    _user: TrialProcess
    _folder: Path
    _workspace: Path
    _lookup: IncidentLookup | None
    _cells: int = 0

    def run_cell(self, source: str) -> Step:
        """Run code on both sides, at the same time."""
        self._cells += 1
        request = RunCell(f"<cell {self._cells}>", source)
        owner, user = _ask_both(self._owner, self._user, request, request)
        notes = plain_notes(owner, user)
        if user.value is not None and owner.result_type:
            notes += self._compare(user.value)
        elif user.result_type and owner.result_type and not owner.refusal:
            notes += (f"not compared: more than {MAX_COMPARED_BYTES // 1024**2} MiB",)
        step = Step("cell", source, owner, user, paired(owner.calls, user.calls), notes)
        return _with_places(step, self._lookup)

    def run_script(self, file: str, arguments: Sequence[str]) -> Step:
        """Run a script or notebook on both sides, the owner's on copies of the workspace, too.

        Args:
            file: Its path in the package.
            arguments: As a user types them.
        """
        copies = self._folder / "owner-workspace"
        mapped, outputs = copy_inputs(self._workspace, copies, arguments)
        plain: RunTrialScript | RunPlainNotebook = RunTrialScript(file, mapped)
        if file.endswith(NOTEBOOK_SUFFIX):
            plain = RunPlainNotebook(file, mapped, str(self._folder / "owner-ipython"))
        real = RunTrialScript(file, tuple(arguments))
        owner, user = _ask_both(self._owner, self._user, plain, real)
        owner = without_path(owner, str(copies))
        received = files_in(self._folder / "results")
        notes = plain_notes(owner, user)
        if file.endswith(NOTEBOOK_SUFFIX):
            notes += notebook_notes(self.plan.manifest, file, owner, user)
        # The notebook that came back is nobody's file but the session's.
        written = {path: read for path, read in received.items() if path != f"/{user.notebook}"}
        notes += file_notes(files_in(copies, outputs), written)
        shown = " ".join([file, *arguments])
        step = Step("script", shown, owner, user, (), notes, tuple(received))
        return _with_places(step, self._lookup)

    def interrupt(self) -> None:
        """Do on both sides what Ctrl-C does in a notebook."""
        self._owner.interrupt()
        self._user.interrupt()

    def _compare(self, value: tuple[bytes, tuple[bytes, ...]]) -> tuple[str, ...]:
        self._owner.send(CompareValue(*value))
        try:
            compared = self._owner.receive()
        except TrialProcessEndedError:
            return ()
        if not isinstance(compared, Compared):
            raise TrialMessageError("the owner's side did not compare what it was to compare")
        return (
            *(f"lost at the boundary: {line}" for line in compared.dropped),
            *(f"the two runs differ: {line}" for line in compared.differing),
        )


@contextlib.contextmanager
def running_trial(plan: PackagePlan, workspace: Path, *, cells: bool) -> Iterator[Trial]:
    """Yield a trial of `plan`; no process, file or vault of it is left behind.

    Args:
        plan: Checked.
        workspace: What `/` means in a script's arguments.
        cells: Whether cells will run: then the package is loaded.

    Raises:
        OwnerError: One of the sides cannot be made.
    """
    key = ThrowAwayKey()
    with contextlib.ExitStack() as stack:
        package = stack.enter_context(_encrypted(plan, key))
        folder = stack.enter_context(_folder())
        owner = stack.enter_context(TrialProcess("enclave_encryption.plain_run"))
        user = stack.enter_context(
            TrialProcess(
                "enclave_kernel.trial",
                [str(folder)],
                descriptors=[package],
                end_wait_s=_VAULT_END_S,
            )
        )
        opening = OpenForUser(
            path=f"/proc/self/fd/{package}",
            file_name=plan.file_name,
            data_key=key.data_key,
            workspace=str(workspace),
            results=str(folder / "results"),
            load=cells,
        )
        (folder / "results").mkdir(mode=0o700)
        ended = _ask_both(owner, user, _plain(plan, cells=cells), opening)
        loaded = Step("load", plan.file_name, *ended, notes=plain_notes(*ended))
        lookup = None if plan.incident_key is None else IncidentLookup(plan)
        loaded = _with_places(loaded, lookup)
        yield Trial(plan, loaded, owner, user, folder, workspace, lookup)


def _with_places(step: Step, lookup: IncidentLookup | None) -> Step:
    if lookup is None:
        return step
    found = {incident: lookup.find(incident) for incident in step.incidents}
    places = {incident: place.shown for incident, place in found.items() if place is not None}
    return replace(step, places=places)


def _plain(plan: PackagePlan, *, cells: bool) -> OpenPlain:
    exports = plan.manifest.exports
    classes = {
        name: (
            "__init__",
            *(parse_signature(text)[0] for text in declared.methods if not text.startswith("__")),
        )
        for name, declared in exports.classes.items()
    }
    module = plan.manifest.package.module if cells else ""
    return OpenPlain(str(plan.tree.root.resolve()), module, tuple(exports.functions), classes)


@contextlib.contextmanager
def _encrypted(plan: PackagePlan, key: ThrowAwayKey) -> Iterator[int]:
    """Yield the descriptor of the encrypted file, which is in memory."""
    descriptor = os.memfd_create(plan.file_name)
    try:

        def write(data: BytesLike) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

        write_encrypted(plan, key, write, lambda _count: None)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # The name first: an interrupt may come right after it is made.
    folder = Path(tempfile.gettempdir()) / f"enclave-try-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        # The vaults' users pass through it, and see nothing of it.
        folder.chmod(_PASSABLE)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask_both(
    owner: TrialProcess, user: TrialProcess, plain: TrialRequest, real: TrialRequest
) -> tuple[Ended, Ended]:
    owner.send(plain)
    user.send(real)
    # The user's side first: its errors are about what is missing.
    for_user = _answer(user)
    for_owner = _answer(owner)
    output, errors = owner.take_output()
    seen = msgspec.structs.replace(
        for_owner, output=clipped(last_drawn(output)), errors=clipped(last_drawn(errors))
    )
    return seen, for_user


def _answer(process: TrialProcess) -> Ended:
    try:
        reply = process.receive()
    except TrialProcessEndedError as error:
        return Ended(error=str(error), exit_code=1)
    if not isinstance(reply, Ended):
        raise TrialMessageError("a process of `try` answered something that was not asked")
    return reply
