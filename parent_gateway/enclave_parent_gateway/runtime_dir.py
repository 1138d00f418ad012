"""Where the parent side keeps its files, and the checks that nobody else can put theirs there.

The runtime directory holds what ends with the boot (sockets, state, logs), the durable one what
has to outlive it (the local root's key, the local cloud's keys). Nothing here starts or stops.
"""

import errno
import fcntl
import grp
import os
import pwd
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enclave_parent_gateway.errors import RuntimeDirError

__all__ = ["MAX_SOCKET_PATH_BYTES", "SLOT_CHARACTERS", "EnclavePaths", "FileLock"]

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` of unix(7) has 108 bytes, one of them the end."""
SLOT_CHARACTERS = 17
"""Length of a slot's name. Jupyter's kernel ids, 36 characters, would leave too little room."""
_LOCK_POLL_S = 0.02
_SHARED_MODE = 0o750
_MAX_LINKS = 40
"""As many as Linux follows in one path."""
_LONGEST_NAME = f"k/{'f' * SLOT_CHARACTERS}-ffffff-5"
"""Of a socket below the runtime directory: the supervisor's, for one launch in a slot."""


SYSTEM_RUNTIME = Path("/run/enclave")
SYSTEM_STATE = Path("/var/lib/enclave")
"""Of the gateway that systemd runs for a group of users (infra/systemd)."""


def _shared_owner(path: Path) -> int | None:
    """Return whose a directory is that root made for a group of users; None if it is no such.

    Every directory above it is root's, and nobody else can write there, not even where it is
    sticky: so root, and nobody else, chose who runs the gateway in it. It is closed to all but its
    owner and the group, and the group cannot write.
    """
    try:
        for above in path.parents:
            found = above.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
                return None
        found = path.lstat()
    except OSError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    return found.st_uid if stat.S_ISDIR(found.st_mode) and mode == _SHARED_MODE else None


def _own_directory(path: Path, variable: str, *, shared: bool = False) -> Path:
    """Create `path` for this user alone, or check that it is just that, and that it stays it.

    With `shared`, a group may read what root made for it.
    """
    try:
        _check_way(path.parent, variable)
        path.mkdir(mode=0o700, exist_ok=True)
        # Not stat: in /tmp somebody else may have put a link of that name first.
        found = path.lstat()
    except OSError as error:
        raise RuntimeDirError(
            f"{path} cannot be made: {error.strerror}; set {variable} to a directory of your own"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirError(f"{path} is not a directory; remove it or set {variable}")
    if found.st_uid != os.geteuid():
        raise RuntimeDirError(
            f"{path} belongs to uid {found.st_uid}, not to you (uid {os.geteuid()}); "
            f"set {variable} to a directory of your own"
        )
    if found.st_mode & 0o077 and not (shared and stat.S_IMODE(found.st_mode) == _SHARED_MODE):
        # Not repaired silently: it may be a directory that others are meant to reach.
        raise RuntimeDirError(
            f"{path} is open to other users (mode {found.st_mode & 0o777:04o}); "
            f"set {variable} to a directory that only you can enter (mode 0700)"
        )
    return path


def _check_way(folder: Path, variable: str) -> None:
    """Walk to `folder`, making what is missing; refuse a way that somebody else could redirect.

    Step by step, links followed by hand: whoever owns or may write to any directory on the way
    can put another one in the place of what is below.

    Raises:
        RuntimeDirError: A directory or link on the way is not root's or this user's, or a
            directory is writable for others and not sticky.
        OSError: The way does not lead to a directory.
    """
    links = 0
    current = Path("/")
    _check_step(current, current.lstat(), variable)
    ahead = list(folder.absolute().parts[1:])
    while ahead:
        entry = current / ahead.pop(0)
        if entry.name == "..":
            current = current.parent
            continue
        if not os.path.lexists(entry):
            entry.mkdir(mode=0o700, exist_ok=True)
        found = entry.lstat()
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _check_step(entry, found, variable)
        if not stat.S_ISLNK(found.st_mode):
            current = entry
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = entry.readlink()
        if target.is_absolute():
            current = Path("/")
        ahead[:0] = [part for part in target.parts if part != "/"]


def _check_step(path: Path, found: os.stat_result, variable: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise RuntimeDirError(
            f"{path} belongs to uid {found.st_uid}, who could replace what is below it; set "
            f"{variable} to a directory that only you and root can change"
        )
    if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return
    shared = found.st_mode & stat.S_IWOTH or (
        found.st_mode & stat.S_IWGRP and not _is_private_group(found.st_gid)
    )
    if shared:
        raise RuntimeDirError(
            f"{path} can be changed by other users (mode {found.st_mode & 0o7777:04o}), who could "
            f"replace what is below it; set {variable} to a directory that only you can change"
        )


def _is_private_group(gid: int) -> bool:
    """Return whether only this user is in a group: with one per user, umask 002 is usual."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    own = group.gr_name == user.pw_name and user.pw_gid == gid
    return own and set(group.gr_mem) <= {user.pw_name}


@dataclass(frozen=True)
class EnclavePaths:
    """The files of one enclave on the parent instance.

    Args:
        runtime: Directory of this boot's state, mode 0700, owned by this user.
        durable: Directory of what outlives a boot; made when first needed.
        owner: Who runs the gateway there, if it is not this user: then this user is its client
            and nothing else. None: it is this user.
        is_shared: A group of users reaches it, mode 0750: see docs/decisions/shared_gateway.md.
    """

    runtime: Path
    durable: Path
    owner: int | None = None
    is_shared: bool = False

    @classmethod
    def from_environment(cls) -> "EnclavePaths":
        """Return the paths that the environment names; makes and checks the runtime directory.

        `ENCLAVE_RUNTIME_DIR`, else `/run/enclave` where root gave this user's group access to it,
        else `XDG_RUNTIME_DIR/enclave`, else `/tmp/enclave-UID`; and `ENCLAVE_STATE_DIR`, else
        `/var/lib/enclave` for `/run/enclave`, else below a given `ENCLAVE_RUNTIME_DIR`, else
        `XDG_STATE_HOME/enclave`, else `~/.local/state/enclave`.

        Raises:
            RuntimeDirError: The directory is another user's, open to others, below a directory
                that another user can change, or its path is too long for a Unix socket.
        """
        environ = os.environ
        given = environ.get("ENCLAVE_RUNTIME_DIR")
        session = environ.get("XDG_RUNTIME_DIR")
        if given:
            runtime = Path(given).absolute()
        elif _shared_owner(SYSTEM_RUNTIME) is not None and os.access(SYSTEM_RUNTIME, os.X_OK):
            runtime = SYSTEM_RUNTIME
        elif session and Path(session).is_dir():
            runtime = Path(session).absolute() / "enclave"
        else:
            runtime = Path(f"/tmp/enclave-{os.geteuid()}")  # noqa: S108 (owner and mode are checked)
        durable = environ.get("ENCLAVE_STATE_DIR")
        if durable:
            state = Path(durable).absolute()
        elif runtime == SYSTEM_RUNTIME:
            state = SYSTEM_STATE
        elif given:
            state = runtime / "state"
        else:
            state_home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
            state = Path(state_home) / "enclave"
        return cls.at(runtime, state)

    @classmethod
    def at(cls, runtime: Path, durable: Path) -> "EnclavePaths":
        """Return the paths of an enclave in these directories; makes and checks the first.

        Raises:
            RuntimeDirError: As `from_environment`.
        """
        owner = _shared_owner(runtime)
        client = owner is not None and owner != os.geteuid()
        paths = cls(runtime, durable, owner if client else None, owner is not None)
        longest = os.fsencode(paths.enclave_runtime / _LONGEST_NAME)
        if len(longest) > MAX_SOCKET_PATH_BYTES:
            raise RuntimeDirError(
                f"the path {runtime} is {len(longest) - MAX_SOCKET_PATH_BYTES} bytes too long for "
                "the sockets in it; set ENCLAVE_RUNTIME_DIR to a shorter one"
            )
        if client:
            return paths
        for folder in (runtime, paths.logs, paths.channels):
            _own_directory(folder, "ENCLAVE_RUNTIME_DIR", shared=paths.is_shared)
        return paths

    def require_own(self, instead: str) -> None:
        """See that this user runs the gateway here, and may bring the enclave up and down.

        Args:
            instead: The command that does it where somebody else does.

        Raises:
            RuntimeDirError: Somebody else does.
        """
        if self.owner is not None:
            raise RuntimeDirError(
                f"the enclave in {self.runtime} is run by uid {self.owner} for all who share it; "
                f"its administrator types: {instead}"
            )

    def make_durable(self) -> Path:
        """Return the durable directory, made or checked.

        Raises:
            RuntimeDirError: As in `from_environment`.
        """
        self.require_own("sudo -u enclave enclave ...")
        return _own_directory(self.durable, "ENCLAVE_STATE_DIR", shared=self.is_shared)

    @property
    def file_mode(self) -> int:
        """Mode of files that clients read: the state file, the expected PCRs; no secrets."""
        return 0o640 if self.is_shared else 0o600

    @property
    def gateway_socket(self) -> Path:
        """The gateway's API."""
        return self.runtime / "gateway.sock"

    @property
    def metrics_socket(self) -> Path:
        """Where Prometheus scrapes the gateway."""
        return self.runtime / "metrics.sock"

    @property
    def gateway_key(self) -> Path:
        """The gateway's key, which enclaves know it by."""
        return self.runtime / "gateway.key"

    @property
    def enclave_socket(self) -> Path:
        """The supervisor's one listening endpoint (local backend)."""
        return self.runtime / "enclave.sock"

    @property
    def nsm_socket(self) -> Path:
        """The software NSM (local backend)."""
        return self.runtime / "nsm.sock"

    @property
    def state_file(self) -> Path:
        """What runs: see `enclave_state`."""
        return self.runtime / "enclave.json"

    @property
    def workspace_socket(self) -> Path:
        """Where `enclave sync` finds the enclave's workspace."""
        return self.runtime / "workspace.sock"

    @property
    def sync_file(self) -> Path:
        """What is mirrored: see `sync.sync_state`."""
        return self.runtime / "sync.json"

    @property
    def enclave_runtime(self) -> Path:
        """The supervisor's own folder (local backend)."""
        return self.runtime / "enclave"

    @property
    def channels(self) -> Path:
        """Folder of the sockets that Jupyter clients connect to."""
        return self.runtime / "k"

    @property
    def logs(self) -> Path:
        """Folder of the log files; they hold no secrets."""
        return self.runtime / "log"

    def log(self, name: str) -> Path:
        """Return the log file of the process called `name`."""
        return self.logs / f"{name}.log"

    @property
    def egress_log(self) -> Path:
        """The egress proxy's connections, one JSON line each."""
        return self.logs / "egress.jsonl"

    def channel_prefix(self, slot: str) -> Path:
        """Return what `-1` to `-5` is appended to for the five channels of a kernel."""
        return self.channels / slot

    def lock(self) -> "FileLock":
        """Return the lock that whoever brings the enclave up or down holds."""
        return FileLock(self.runtime / "lock")

    def sync_lock(self) -> "FileLock":
        """Return the lock of the one process that mirrors the workspace."""
        return FileLock(self.runtime / "sync.lock")

    def starter_lock(self) -> "FileLock":
        """Return the lock of the one Jupyter process that starts `auto_up`."""
        return FileLock(self.runtime / "starter.lock")


class FileLock:
    """An flock(2): ends with the process, excludes threads of one process as well.

    Args:
        path: The lock file; made, never removed (removing it would let two holders in).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        if self._descriptor < 0:
            # Close-on-exec (Python's default): daemons started meanwhile must not keep the lock.
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        return True

    def acquire(self, while_waiting: Callable[[], None]) -> None:
        """Take the lock; call `while_waiting` again and again until then, it may raise."""
        while not self.try_acquire():
            while_waiting()
            time.sleep(_LOCK_POLL_S)

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
