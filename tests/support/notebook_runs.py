"""Runs a package's notebook in a real vault, as `%run_encrypted` does."""

from pathlib import Path

import nbformat

from enclave_kernel.session.script_run import ScriptFailedError, run_script
from tests.support.notebook_source import notebook_source, read_executed
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink

__all__ = ["KEY", "MANIFEST", "NotebookRuns"]

KEY = b"k" * 32
MANIFEST = """
[package]
name = "app"
version = "1"
module = "helper"
[scripts]
report = { file = "deep/report.ipynb", output = "%s" }
[policy]
errors = ["KeyError"]
%s
"""


class NotebookRuns:
    """Runs one notebook after the other; `ENCLAVE_WORKSPACE` is `workspace`.

    Args:
        link: Starts vaults.
        workspace: The user's folder.
    """

    def __init__(self, link: VaultLink, workspace: Path) -> None:
        self._link = link
        self.workspace = workspace

    def __call__(
        self,
        *cells: str,
        arguments: tuple[str, ...] = (),
        parameters: str | None = None,
        output: str = "text",
        policy: str = "",
        with_key: bool = False,
    ) -> tuple[nbformat.NotebookNode, str]:
        """Run a notebook with these cells; return it executed, and the error's line.

        Args:
            cells: Sources of code cells; "CANARY" in one must not come back.
            arguments: As a user types them.
            parameters: Source of the cell that is tagged so, None for no such cell.
            output: The script's, in the policy.
            policy: More lines of it.
            with_key: The package has an `incidents.key`, which is `KEY`.

        Returns:
            The executed notebook, checked by `read_executed`, and exit code and message if it
            failed.
        """
        files: dict[str, str | bytes] = {
            "deep/report.ipynb": notebook_source(*cells, parameters=parameters),
            "helper.py": "VALUE = 42\ndef fail():\n    raise LookupError  # CANARY\n",
            "data.bin": b"weights",
            **({"incidents.key": KEY.hex()} if with_key else {}),
        }
        package = seal_package(files, MANIFEST % (output, policy))
        self._link.add(package)
        file = package.write(self.workspace / "app.encrypted")
        said = ""
        try:
            run_script(str(file), "report", arguments, (), self._link, lambda *_: None)
        except ScriptFailedError as error:
            said = f"{error.exit_code} {error}"
        assert "CANARY" not in said
        return read_executed((self.workspace / "output" / "report.ipynb").read_bytes()), said
