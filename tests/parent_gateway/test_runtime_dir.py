import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_parent_gateway.errors import RuntimeDirError
from enclave_parent_gateway.runtime_dir import EnclavePaths, FileLock


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("ENCLAVE_RUNTIME_DIR", "ENCLAVE_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="enc", dir="/tmp") as directory:
        yield Path(directory)


def test_given_directory_holds_the_durable_state_too(
    environ: pytest.MonkeyPatch, short_path: Path
) -> None:
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    paths = EnclavePaths.from_environment()
    assert paths.runtime == short_path / "run"
    assert paths.durable == short_path / "run" / "state"
    assert stat.S_IMODE(paths.runtime.stat().st_mode) == 0o700
    assert not paths.durable.exists()
    assert stat.S_IMODE(paths.make_durable().stat().st_mode) == 0o700


def test_xdg_directories(environ: pytest.MonkeyPatch, short_path: Path) -> None:
    environ.setenv("XDG_RUNTIME_DIR", str(short_path))
    environ.setenv("XDG_STATE_HOME", str(short_path / "state"))
    paths = EnclavePaths.from_environment()
    assert paths.runtime == short_path / "enclave"
    assert paths.durable == short_path / "state" / "enclave"


def test_state_directory_can_be_chosen(environ: pytest.MonkeyPatch, short_path: Path) -> None:
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    environ.setenv("ENCLAVE_STATE_DIR", str(short_path / "keys"))
    assert EnclavePaths.from_environment().durable == short_path / "keys"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_open_directory_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path, mode: int
) -> None:
    (short_path / "run").mkdir()
    (short_path / "run").chmod(mode)
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    with pytest.raises(RuntimeDirError, match="open to other users"):
        EnclavePaths.from_environment()
    assert stat.S_IMODE((short_path / "run").stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path
) -> None:
    (short_path / "run").mkdir(mode=0o700)
    os.chown(short_path / "run", 12345, 12345)
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    with pytest.raises(RuntimeDirError, match="belongs to uid 12345"):
        EnclavePaths.from_environment()


def test_link_is_refused(environ: pytest.MonkeyPatch, short_path: Path) -> None:
    (short_path / "real").mkdir(mode=0o700)
    (short_path / "run").symlink_to(short_path / "real")
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    with pytest.raises(RuntimeDirError, match="not a directory"):
        EnclavePaths.from_environment()


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "ENCLAVE_RUNTIME_DIR"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_below_another_users_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path, variable: str
) -> None:
    """`sudo -E` with a user's XDG_RUNTIME_DIR: the user could put another one in its place."""
    (short_path / "user").mkdir(mode=0o700)
    os.chown(short_path / "user", 12345, 12345)
    environ.setenv(variable, str(short_path / "user"))
    if variable == "ENCLAVE_RUNTIME_DIR":
        environ.setenv(variable, str(short_path / "user" / "a" / "run"))
    with pytest.raises(RuntimeDirError, match="user belongs to uid 12345, who could") as caught:
        EnclavePaths.from_environment()
    assert "\n" not in str(caught.value) and "set ENCLAVE_RUNTIME_DIR" in str(caught.value)
    assert not list((short_path / "user").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_durable_directory_below_another_users_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path
) -> None:
    (short_path / "home").mkdir()
    os.chown(short_path / "home", 12345, 12345)
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "run"))
    environ.setenv("XDG_STATE_HOME", str(short_path / "home"))
    environ.setenv("ENCLAVE_STATE_DIR", str(short_path / "home" / "state"))
    with pytest.raises(RuntimeDirError, match="set ENCLAVE_STATE_DIR"):
        EnclavePaths.from_environment().make_durable()


@pytest.mark.parametrize(
    ("mode", "accepted"),
    [(0o777, False), (0o757, False), (0o1777, True), (0o755, True), (0o711, True)],
)
def test_directory_that_others_may_write_to_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path, mode: int, accepted: bool
) -> None:
    (short_path / "shared").mkdir()
    (short_path / "shared").chmod(mode)
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "shared" / "run"))
    if accepted:
        assert EnclavePaths.from_environment().runtime.is_dir()
        return
    with pytest.raises(RuntimeDirError, match=f"shared can be changed .* .mode {mode:04o}"):
        EnclavePaths.from_environment()


@pytest.mark.parametrize(("gid", "accepted"), [(os.getgid(), True), (12345, False)])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_group_may_write_if_nobody_else_is_in_it(
    environ: pytest.MonkeyPatch, short_path: Path, gid: int, accepted: bool
) -> None:
    (short_path / "group").mkdir()
    os.chown(short_path / "group", -1, gid)
    (short_path / "group").chmod(0o775)
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "group" / "run"))
    if accepted:
        EnclavePaths.from_environment()
        return
    with pytest.raises(RuntimeDirError, match="group can be changed by other users"):
        EnclavePaths.from_environment()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_links_on_the_way(environ: pytest.MonkeyPatch, short_path: Path) -> None:
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to("x/../real")
    (short_path / "x").mkdir()
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "link" / "run"))
    assert EnclavePaths.from_environment().runtime.is_dir()
    assert (short_path / "real" / "run").is_dir()
    os.chown(short_path / "x", 12345, -1)  # one that the link passes through
    with pytest.raises(RuntimeDirError, match="x belongs to uid 12345"):
        EnclavePaths.from_environment()
    os.chown(short_path / "x", 0, -1)
    os.chown(short_path / "link", 12345, -1, follow_symlinks=False)
    with pytest.raises(RuntimeDirError, match="link belongs to uid 12345"):
        EnclavePaths.from_environment()


def test_ways_that_lead_nowhere(environ: pytest.MonkeyPatch, short_path: Path) -> None:
    (short_path / "loop").symlink_to("loop")
    (short_path / "file").touch()
    for folder in (short_path / "loop", short_path / "file", Path("/dev/null")):
        environ.setenv("ENCLAVE_RUNTIME_DIR", str(folder / "run"))
        with pytest.raises(RuntimeDirError, match="cannot be made"):
            EnclavePaths.from_environment()


def test_directories_made_on_the_way_are_closed(
    environ: pytest.MonkeyPatch, short_path: Path
) -> None:
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / "a" / "b" / "run"))
    previous = os.umask(0)
    try:
        EnclavePaths.from_environment()
    finally:
        os.umask(previous)
    for name in ("a", "a/b"):
        assert stat.S_IMODE((short_path / name).stat().st_mode) == 0o700


def test_path_that_is_too_long_for_sockets_is_refused(
    environ: pytest.MonkeyPatch, short_path: Path
) -> None:
    environ.setenv("ENCLAVE_RUNTIME_DIR", str(short_path / ("x" * 80)))
    with pytest.raises(RuntimeDirError, match=r"\d+ bytes too long"):
        EnclavePaths.from_environment()
    assert not (short_path / ("x" * 80)).exists()


def test_lock_excludes_within_one_process(short_path: Path) -> None:
    first, second = FileLock(short_path / "lock"), FileLock(short_path / "lock")
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()


def test_waiting_for_a_lock_says_so(short_path: Path) -> None:
    first, second = FileLock(short_path / "lock"), FileLock(short_path / "lock")
    waits, got = threading.Event(), threading.Event()

    def take() -> None:
        second.acquire(waits.set)
        got.set()

    assert first.try_acquire()
    thread = threading.Thread(target=take)
    thread.start()
    assert waits.wait(5)
    assert not got.wait(0.1)
    first.release()
    assert got.wait(5)
    thread.join()
    second.release()
