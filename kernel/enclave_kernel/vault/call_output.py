"""What a running call shows besides its result: numbers of progress, and text it prints.

The package's code only leaves it here; a thread of the vault's sends it, ten times a second at
most. So an interrupt never breaks into a frame, and a loop that reports pays no system call.

Source: docs/spec/vault_calls.md, "Output"; THREATS, O-01 to O-04.
"""

import _thread
import contextlib
import itertools
import math
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Final, Literal

from enclave_kernel.call_channel import ChannelClosedError
from enclave_kernel.vault import owner_calls, progress_bars
from enclave_kernel.vault.standard_output import StandardOutput
from enclave_protocol.output_text import (
    CALL_TEXT_CHARS,
    MAX_TEXT_CHARS,
    TEXT_BURST_CHARS,
    TEXT_CHARS_PER_S,
    output_text,
)
from enclave_protocol.vault_messages import FRACTION_BAR, Progress, Text

__all__ = ["CallOutput"]

_Stream = Literal["stdout", "stderr"]
_INTERVAL_S: Final = 0.1
_ROOM_POLL_S: Final = 0.005
_MAX_WAITING_BARS: Final = 16
_MAX_WAITING_PIECES: Final = 256 * 1024
"""One for each `write`: bounds the memory of those that are short."""
_NOTE_INTERVAL_S: Final = 1.0

_State = tuple[float, float | None, float | None, Literal[0, 1, 2]]


