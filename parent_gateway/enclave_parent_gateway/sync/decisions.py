"""What is to happen at one path, from what is here, what is there, and what was agreed on.

Pure: entries in, an action out. The rules are those of docs/spec/workspace.md, "Decisions".
"""

from enum import Enum, auto

from enclave_parent_gateway.sync.journal import Base
from enclave_protocol.workspace.messages import Entry

__all__ = ["Action", "decide", "local_mode", "remote_mode"]

_OWNER = 0o700


class Action(Enum):
    """What to do."""

    NOTHING = auto()
    AGREE = auto()
    """Both have the same: note it."""
    FORGET = auto()
    """Neither has it: note it."""
    PUSH = auto()
    PULL = auto()
    PUSH_META = auto()
    PULL_META = auto()
    DROP_REMOTE = auto()
    DROP_LOCAL = auto()
    COMPARE = auto()
    """Both changed it, to the same size: the content decides."""
    CONFLICT = auto()
    """Both changed it: the enclave's gets another name, and both are kept."""
    WAIT = auto()
    """It changed a moment ago."""


def decide(
    local: Entry | None,
    remote: Entry | None,
    base: Base | None,
    *,
    reserved: bool,
    impatient: bool,
) -> Action:
    """Return what is to happen.

    Args:
        local: What the parent has there, None for nothing.
        remote: What the enclave has.
        base: What both had when they last agreed.
        reserved: Its name does not come out of the enclave: the parent's version always counts.
        impatient: It has been changing for so long that it is taken as it is.
    """
    mine = _changed(local, base.local if base else None)
    theirs = _changed(remote, base.remote if base else None)
    if not mine and not theirs:
        return Action.NOTHING
    if reserved:
        return _decide_reserved(local, remote, base)
    if not impatient and (
        (mine and local is not None and local.fresh)
        or (theirs and remote is not None and remote.fresh)
    ):
        return Action.WAIT
    if local is None and remote is None:
        return Action.FORGET
    if not theirs:
        return _one_changed(local, base.local if base else None, mine=True)
    if not mine:
        return _one_changed(remote, base.remote if base else None, mine=False)
    return _both_changed(local, remote, base)


def _changed(found: Entry | None, before: Entry | None) -> bool:
    if found is None or before is None:
        return found is not before
    # What was taken while it changed may have changed since without a trace.
    return before.fresh or not found.same_state(before)


def _decide_reserved(local: Entry | None, remote: Entry | None, base: Base | None) -> Action:
    if local is None:
        return Action.DROP_REMOTE if base and remote else Action.NOTHING
    if remote is not None and _alike(local, remote):
        return Action.AGREE
    return Action.PUSH


def _one_changed(found: Entry | None, before: Entry | None, *, mine: bool) -> Action:
    if found is None:
        return Action.DROP_REMOTE if mine else Action.DROP_LOCAL
    if (
        before is not None
        and not before.fresh
        and found.kind == before.kind
        and found.size == before.size
        and found.mtime_ns == before.mtime_ns
    ):
        return Action.PUSH_META if mine else Action.PULL_META
    return Action.PUSH if mine else Action.PULL


def _both_changed(local: Entry | None, remote: Entry | None, base: Base | None) -> Action:
    # A change counts for more than a deletion.
    if local is None:
        return Action.PULL
    if remote is None:
        return Action.PUSH
    if local.kind == "folder" and remote.kind == "folder":
        return Action.PUSH_META if base or local.mode != remote.mode else Action.AGREE
    if local.kind != remote.kind:
        return Action.CONFLICT
    if _alike(local, remote) and not (local.fresh or remote.fresh):
        return Action.AGREE
    return Action.COMPARE if local.size == remote.size else Action.CONFLICT


def _alike(local: Entry, remote: Entry) -> bool:
    if local.kind != remote.kind:
        return False
    if local.kind == "folder":
        return True
    return (
        local.size == remote.size
        and local.mtime_ns == remote.mtime_ns
        and (local.mode ^ remote.mode) & _OWNER == 0
    )


def local_mode(remote: Entry, in_place: Entry | None, *, open_modes: bool) -> int:
    """Return the mode that something of the enclave's gets on the parent.

    Groups and others get no right to write that they have not had: an enclave is not to open a
    file to the parent's other users.

    Args:
        remote: The enclave's.
        in_place: What is there on the parent.
        open_modes: In the enclave only the owner's permissions mean something.
    """
    mode = remote.mode
    if open_modes:
        if in_place is not None and (in_place.mode ^ mode) & _OWNER == 0:
            return in_place.mode
        mode = _same_for_all(mode)
    had = in_place.mode & 0o022 if in_place is not None else 0
    mode = mode & (0o755 | had)
    return mode | _OWNER if remote.kind == "folder" else mode


def remote_mode(local: Entry, *, open_modes: bool) -> int:
    """Return the mode that something of the parent's gets in the enclave."""
    mode = local.mode | (_OWNER if local.kind == "folder" else 0)
    if open_modes:
        mode = _same_for_all(mode)
    return mode & 0o777


def _same_for_all(mode: int) -> int:
    owner = mode & _OWNER
    return owner | owner >> 3 | owner >> 6
