"""One run of a script or a notebook: what it is about, and what its code finds and leaves."""

import _sitebuiltins
import builtins
import gc
from dataclasses import dataclass

from enclave_kernel.call_channel import CallChannel
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.importer import PackageImporter
from enclave_kernel.vault.incidents import Incidents
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.script_files import InputFiles
from enclave_protocol.manifest import Script
from enclave_protocol.package_label import Label
from enclave_protocol.script_messages import workspace_path

__all__ = ["ScriptRun", "add_site_names", "collect_main"]


@dataclass(frozen=True)
class ScriptRun:
    """Everything a run needs.

    Attributes:
        label: The package's, authentic.
        script: What to run.
        importer: The package's modules, importable.
        incidents: Makes the id of its error.
        inputs: The workspace's files, complete.
        output: Takes progress and text.
        runner: Enters code of the package's.
        channel: To the notebook's process.
    """

    label: Label
    script: Script
    importer: PackageImporter
    incidents: Incidents
    inputs: InputFiles
    output: CallOutput
    runner: PackageRunner
    channel: CallChannel

    def place(self, argument: str) -> str:
        """Return `argument`, with the place in here if it names one of the workspace."""
        found = workspace_path(argument)
        if found is None:
            return argument
        before, path, after = found
        return f"{before}{self.inputs.root}/{path}{after}"


def add_site_names() -> None:
    """Add the names that Python's `site` adds, which vaults do without: scripts call `exit`."""
    names = {name: _sitebuiltins.Quitter(name, "") for name in ("exit", "quit")}
    vars(builtins).update(names, help=_sitebuiltins._Helper())


def collect_main(namespace: dict[str, object], path: str) -> None:
    """Forget the names of `__main__`: files that it left open are written when collected.

    Args:
        namespace: The module's.
        path: Its `__file__`, which stays: for the incident id, if it raised.
    """
    namespace.clear()
    namespace["__file__"] = path
    gc.collect()
