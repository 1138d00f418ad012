"""Who may ask the gateway for what: one user's gateway, or one that a group of users shares.

In a shared one everybody has their own kernels and nobody else's, and only its own user and root
change what concerns all. Who connects is what the kernel of this machine says (SO_PEERCRED).
Source: docs/decisions/shared_gateway.md.
"""

import os
import socket
import struct
from collections.abc import Container
from contextlib import suppress
from typing import Final

import msgspec

from enclave_parent_gateway.api import (
    ChangeEgress,
    ForgetKernel,
    GatewayStatus,
    HoldSlot,
    KeepRunning,
    Launch,
    PollKernel,
    Request,
    SignalSlot,
    WaitKernel,
)
from enclave_parent_gateway.errors import NotPermittedError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.whole_file import replace_file
from enclave_protocol.messages import Shutdown

__all__ = ["Callers", "peer_uid"]

_UCRED: Final = struct.Struct("iII")
_MAX_FILE_BYTES: Final = 1024 * 1024
_ROOT: Final = 0


def peer_uid(sock: socket.socket) -> int:
    """Return who is at the other end of a Unix socket, as it connected (unix(7))."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


class Callers:
    """The rules of one gateway, and whose each slot is; over the gateway's restarts, too.

    Args:
        paths: Of the enclave.
    """

    def __init__(self, paths: EnclavePaths) -> None:
        self.shared = paths.is_shared
        self._file = paths.runtime / "slot_owners.json"
        self._own = os.geteuid()
        self._owners: dict[str, int] = {}
        with suppress(OSError, msgspec.MsgspecError, ValueError), self._file.open("rb") as file:
            # Damaged: every kernel that is found again is this user's, and nobody else's.
            self._owners = msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=dict[str, int])

    def may_connect(self, uid: int) -> bool:
        """Return whether somebody may speak to the gateway at all."""
        # In a shared directory the permissions of the sockets have kept others out.
        return self.shared or self._rules(uid)

    def owner(self, slot: str) -> int:
        """Return whose kernels run in a slot."""
        return self._owners.get(slot, self._own)

    def owns(self, uid: int, slot: str) -> bool:
        """Return whether somebody may use a slot's kernel."""
        return uid in (_ROOT, self.owner(slot))

    def check(self, request: Request, uid: int, kernels: Container[str]) -> None:
        """See that somebody may ask this.

        Args:
            request: What is asked.
            uid: Who asks.
            kernels: The kernels that there are; any other is unknown to everybody.

        Raises:
            NotPermittedError: They may not.
        """
        if self._rules(uid):
            return
        match request:
            case Launch(slot) | ForgetKernel(slot) | HoldSlot(slot):
                allowed = slot not in self._owners or self._owners[slot] == uid
            case PollKernel(kernel_id) | WaitKernel(kernel_id) | SignalSlot(kernel_id):
                slot = kernel_id.rpartition("-")[0]
                allowed = kernel_id not in kernels or self.owner(slot) == uid
            case ChangeEgress(allow, deny):
                allowed = not allow and not deny
            case KeepRunning() | Shutdown():
                allowed = False
            case _:
                allowed = True
        if not allowed:
            raise NotPermittedError(
                "this enclave is shared: everybody uses their own kernels in it, and only its "
                "administrator changes what concerns all; ask them, or use sudo"
            )

    def claim(self, slot: str, uid: int) -> None:
        """Note whose a slot is."""
        if self.shared and self._owners.get(slot) != uid:
            self._owners[slot] = uid
            self._write()

    def release(self, slot: str) -> None:
        """Forget a slot."""
        if self._owners.pop(slot, None) is not None:
            self._write()

    def keep_only(self, slots: Container[str]) -> None:
        """Forget every slot but these."""
        for slot in [one for one in self._owners if one not in slots]:
            self.release(slot)

    def view(self, status: GatewayStatus, uid: int) -> GatewayStatus:
        """Return what somebody may see of the gateway's status: their own kernels."""
        if self._rules(uid):
            return status
        enclave = status.enclave
        if enclave is not None:
            kernels = tuple(
                kernel
                for kernel in enclave.kernels
                if self.owner(kernel.kernel_id.rpartition("-")[0]) == uid
            )
            enclave = msgspec.structs.replace(enclave, kernels=kernels)
        slots = tuple(slot for slot in status.slots if self.owner(slot.slot) == uid)
        return msgspec.structs.replace(status, enclave=enclave, slots=slots)

    def _rules(self, uid: int) -> bool:
        return uid in (_ROOT, self._own)

    def _write(self) -> None:
        replace_file(self._file, msgspec.json.encode(self._owners), durable=False)
