"""Messages between the supervisor and one kernel process, over their socketpair.

The supervisor treats what comes from a kernel as hostile: any code may run there. Frames as in
`enclave_protocol.frame`. File descriptors travel with `ForkKernel` and `PackageLoaded` only, and
only away from the supervisor.
"""

from typing import Annotated, TypeVar

import msgspec

from enclave_protocol.messages import (
    MAX_PENDING_CELLS,
    CurveKeys,
    KernelId,
    MessageError,
    PendingCell,
)

__all__ = [
    "MAX_SESSION_BYTES",
    "About",
    "AboutRequest",
    "AttestRequest",
    "CancelLoad",
    "CellsPending",
    "FlushWorkspace",
    "ForkKernel",
    "InterruptVault",
    "KernelExited",
    "KernelFailed",
    "KernelForked",
    "KernelPlace",
    "KernelReady",
    "KernelWalled",
    "LoadPackage",
    "LoadRefused",
    "NotebookAttested",
    "PackageLoaded",
    "SignalChild",
    "StartKernel",
    "UnloadVault",
    "UsageRequest",
    "VaultDeath",
    "VaultDeathRequest",
    "VaultsUsage",
    "WorkspaceFlushed",
    "decode_from_session",
    "decode_from_supervisor",
    "decode_from_zygote",
    "decode_to_zygote",
    "encode",
]

MAX_SESSION_BYTES = 1024 * 1024
"""Limit of a frame in bytes: the largest is a package's header."""

RequestId = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
VaultId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
ProcessName = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""What the zygote calls a process of its."""
_FileName = Annotated[str, msgspec.Meta(max_length=4096)]
_Wall = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
_Reason = Annotated[str, msgspec.Meta(max_length=4096)]
_MAX_WALLS = 32


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What all messages share."""


# Zygote


class ForkKernel(_Message, frozen=True, tag="fork"):
    """Supervisor to zygote, with six descriptors: five listeners and the session socket."""

    name: ProcessName


class KernelForked(_Message, frozen=True, tag="forked"):
    """Zygote to supervisor: the process exists and waits for `StartKernel`."""

    name: ProcessName
    pid: int


class SignalChild(_Message, frozen=True, tag="signal"):
    """Supervisor to zygote: signal a kernel's process group.

    The zygote does it because a child it has not reaped keeps its pid: no other process can be
    hit by mistake.
    """

    name: ProcessName
    signum: int


class KernelExited(_Message, frozen=True, tag="exited"):
    """Zygote to supervisor: `returncode` as in `subprocess`."""

    name: ProcessName
    returncode: int


# Kernel process


class KernelPlace(_Message, frozen=True, tag="place"):
    """The walls of a kernel process, as in `isolation.notebook_walls.WallsSpec`.

    `use_folder`: the notebook's own directory is shown to it (a developer's machine).
    `workspace`: the enclave's workspace, which is shown to it; None: it is not.
    """

    uid: int
    gid: int
    use_folder: bool
    hidden: tuple[str, ...]
    code: tuple[str, ...]
    memory_limit: int | None
    workspace: str | None = None


class StartKernel(_Message, frozen=True, tag="start"):
    """Supervisor to a forked kernel process: become this kernel.

    `endpoint_prefix` is the path before "-1" to "-5" of the five listeners. With a `workspace`
    (where a kernel without walls finds it) `cwd` is a folder of it, "" for itself.
    """

    kernel_id: KernelId
    endpoint_prefix: str
    key: bytes
    signature_scheme: str
    cwd: str
    environ: dict[str, str]
    arguments: tuple[str, ...]
    place: KernelPlace | None = None
    curve: CurveKeys | None = None
    workspace: str | None = None

    def __repr__(self) -> str:
        return f"StartKernel(kernel_id={self.kernel_id!r}, ...)"


class KernelReady(_Message, frozen=True, tag="ready"):
    """Kernel process to supervisor: all five sockets are bound."""


class KernelWalled(_Message, frozen=True, tag="walled"):
    """Kernel process to supervisor, before any option or file of the user's is looked at.

    `walls` is what its self-check found standing, in words for `enclave status`.
    """

    walls: Annotated[tuple[_Wall, ...], msgspec.Meta(min_length=1, max_length=_MAX_WALLS)]


class KernelFailed(_Message, frozen=True, tag="failed"):
    """Kernel process to supervisor: it ends before it ran anything."""

    message: _Reason


class CellsPending(_Message, frozen=True, tag="cells"):
    """Kernel process to supervisor: the cells it has and has not answered, whenever that changes.

    For the gateway, which answers them in the kernel's place if the enclave ends.
    """

    cells: Annotated[tuple[PendingCell, ...], msgspec.Meta(max_length=MAX_PENDING_CELLS)]


class LoadPackage(_Message, frozen=True, tag="load"):
    """Kernel process to supervisor: a vault for the package with this header, please.

    `file_name` is used in messages to the user only. `unsigned`: the user said that a package
    without a publisher's signature will do.
    """

    request_id: RequestId
    file_name: _FileName
    header: bytes
    unsigned: bool = False


class CancelLoad(_Message, frozen=True, tag="cancel"):
    """Kernel process to supervisor: nobody waits for this load any more."""

    request_id: RequestId


class InterruptVault(_Message, frozen=True, tag="interrupt"):
    """Kernel process to supervisor: SIGINT for this vault."""

    vault_id: VaultId


class UnloadVault(_Message, frozen=True, tag="unload"):
    """Kernel process to supervisor: end this vault."""

    vault_id: VaultId


