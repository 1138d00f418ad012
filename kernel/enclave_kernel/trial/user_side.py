"""What `enclave-owner try` asks of the user's side, done with a notebook's own parts."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from enclave_kernel.session.package_loading import LoadedPackage, load_package
from enclave_kernel.session.script_run import ScriptFailedError, run_script
from enclave_kernel.trial.cell_shell import new_shell
from enclave_kernel.trial.local_vaults import LocalVaults
from enclave_kernel.trial.noted_client import NotedClient, line_of
from enclave_kernel.trial.returned_notebook import returned_cells
from enclave_kernel.vault.self_check import missing_walls
from enclave_protocol.errors import EnclaveError
from enclave_protocol.trial_messages import (
    Ended,
    OpenForUser,
    RunCell,
    RunTrialScript,
)

__all__ = ["UserSide"]

_INCIDENT: Final = re.compile(r"\[incident ([0-9a-f]+)\]")


class UserSide:
    """One package in a vault, and a shell to call it from.

    Args:
        opening: Which package.
        trial_folder: Of this trial, existing; every user can pass through it.
    """

    def __init__(self, opening: OpenForUser, trial_folder: Path) -> None:
        self._opening = opening
        self._folder = folder = trial_folder / "user"
        vaults = folder / "vaults"
        for place in (folder, vaults):
            place.mkdir()
            # A vault's user passes through it, and sees nothing of it.
            place.chmod(0o711)
        self._vaults = LocalVaults(vaults, opening.data_key)
        self._client: NotedClient | None = None
        # Where the file has the name that its user would have typed.
        (folder / opening.file_name).symlink_to(opening.path)
        os.environ["ENCLAVE_WORKSPACE"] = opening.workspace
        os.environ["IPYTHONDIR"] = str(folder / "ipython")
        self._shell = new_shell()

    def load(self) -> Ended:
        """Load the package, bind its exports and its name, and say how that went."""
        if not self._opening.load:
            return Ended()
        clients: list[NotedClient] = []

        def make(*arguments: Any) -> NotedClient:
            clients.append(NotedClient(*arguments))
            return clients[0]

        try:
            with contextlib.chdir(self._folder):
                loaded = load_package(
                    self._opening.file_name, self._vaults, lambda _stage, _share: None, make
                )
        except EnclaveError as error:
            incident = _INCIDENT.search(str(error))
            return Ended(
                error=line_of(error),
                incident="" if incident is None else incident[1],
                walls=self._vaults.walls,
                missing_walls=missing_walls(self._vaults.walls),
            )
        self._client = clients[0]
        self._bind(loaded)
        walls = self._vaults.walls
        return Ended(walls=walls, missing_walls=missing_walls(walls))

    def _bind(self, loaded: LoadedPackage) -> None:
        namespace = self._shell.user_ns
        namespace[loaded.label.package.module.rpartition(".")[2]] = loaded.proxy
        for name in (*loaded.label.exports.functions, *loaded.label.exports.classes):
            namespace[name] = getattr(loaded.proxy, name)

    def run_cell(self, request: RunCell) -> Ended:
        """Run a cell as in a notebook."""
        ended = self._shell.run(request.source)
        calls = () if self._client is None else self._client.take_notes()
        walls = self._vaults.walls
        return msgspec.structs.replace(
            ended, calls=calls, walls=walls, missing_walls=missing_walls(walls)
        )

    def run_script(self, request: RunTrialScript) -> Ended:
        """Run a script as `%run_encrypted` does, its files put where the trial wants them."""
        failure: EnclaveError | None = None
        notebook: str | None = None
        with self._shell.capture() as captured:
            try:
                with contextlib.chdir(self._folder):
                    result = run_script(
                        self._opening.file_name,
                        request.file,
                        request.arguments,
                        (),
                        self._vaults,
                        lambda _stage, _share: None,
                        Path(self._opening.results),
                    )
                    notebook = result.notebook
            except ScriptFailedError as error:
                failure, notebook = error, error.notebook
            except EnclaveError as error:
                failure = error
        ended = Ended(
            output=captured.output,
            errors=captured.errors,
            exit_code=0,
            walls=self._vaults.walls,
            missing_walls=missing_walls(self._vaults.walls),
        )
        if notebook is not None:
            cells = returned_cells(Path(self._opening.results) / notebook)
            ended = msgspec.structs.replace(ended, cells=cells, notebook=notebook)
        if failure is None:
            return ended
        line = line_of(failure)
        incident = _INCIDENT.search(line)
        return msgspec.structs.replace(
            ended,
            error=line,
            incident="" if incident is None else incident[1],
            exit_code=failure.exit_code if isinstance(failure, ScriptFailedError) else None,
        )

    def close(self) -> None:
        """End the vaults. For any thread."""
        self._vaults.close()
