"""What a script wrote, on the parent's disk: plain files, whole ones, where they may be.

The enclave is a stranger here. Every name is checked, every folder is reached by descriptors and
through no link (`enclave_protocol.workspace.tree`), and names that programs on the parent would run
by themselves are not written. A file that cannot be taken is named, the others are.

Source: docs/spec/run.md, "Results"; THREATS, section 16.
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_parent_gateway.run.run_errors import OutputPlaceError
from enclave_parent_gateway.run.shared_tree import SharedTree
from enclave_protocol.package_archive import ArchiveReader, FileData, FileEnd, FileStart
from enclave_protocol.plain_text import plain_text
from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import NameRefusedError, check_rel, is_reserved
from enclave_protocol.workspace.tree import Staged, TreeError, reason_for

__all__ = ["OutputFiles", "OutputPlace", "choose_place"]

_RUNS_BY_ITSELF: Final = "its name could run code on this machine"


@dataclass(frozen=True)
class OutputPlace:
    """Where results go.

    Attributes:
        root: A folder that exists.
        prefix: What paths begin with below it: "", or a folder with a slash at its end.
        stripped: The output folder whose own name is left out, with a slash; "" for none.
    """

    root: Path
    prefix: str
    stripped: str

    def rel(self, path: str) -> str:
        """Return the place below `root` of what is at `path` in the workspace."""
        return self.prefix + path.removeprefix(self.stripped)


def choose_place(
    workspace: Path, directory: Path | None, mirrored: Path | None, outputs: tuple[str, ...]
) -> OutputPlace:
    """Return where results go, checked as far as that can be done before there are any.

    Args:
        workspace: The folder that `/` means.
        directory: Where the user wants them instead; it is made.
        mirrored: The folder that `enclave sync` mirrors, if it runs.
        outputs: The output folders, below the workspace.

    Raises:
        OutputPlaceError: They could not be written there.
    """
    if directory is None:
        for folder in outputs:
            _check_writable(workspace, folder)
        return OutputPlace(workspace, "", "")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        real = directory.resolve(strict=True)
    except OSError as error:
        raise OutputPlaceError(
            f"results cannot be put into {directory}: {error.strerror}; choose another with -o"
        ) from None
    _check_writable(real, "")
    stripped = f"{outputs[0]}/" if len(outputs) == 1 else ""
    if mirrored is not None and real != mirrored and real.is_relative_to(mirrored):
        # The mirror leaves alone what is unfinished only in the folder for that in its own root.
        return OutputPlace(mirrored, f"{real.relative_to(mirrored)}/", stripped)
    return OutputPlace(real, "", stripped)


def _check_writable(root: Path, folder: str) -> None:
    place = root
    for name in folder.split("/") if folder else ():
        try:
            mode = (place / name).lstat().st_mode
        except FileNotFoundError:
            break
        except OSError as error:
            raise OutputPlaceError(f"{place / name} cannot be used: {error.strerror}") from None
        place = place / name
        if not stat.S_ISDIR(mode):
            raise OutputPlaceError(
                f"{place} is a link or no folder: nothing is written through it; choose another "
                "folder for results with -o"
            )
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputPlaceError(
            f"{place} cannot be written to; choose another folder for results with -o"
        )


class OutputFiles:
    """Takes the archive of a script's output folders and writes its files as they come.

    Args:
        place: Where to.
        outputs: The folders; files elsewhere are not taken.
        open_tree: Opens the tree at `place.root`, when there is a first file.

    Attributes:
        written: Paths of files that were written, below the workspace.
        problems: Why others were not, by path.
    """

    def __init__(
        self,
        place: OutputPlace,
        outputs: tuple[str, ...],
        open_tree: Callable[[Path], SharedTree],
    ) -> None:
        self.written: list[str] = []
        self.problems: dict[str, str] = {}
        self._place = place
        self._outputs = outputs
        self._open_tree = open_tree
        self._tree: SharedTree | None = None
        self._reader = ArchiveReader()
        self._any = False
        self._path = ""
        self._size = 0
        self._staged: Staged | None = None
        mask = os.umask(0o077)
        os.umask(mask)
        self._modes = 0o666 & ~mask, 0o777 & ~mask

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the archive.

        Raises:
            PackageError: It is no archive.
            OutputPlaceError: Nothing can be written there at all.
        """
        self._any = True
        for event in self._reader.feed(data):
            if isinstance(event, FileStart):
                self._begin(event)
            elif isinstance(event, FileData) and self._staged is not None:
                self._write(self._staged, event.data)
            elif isinstance(event, FileEnd):
                self._end()

    def finish(self) -> None:
        """Check that everything came.

        Raises:
            PackageError: It did not.
        """
        if self._any:
            self._reader.finish()

    def close(self) -> None:
        """Remove what is unfinished."""
        if self._tree is not None:
            if self._staged is not None:
                self._tree.abandon(self._staged)
                self._staged = None
            self._tree.close()
            self._tree = None

    def _own_tree(self) -> SharedTree:
        if self._tree is None:
            try:
                self._tree = self._open_tree(self._place.root)
            except TreeError as error:
                raise OutputPlaceError(
                    f"results cannot be put into {self._place.root}: {error}"
                ) from None
        return self._tree

    def _begin(self, start: FileStart) -> None:
        self._path, self._size = start.path, start.size
        tree = self._own_tree()
        try:
            self._check(start.path)
            tree.make_room(start.size)
            self._staged = tree.stage()
        except (TreeError, NameRefusedError) as error:
            self._refuse(error)

    def _check(self, path: str) -> None:
        if not any(path.startswith(f"{folder}/") for folder in self._outputs):
            raise TreeError("name", "it is not in an output folder")
        # As the mirror does with what comes out of the enclave (docs/spec/workspace.md, "Names").
        check_rel(path)
        if is_reserved(path):
            raise TreeError("name", _RUNS_BY_ITSELF)

    def _write(self, staged: Staged, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(staged.descriptor, view) :]
        except OSError as error:
            self._own_tree().abandon(staged)
            self._staged = None
            self._refuse(reason_for(error))

    def _end(self) -> None:
        staged, self._staged = self._staged, None
        if staged is None:
            return
        tree = self._own_tree()
        rel = self._place.rel(self._path)
        entry = Entry("file", self._size, time.time_ns(), self._modes[0], 0)
        try:
            self._make_folders(tree, rel)
            found = tree.look(rel)
            if found is not None and found.kind == "folder":
                raise TreeError("occupied", "a folder has its name")
        except TreeError as error:
            tree.abandon(staged)
            self._refuse(error)
            return
        try:
            tree.commit(staged, rel, entry, found)
        except TreeError as error:
            self._refuse(error)
            return
        self.written.append(self._path)

    def _make_folders(self, tree: SharedTree, rel: str) -> None:
        parts = rel.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            found = tree.look(folder)
            if found is None:
                tree.make_folder(folder, self._modes[1])
            elif found.kind != "folder":
                raise TreeError("occupied", f"/{plain_text(folder)} is a file")

    def _refuse(self, error: TreeError | NameRefusedError) -> None:
        reason = error.reason if isinstance(error, NameRefusedError) else str(error)
        self.problems[self._path] = reason