class VaultDeathRequest(_Message, frozen=True, tag="why"):
    """Kernel process to supervisor: why did this vault die?"""

    request_id: RequestId
    vault_id: VaultId


class AboutRequest(_Message, frozen=True, tag="about?"):
    """Kernel process to supervisor: what enclave is this?"""

    request_id: RequestId


class AttestRequest(_Message, frozen=True, tag="attest?"):
    """Kernel process to supervisor: an attestation document with this nonce, for showing.

    It carries `NOTEBOOK_USER_DATA` and no key, so it serves neither a channel nor KMS.
    """

    request_id: RequestId
    nonce: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class NotebookAttested(_Message, frozen=True, tag="attested"):
    """Reply to `AttestRequest`."""

    request_id: RequestId
    document: bytes


class FlushWorkspace(_Message, frozen=True, tag="flush"):
    """Kernel process to supervisor: say when what was written so far is on the parent's disk."""

    request_id: RequestId


class WorkspaceFlushed(_Message, frozen=True, tag="flushed"):
    """Reply to `FlushWorkspace`: it is, or nothing mirrors the workspace, or it takes too long."""

    request_id: RequestId


class UsageRequest(_Message, frozen=True, tag="usage?"):
    """Kernel process to supervisor: what do my vaults use?"""

    request_id: RequestId


class VaultsUsage(_Message, frozen=True, tag="usage"):
    """Reply to `UsageRequest`: the sums over this kernel's vaults, of what was seen last.

    In bytes and in percent of one processor, each vault in the steps of `supervisor.usage`.
    """

    request_id: RequestId
    memory_bytes: int
    cpu_percent: int


class About(_Message, frozen=True, tag="about"):
    """Reply to `AboutRequest`: the enclave as the supervisor knows it.

    `development` and `debug` each mean that it is not confidential. `isolation` is what was
    checked, in words; of other notebooks nothing is told.
    """

    request_id: RequestId
    version: str
    module_id: str
    pcr0: str
    debug: bool
    development: bool
    uptime_s: float
    isolation: tuple[str, ...]


class PackageLoaded(_Message, frozen=True, tag="loaded"):
    """Supervisor to kernel process, with one descriptor: the socket to the vault.

    The vault has the key; the body goes to it over that socket. `new_publisher`: its key was not
    known to this user before, and is pinned now.
    """

    request_id: RequestId
    vault_id: VaultId
    new_publisher: bool = False


class LoadRefused(_Message, frozen=True, tag="refused"):
    """Supervisor to kernel process: no vault. `kind` is the error's class name."""

    request_id: RequestId
    kind: str
    message: str


class VaultDeath(_Message, frozen=True, tag="death"):
    """Reply to `VaultDeathRequest`; None: it lives, or was unloaded long ago.

    `peak_memory_bytes`: the most that it had at a time, rounded up to a power of two, where that
    is known (docs/decisions/usage_of_vaults.md).
    """

    request_id: RequestId
    reason: str | None
    peak_memory_bytes: int | None = None


_FromSession = (
    KernelReady
    | KernelWalled
    | KernelFailed
    | CellsPending
    | LoadPackage
    | CancelLoad
    | InterruptVault
    | UnloadVault
    | VaultDeathRequest
    | AboutRequest
    | AttestRequest
    | FlushWorkspace
    | UsageRequest
)
_FromSupervisor = (
    StartKernel
    | PackageLoaded
    | LoadRefused
    | VaultDeath
    | About
    | NotebookAttested
    | WorkspaceFlushed
    | VaultsUsage
)
_ToZygote = ForkKernel | SignalChild
_FromZygote = KernelForked | KernelExited

_M = TypeVar("_M")
_encoder = msgspec.msgpack.Encoder()
_from_session: msgspec.msgpack.Decoder[_FromSession] = msgspec.msgpack.Decoder(_FromSession)
_from_supervisor: msgspec.msgpack.Decoder[_FromSupervisor] = msgspec.msgpack.Decoder(
    _FromSupervisor
)
_to_zygote: msgspec.msgpack.Decoder[_ToZygote] = msgspec.msgpack.Decoder(_ToZygote)
_from_zygote: msgspec.msgpack.Decoder[_FromZygote] = msgspec.msgpack.Decoder(_FromZygote)


def encode(message: _FromSession | _FromSupervisor | _ToZygote | _FromZygote) -> bytes:
    """Return the message as msgpack, without the frame's length."""
    return _encoder.encode(message)


def decode_from_session(payload: bytes) -> _FromSession:
    """Return a kernel process's message.

    Raises:
        MessageError: It is none, or a field is out of its range.
    """
    return _decode(_from_session, payload, "a kernel process")


def decode_from_supervisor(payload: bytes) -> _FromSupervisor:
    """Return the supervisor's message to a kernel process.

    Raises:
        MessageError: It is none.
    """
    return _decode(_from_supervisor, payload, "the supervisor")


def decode_to_zygote(payload: bytes) -> _ToZygote:
    """Return the supervisor's message to the zygote.

    Raises:
        MessageError: It is none.
    """
    return _decode(_to_zygote, payload, "the supervisor")


def decode_from_zygote(payload: bytes) -> _FromZygote:
    """Return the zygote's message.

    Raises:
        MessageError: It is none.
    """
    return _decode(_from_zygote, payload, "the zygote")


def _decode(decoder: msgspec.msgpack.Decoder[_M], payload: bytes, sender: str) -> _M:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(f"{sender} sent a frame that holds no message") from error
