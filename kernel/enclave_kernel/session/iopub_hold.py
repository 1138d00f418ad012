"""Keeps output while every client's connection is cut, until they are there again.

A gateway that crashes cuts them all, and XPUB drops what nobody subscribes to. The clients come
back by themselves within a second or two of the next gateway's start; what the cells say meanwhile
waits here, in this notebook's own memory, with a limit. Source: docs/decisions/iopub_queue.md.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import zmq
from ipykernel.iostream import IOPubThread

__all__ = ["HoldingIOPubThread"]

_AWAY_S: Final = 60.0
"""A client that is away for longer has left; systemd and Jupyter start a gateway within 10 s."""
_LATE_S: Final = 0.3
"""From the first client that comes back to the last: ZeroMQ tries every 0.1 s. All of it is waited
only where somebody stays away."""
_MAX_HELD_BYTES: Final = 16 * 2**20
_MAX_HELD: Final = 20_000
_SUBSCRIBED: Final = 1
_DELIMITER: Final = b"<IDS|MSG>"
_PARENT: Final = 3
"""Frames from the delimiter to the parent's header: signature and header are between them."""


class HoldingIOPubThread(IOPubThread):
    """ipykernel's thread of the iopub socket; all state but the queue of sends is its own.

    Args:
        socket: XPUB; its events are asked for one by one.
        pipe: As the base class.
        session: As the base class.
    """

    def __init__(self, socket: Any, pipe: bool = False, session: Any = False) -> None:
        self._topics: set[bytes] = set()
        self._came_since = 0
        """Subscriptions since nobody was there; of those that end only the last is told."""
        self._expected = 0
        self._times_left = 0
        self._holding = False
        self._held: deque[list[Any]] = deque()
        self._held_bytes = 0
        self._dropped = 0
        self._last_dropped: list[Any] = []
        # Every subscription, not only the first to a topic.
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        super().__init__(socket, pipe=pipe, session=session)  # type: ignore[no-untyped-call]

    def _handle_subscription(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            topic = frame[1:]
            if frame[0] == _SUBSCRIBED:
                if topic not in self._topics:
                    self._topics.add(topic)
                    # As often as ipykernel says it.
                    super()._handle_subscription([frame])  # type: ignore[no-untyped-call]
                self._came()
            else:
                self._topics.discard(topic)
                if not self._topics:
                    self._all_left()

    def _all_left(self) -> None:
        self._expected, self._came_since = self._came_since, 0
        self._times_left += 1
        self._holding = True
        self.io_loop.call_later(_AWAY_S, self._give_up, self._times_left)

    def _came(self) -> None:
        self._came_since += 1
        if self._holding:
            if self._came_since >= self._expected:
                self._release()
            else:
                self.io_loop.call_later(_LATE_S, self._release_if_anybody)

    def _release_if_anybody(self) -> None:
        if self._holding and self._topics:
            self._release()

    def _give_up(self, times_left: int) -> None:
        """Hold nothing any more, unless somebody came and went since then."""
        if self._holding and self._times_left == times_left:
            self._holding = False
            self._held.clear()
            self._held_bytes = self._dropped = 0

    def _release(self) -> None:
        self._holding = False
        if self._dropped:
            self._say_dropped()
        while self._held:
            self.socket.send_multipart(self._held.popleft())
        self._held_bytes = 0

    def _say_dropped(self) -> None:
        """Tell, in the cell that said most lately what is lost, how much that was."""
        text = (
            f"{self._dropped} messages of output were lost while the gateway was down: more than "
            f"{_MAX_HELD_BYTES // 2**20} MiB waited.\n"
        )
        frames = self._last_dropped
        parent = self.session.unpack(frames[frames.index(_DELIMITER) + _PARENT])
        content = {"name": "stderr", "text": text}
        self.session.send(
            self.socket, "stream", content, parent={"header": parent}, ident=b"stream.stderr"
        )
        self._dropped = 0

    def _really_send(self, msg: list[Any], *args: Any, **kwargs: Any) -> None:
        if self.closed or not self._is_master_process():  # type: ignore[no-untyped-call]
            super()._really_send(msg, *args, **kwargs)  # type: ignore[no-untyped-call]
            return
        # A client that was cut off a moment ago: this message is to wait for it already.
        self._look()
        if self._holding:
            self._hold(msg)
            return
        super()._really_send(msg, *args, **kwargs)  # type: ignore[no-untyped-call]
        # Sending takes the sign away by which the loop would see that something came.
        self._look()

    def _look(self) -> None:
        while self.socket.get(zmq.EVENTS) & zmq.POLLIN:
            self._handle_subscription(self.socket.recv_multipart())

    def _hold(self, msg: list[Any]) -> None:
        self._held.append(msg)
        self._held_bytes += _size(msg)
        while self._held_bytes > _MAX_HELD_BYTES or len(self._held) > _MAX_HELD:
            # The oldest: the end of a cell, which is what a client waits for, comes last.
            self._last_dropped = self._held.popleft()
            self._held_bytes -= _size(self._last_dropped)
            self._dropped += 1


def _size(msg: Sequence[Any]) -> int:
    return sum(memoryview(part).nbytes for part in msg)
