"""A user's desk for `enclave run`: an enclave, a folder, and an owner who makes packages for it."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.enclave_home import EnclaveHome
from tests.support.notebook_cells import vault_pids
from tests.support.package_owner import PackageOwner, write_package

__all__ = ["Desk", "until"]


@dataclass
class Desk:
    """A user with an enclave, a folder and an encrypted application in it."""

    home: EnclaveHome
    folder: Path
    owner: PackageOwner
    key_arn: str

    def command(self, *arguments: str) -> list[str]:
        return self.home.command("run", *arguments)

    def run(
        self, *arguments: str, file: str = "application.encrypted", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("-f", file, *arguments),
            env=self.home.environ | options.pop("environ", {}),
            cwd=options.pop("cwd", self.folder),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command("-f", "application.encrypted", *arguments),
            env=self.home.environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def encrypt(self, name: str, files: Mapping[str, str | bytes]) -> None:
        source = write_package(self.folder.parent / f"{self.folder.name}-{name}", files)
        try:
            self.owner.encrypt(source, self.key_arn, self.folder / f"{name}.encrypted")
        finally:
            # The owner's plain files: the user never has them.
            for path in sorted(source.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            source.rmdir()

    def kernels(self) -> int:
        return len(self.home.status()["kernels"])

    def is_clean(self) -> bool:
        """Whether no session, no vault but the spare and no unfinished file is left."""
        return (
            self.kernels() == 0
            and len(vault_pids(self.home)) <= 1
            and not list(self.folder.rglob(".enclave-*"))
        )


def until(process: "subprocess.Popen[str]", line: str) -> None:
    """Return when the process has printed this line."""
    assert process.stdout is not None
    for found in process.stdout:
        if found == line:
            return
    raise AssertionError(process.communicate())
