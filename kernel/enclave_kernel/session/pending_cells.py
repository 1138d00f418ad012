"""Which cells this kernel has and has not answered, told to the supervisor as that changes.

If the enclave ends, the gateway answers them in the kernel's place: without it a front-end, or
`nbconvert`, would wait for a reply that nobody sends. Whose a request is leaves the enclave by
this, and nothing of what it says.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from enclave_kernel import session_messages
from enclave_kernel.session.supervisor_link import SupervisorGoneError, SupervisorLink
from enclave_kernel.session_messages import CellsPending
from enclave_protocol.messages import MAX_PENDING_CELLS, PendingCell

__all__ = ["PendingCells"]

_CELL = "execute_request"


class PendingCells:
    """Called from the threads that read requests and that run them."""

    def __init__(self) -> None:
        self.link: SupervisorLink | None = None
        self._lock = threading.Lock()
        self._cells: dict[str, PendingCell] = {}

    def asked(self, identities: Sequence[bytes], header: Mapping[str, Any]) -> None:
        """Note a request that came.

        Args:
            identities: ZeroMQ's routing ids in front of it.
            header: Its header; what is no cell is not noted.
        """
        if header.get("msg_type") != _CELL:
            return
        try:
            cell = msgspec.convert(
                {
                    "identities": tuple(identities),
                    "message_id": header.get("msg_id"),
                    "session": header.get("session"),
                },
                PendingCell,
            )
        except msgspec.ValidationError:
            # No client makes such a one: it is run, and not told of.
            return
        with self._lock:
            self._cells[cell.message_id] = cell
            self._tell()

    def answered(self, header: Mapping[str, Any]) -> None:
        """Note that a request was answered, or refused."""
        with self._lock:
            if self._cells.pop(str(header.get("msg_id")), None) is not None:
                self._tell()

    def _tell(self) -> None:
        if self.link is not None:
            first = tuple(self._cells.values())[:MAX_PENDING_CELLS]
            with suppress(SupervisorGoneError):
                self.link.send(session_messages.encode(CellsPending(first)))
