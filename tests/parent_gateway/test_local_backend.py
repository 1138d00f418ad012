"""What `enclave down` removes on the word of a state file."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_parent_gateway.backends.local import LocalBackend, _enclave_directory
from enclave_parent_gateway.enclave_state import EnclaveState, write_state
from enclave_parent_gateway.runtime_dir import EnclavePaths


@pytest.fixture
def paths(tmp_path: Path) -> EnclavePaths:
    (tmp_path / "run").mkdir(mode=0o700)
    return EnclavePaths(tmp_path / "run", tmp_path / "state")


@pytest.fixture
def root_directory() -> Iterator[Path]:
    """As the backend makes it for root."""
    path = Path(tempfile.mkdtemp(prefix="enclave-"))
    path.chmod(0o711)
    (path / "file").touch()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def stop(paths: EnclavePaths, directory: Path) -> None:
    write_state(paths.state_file, EnclaveState("local", time.time(), "", directory=str(directory)))
    LocalBackend().stop_processes(paths)
    assert not paths.state_file.exists()


def test_the_directory_it_made_is_removed(paths: EnclavePaths) -> None:
    directory = _enclave_directory(paths)
    (directory / "vault").mkdir()
    stop(paths, directory)
    assert not directory.exists()


def test_the_one_below_the_runtime_directory_is_removed(paths: EnclavePaths) -> None:
    paths.enclave_runtime.mkdir()
    stop(paths, paths.enclave_runtime)
    assert not paths.enclave_runtime.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="made for root only")
def test_an_earlier_one_of_roots_is_removed(paths: EnclavePaths, root_directory: Path) -> None:
    stop(paths, root_directory)
    assert not root_directory.exists()


def test_another_directory_is_left(paths: EnclavePaths, tmp_path: Path) -> None:
    for name, mode in (("documents", 0o711), ("enclave-x", 0o711), ("enclave-projects", 0o755)):
        directory = tmp_path / name
        directory.mkdir()
        directory.chmod(mode)
        (directory / "file").touch()
        stop(paths, directory)
        assert (directory / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_left(paths: EnclavePaths, root_directory: Path) -> None:
    os.chown(root_directory, 12345, 12345)
    stop(paths, root_directory)
    assert (root_directory / "file").exists()


def test_a_link_and_what_it_leads_to_are_left(paths: EnclavePaths, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "file").touch()
    paths.enclave_runtime.symlink_to(tmp_path / "documents")
    stop(paths, paths.enclave_runtime)
    stop(paths, paths.enclave_runtime / ".." / "documents")
    assert (tmp_path / "documents" / "file").exists()