class CallOutput:
    """Collects a call's output and sends it while the call runs.

    Anything of the package's may call `fraction`, `bar` and `text` at any time, in finalizers and
    in threads of its own: they take no lock. Between calls what they are given is dropped.

    Args:
        send: Sends one message to the notebook.
        allowed: The policy's `output`.
        patient: Text is not limited: who prints too much waits until it is taken.

    Attributes:
        sending: Held by whoever sends while a call runs.
    """

    def __init__(
        self,
        send: Callable[[Progress | Text], None],
        allowed: Literal["none", "progress", "text", "all"],
        *,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._sender: int | None = None
        self.sending = threading.Lock()
        self._send = send
        self._allowed = allowed
        self._request_id: int | None = None
        self._bars: dict[int, _State] = {}
        self._last_bar = FRACTION_BAR
        self._pieces: deque[tuple[_Stream, str]] = deque()
        self._waiting_chars = 0
        self._budget = _TextBudget()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._woken = False
        self._started = False
        self._has_thread = False

    def install(self) -> None:
        """Take over tqdm, `vault.progress` and `sys.stdout`, as far as the policy allows."""
        if self._allowed == "none":
            return
        owner_calls.connect(self.fraction)
        progress_bars.watch_tqdm(self.new_bar, self.bar)
        if self._allowed in ("text", "all"):
            sys.stdout = StandardOutput(self.text)
        if self._allowed == "all":
            sys.stderr = StandardOutput(lambda text: self.text(text, "stderr"))

    def begin(self, request_id: int) -> None:
        """From now on output belongs to this request."""
        self._pieces.clear()
        self._bars.clear()
        self._waiting_chars = 0
        self._budget.begin_call()
        self._request_id = request_id

    def end(self) -> None:
        """Send what waits; from now on output belongs to nobody.

        Raises:
            ChannelClosedError: The notebook is gone.
        """
        with self.sending:
            self._sender = threading.get_ident()
            self.send_waiting(last=True)
            self._request_id = None

    def disable(self) -> None:
        """Send nothing any more: this process is a fork of the vault."""
        self._request_id = None
        self._allowed = "none"

    def fraction(self, value: float) -> None:
        """Report the share of the call that is done, 0 to 1."""
        self.bar(FRACTION_BAR, value, 1.0, None, 0)

    def new_bar(self) -> int:
        """Return the number of another bar; none comes twice, for a bar may outlive its call."""
        self._last_bar += 1
        return self._last_bar

    def bar(
        self,
        number: int,
        done: float,
        total: float | None,
        rate: float | None,
        state: Literal[0, 1, 2],
    ) -> None:
        """Report where a bar stands, as `Progress` has it; what is not finite is dropped."""
        if self._request_id is None or self._allowed == "none" or not math.isfinite(done):
            return
        if number not in self._bars and len(self._bars) >= _MAX_WAITING_BARS:
            return
        self._bars[number] = done, _finite(total), _finite(rate), state
        self._kick()

    def text(self, text: str, stream: "_Stream" = "stdout") -> None:
        """Print; what is too much is dropped, and counted."""
        if self._request_id is None or self._allowed not in ("text", "all") or not text:
            return
        if self._patient:
            self._wait_for_room()
        room = TEXT_BURST_CHARS - self._waiting_chars
        if len(self._pieces) >= _MAX_WAITING_PIECES:
            room = 0
        if len(text) > room and not self._patient:
            self._budget.left_out += len(text) - max(0, room)
            text = text[: max(0, room)]
        self._waiting_chars += len(text)
        self._pieces.append((stream, text))
        self._kick()

    def _is_full(self) -> bool:
        return self._waiting_chars >= TEXT_BURST_CHARS or len(self._pieces) >= _MAX_WAITING_PIECES

    def _wait_for_room(self) -> None:
        """Wait as long as too much waits to be sent; whoever sends never waits for itself."""
        while self._is_full() and self._request_id is not None and self._has_thread:
            if self._sender == threading.get_ident():
                # A finalizer of the package's, in the midst of sending.
                return
            time.sleep(_ROOM_POLL_S)

    def send_waiting(self, *, last: bool = False) -> None:
        """Send what waits; `sending` is held.

        Raises:
            ChannelClosedError: The notebook is gone.
        """
        request_id = self._request_id
        if request_id is None:
            return
        parts = self._taken_text() or [("stdout", "")]
        for number, (stream, printed) in enumerate(parts, 1):
            text = printed
            if not self._patient:
                text = self._budget.allow(printed, last=last and number == len(parts))
            for start in range(0, len(text), MAX_TEXT_CHARS):
                self._send(Text(request_id, text[start : start + MAX_TEXT_CHARS], stream))
        # Another dictionary rather than a loop over this one: the package adds to it meanwhile.
        bars, self._bars = self._bars, {}
        for number, state in bars.items():
            self._send(Progress(request_id, number, *state))

    def _taken_text(self) -> list[tuple["_Stream", str]]:
        """Return what waits, clean, in the order it was written; a stream's pieces are joined."""
        pieces = []
        with contextlib.suppress(IndexError):
            while True:
                pieces.append(self._pieces.popleft())
        self._waiting_chars = 0
        return [
            (stream, output_text("".join(text for _, text in run)))
            for stream, run in itertools.groupby(pieces, key=itemgetter(0))
        ]

    def _kick(self) -> None:
        if not self._started:
            self._started = True
            # Without a thread, which the limits may refuse, output comes when the call ends.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self._run, ())
                self._has_thread = True
        if not self._woken:
            self._woken = True
            self._wake.put(None)

    def _run(self) -> None:
        # Signals are the main thread's: one taken here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._wake.get()
            # Before anything is taken: what comes from here on wakes again.
            self._woken = False
            try:
                with self.sending:
                    self._sender = threading.get_ident()
                    self.send_waiting()
            except ChannelClosedError:
                self._request_id = None
                return
            if not self._is_full():
                time.sleep(_INTERVAL_S)


class _TextBudget:
    """How much text a call may still send.

    Attributes:
        left_out: Characters dropped since this was last said.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self._now = float(TEXT_BURST_CHARS)
        self._call = CALL_TEXT_CHARS
        self._counted_at = time.monotonic()
        self._said_at = -math.inf

    def begin_call(self) -> None:
        """Give the next call its own text; what may be sent at once stays as used as it is."""
        # What may be sent at once is the vault's and not the call's: many short calls are no
        # way around it.
        self.left_out = 0
        self._call = CALL_TEXT_CHARS

    def allow(self, text: str, *, last: bool) -> str:
        """Return as much of `text` as may be sent, with a note on what was left out."""
        if not text and not self.left_out:
            return ""
        now = time.monotonic()
        refilled = self._now + (now - self._counted_at) * TEXT_CHARS_PER_S
        self._now = min(float(TEXT_BURST_CHARS), refilled)
        self._counted_at = now
        room = min(int(self._now), self._call)
        self.left_out += max(0, len(text) - room)
        text = text[:room]
        self._now -= len(text)
        self._call -= len(text)
        if self.left_out and (last or now - self._said_at >= _NOTE_INTERVAL_S):
            text += f"\n[{self.left_out} characters of output left out: too much at once]\n"
            self.left_out = 0
            self._said_at = now
        return text


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
