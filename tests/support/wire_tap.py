"""A man in the middle: between gateway and supervisor, it writes along and may change what passes.

It stands where the supervisor's socket was, so that both sides take it for the other one.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from enclave_protocol.frame import FrameDecoder, FrameError
from enclave_protocol.messages import MAX_OPEN_BYTES, MessageError, Open, OpenControl, decode_open
from tests.support.enclave_home import EnclaveHome, wait_until

__all__ = ["Flow", "WireTap", "tapped"]

Change = Callable[["Flow", bool, bytes], bytes]
"""Returns what is passed on of one portion; True: it goes to the enclave."""


@dataclass
class Flow:
    """One stream and what went over it."""

    gateway: socket.socket
    enclave: socket.socket
    to_enclave: bytearray = field(default_factory=bytearray)
    from_enclave: bytearray = field(default_factory=bytearray)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def opened(self) -> Open | None:
        """What it was opened for; None before that is known."""
        try:
            frames = FrameDecoder(MAX_OPEN_BYTES).feed(bytes(self.to_enclave[:600]), most=1)
            return decode_open(frames[0]) if frames else None
        except (FrameError, MessageError):
            return None

    @property
    def is_control(self) -> bool:
        """Whether it is a control stream."""
        return isinstance(self.opened, OpenControl)

    def cut(self) -> None:
        """End it for both sides."""
        for sock in (self.gateway, self.enclave):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class WireTap:
    """The relay.

    Args:
        outside: Where the gateway connects.
        inside: Where the supervisor listens.
    """

    def __init__(self, outside: Path, inside: Path) -> None:
        self.inside = inside
        self.flows: list[Flow] = []
        self.change: Change = lambda _flow, _to_enclave, data: data
        self.divert: Callable[[socket.socket], bool] = lambda _sock: False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(outside))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def wire(self) -> bytes:
        """Every byte that went over it, in both directions."""
        return b"\n".join(bytes(flow.to_enclave + flow.from_enclave) for flow in self.flows)

    def controls(self) -> list[Flow]:
        """Return the control streams, oldest first."""
        return [flow for flow in self.flows if flow.is_control]

    def channels(self, name: str) -> list[Flow]:
        """Return the streams of one Jupyter channel, oldest first."""
        return [flow for flow in self.flows if getattr(flow.opened, "channel", "") == name]

    def connect(self) -> socket.socket:
        """Return a connection of the tap's own to the supervisor."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.inside))
        return sock

    def close(self) -> None:
        """Stop listening, and end every stream."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for flow in self.flows:
            flow.cut()

    def _accept(self) -> None:
        while True:
            try:
                gateway, _ = self._listener.accept()
            except OSError:
                return
            if self.divert(gateway):
                continue
            try:
                enclave = self.connect()
            except OSError:
                gateway.close()
                continue
            enclave.settimeout(None)
            flow = Flow(gateway, enclave)
            self.flows.append(flow)
            for to_enclave in (True, False):
                threading.Thread(target=self._carry, args=(flow, to_enclave), daemon=True).start()

    def _carry(self, flow: Flow, to_enclave: bool) -> None:
        source, target = flow.gateway, flow.enclave
        seen = flow.to_enclave
        if not to_enclave:
            source, target, seen = target, source, flow.from_enclave
        try:
            while data := source.recv(65536):
                seen += data
                target.sendall(self.change(flow, to_enclave, data))
        except OSError:
            flow.cut()
        finally:
            flow.ended.set()
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)


@contextmanager
def tapped(home: EnclaveHome) -> Iterator[WireTap]:
    """Put a tap between a running local enclave and a new gateway; take it away afterwards."""
    outside, inside = home.runtime / "enclave.sock", home.runtime / "real.sock"
    outside.rename(inside)
    tap = WireTap(outside, inside)
    try:
        _new_gateway(home)
        yield tap
    finally:
        tap.close()
        inside.replace(outside)


def _new_gateway(home: EnclaveHome) -> None:
    os.kill(home.status()["pids"]["gateway"], signal.SIGKILL)
    if not wait_until(lambda: "gateway" not in home.status()["pids"]):
        raise RuntimeError("the gateway does not end")
    result = home.run("up")
    if result.returncode:
        raise RuntimeError(f"enclave up: {result.stderr}")
