"""One Jupyter kernel as the gateway sees it: five listening sockets, a relay per connection."""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

from enclave_parent_gateway.api import KernelState, SlotStatus
from enclave_parent_gateway.callers import Callers, peer_uid
from enclave_parent_gateway.last_word import KernelVoice, LastWord
from enclave_parent_gateway.traffic import Traffic, traffic_of
from enclave_parent_gateway.transport import connect
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import encode_frame
from enclave_protocol.messages import CHANNELS, OpenChannel, PendingCell, encode
from enclave_protocol.relay import relay

__all__ = ["KernelSlot", "RunningKernel", "is_own_peer"]

log = logging.getLogger(__name__)

_BACKLOG = 128
"""Connections that wait while a kernel starts or restarts; a client has at most seven or so."""


def is_own_peer(sock: socket.socket) -> bool:
    """Return whether the peer of a Unix socket runs as this user or as root."""
    return peer_uid(sock) in (0, os.geteuid())


_HEARD_S = 1.0
_READ_S = 0.25
"""Whoever runs a notebook looks now and then whether its kernel lives: they are to read first what
happened to their cell."""


class RunningKernel:
    """A kernel process and, once it ended, how.

    Args:
        kernel_id: The supervisor's name of it.
        voice: Its keys; None for one of which an earlier gateway left none.

    Attributes:
        cells: Those that it has and has not answered, as it said.
    """

    def __init__(self, kernel_id: str, voice: KernelVoice | None = None) -> None:
        self.kernel_id = kernel_id
        self.voice = voice
        self.launched = False
        self.cells: tuple[PendingCell, ...] = ()
        self.state = KernelState(None, "running")
        self.ended = asyncio.Event()

    def end(self, returncode: int, reason: str) -> None:
        """Note the end; the first word counts."""
        if self.state.returncode is None:
            self.state = KernelState(returncode, reason)
            self.ended.set()


class KernelSlot:
    """Where the clients of one Jupyter kernel connect, over restarts of the kernel process.

    Args:
        name: The slot's.
        prefix: Path to which `-1` to `-5` is appended, in the order of `CHANNELS`.
        endpoint: The supervisor's, as in `transport.connect`.
        traffic: Where its streams and bytes are counted.
        callers: Whose it is.
    """

    def __init__(
        self, name: str, prefix: Path, endpoint: str, traffic: Traffic, callers: Callers
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.lock = asyncio.Lock()
        self.kernel: RunningKernel | None = None
        self.counters = traffic.add_slot()
        self._traffic = traffic
        self._callers = callers
        self._endpoint = endpoint
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._last_word: LastWord | None = None

    def status(self) -> SlotStatus | None:
        """Return the slot's numbers; None before its first kernel."""
        if self.kernel is None:
            return None
        return SlotStatus(
            slot=self.name,
            kernel_id=self.kernel.kernel_id,
            returncode=self.kernel.state.returncode,
            connections=len(self._relays),
            traffic=traffic_of(self.counters),
        )

    def listen(self) -> None:
        """Bind the five sockets anew; clients may connect at once and wait for `accept`.

        Anew because jupyter_client unlinks the files on every restart.

        Raises:
            OSError: The runtime directory is gone or full.
        """
        self.close()
        self._bind()

    def listen_again(self) -> None:
        """Bind the five sockets anew and accept; connections that are open stay.

        Raises:
            OSError: As `listen`.
        """
        self.hold()
        self._bind()
        self.accept()

    def _bind(self) -> None:
        self._unbind()
        try:
            for number in range(1, len(CHANNELS) + 1):
                path = Path(f"{self.prefix}-{number}")
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._listeners.append(listener)
                listener.bind(str(path))
                path.chmod(0o660 if self._callers.shared else 0o600)
                listener.listen(_BACKLOG)
                listener.setblocking(False)
        except OSError:
            self.close()
            raise

    def say_last_word(self, text: str) -> None:
        """Tell this kernel's clients, those of now and later ones, that its enclave has ended.

        Nothing happens if the kernel's keys are not known.

        Raises:
            OSError: The runtime directory is gone or full.
        """
        if self.kernel is None or self.kernel.voice is None:
            return
        # Streams to what is gone may stay open and silent: clients connect again at once.
        for task in self._relays:
            task.cancel()
        self._last_word = LastWord(self.prefix, self.kernel.voice, text, self.kernel.cells)
        self.listen_again()

    @property
    def said_last_word(self) -> bool:
        """Whether its clients are being told that the enclave has ended."""
        return self._last_word is not None

    async def last_word_was_heard(self) -> None:
        """Return when the cells that the kernel left are answered, within a second."""
        if self._last_word is not None and self.kernel is not None and self.kernel.cells:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARD_S):
                    await self._last_word.answered.wait()
                    await asyncio.sleep(_READ_S)

    def accept(self) -> None:
        """Carry the connections to the running kernel, from now until it ends."""
        for listener, channel in zip(self._listeners, CHANNELS, strict=True):
            self._spawn(self._accept(listener, channel), self._tasks)

    def hold(self) -> None:
        """Stop accepting: the kernel ended, its clients wait in the backlog for the next one.

        Relays end by themselves, after the last bytes of the kernel reached its clients.
        """
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Close listeners and connections, and remove the sockets' files."""
        for task in self._tasks | self._relays:
            task.cancel()
        if self._last_word is not None:
            self._last_word.close()
            self._last_word = None
        self._unbind()

    def _unbind(self) -> None:
        for number, listener in enumerate(self._listeners, 1):
            listener.close()
            with suppress(OSError):
                Path(f"{self.prefix}-{number}").unlink(missing_ok=True)
        self._listeners.clear()

    def _spawn(self, work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _accept(self, listener: socket.socket, channel: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: the connection stays in the backlog.
                log.warning("slot %s cannot accept on %s: %s", self.name, channel, error)
                await asyncio.sleep(0.1)
                continue
            kernel = self.kernel
            if kernel is None or not self._callers.owns(peer_uid(client), self.name):
                client.close()
                continue
            self._spawn(self._carry(client, kernel.kernel_id, channel), self._relays)

    async def _carry(self, client: socket.socket, kernel_id: str, channel: str) -> None:
        """Open a stream for this connection and pump until one side is done."""
        if self._last_word is not None:
            await self._carry_last_word(client, self._last_word, channel)
            return
        try:
            stream = await asyncio.to_thread(connect, self._endpoint)
        except (EnclaveError, asyncio.CancelledError) as error:
            client.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            log.warning("slot %s: no stream for %s: %s", self.name, channel, error)
            return
        try:
            # 100 bytes into the empty buffer of a new connection: this does not block.
            stream.sendall(encode_frame(encode(OpenChannel(kernel_id, channel))))
        except OSError as error:
            log.warning("slot %s: no stream for %s: %s", self.name, channel, error)
            client.close()
            stream.close()
            return
        self._traffic.streams[channel] += 1
        await relay(client, stream, self.counters[channel])

    async def _carry_last_word(
        self, client: socket.socket, last_word: LastWord, channel: str
    ) -> None:
        try:
            stream = last_word.connect(channel)
        except EnclaveError:
            stream = None
        if stream is None:
            # ZeroMQ would connect again and again: it waits until the slot has a kernel.
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                client.close()
        else:
            await relay(client, stream)
