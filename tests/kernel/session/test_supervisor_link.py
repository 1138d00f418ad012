"""The kernel process's end: replies find their request, late ones are cleaned up after."""

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from enclave_kernel import session_messages
from enclave_kernel.session.supervisor_link import (
    LoadedVault,
    LoadRefusedError,
    SupervisorGoneError,
    SupervisorLink,
)
from enclave_kernel.session_messages import (
    MAX_SESSION_BYTES,
    CancelLoad,
    LoadPackage,
    LoadRefused,
    PackageLoaded,
    UnloadVault,
    VaultDeath,
    VaultDeathRequest,
)
from enclave_protocol.frame import FrameDecoder, encode_frame

VAULT = "00112233445566ff"


class Peer:
    """The supervisor's end, spoken by the test itself."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.link = SupervisorLink(theirs)
        self._decoder = FrameDecoder(MAX_SESSION_BYTES)
        self._frames: list[bytes] = []

    def receive(self) -> object:
        while not self._frames:
            data = self.sock.recv(65536)
            assert data
            self._frames += self._decoder.feed(data)
        return session_messages.decode_from_session(self._frames.pop(0))

    def send(
        self, message: PackageLoaded | LoadRefused | VaultDeath, descriptors: tuple[int, ...] = ()
    ) -> None:
        socket.send_fds(self.sock, [encode_frame(session_messages.encode(message))], descriptors)

    def send_vault(self, request_id: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self.send(PackageLoaded(request_id, VAULT), (theirs.fileno(),))
        ours.settimeout(10)
        return ours


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.sock.close()


def _in_thread(call: object) -> "queue.SimpleQueue[object]":
    results: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(call())  # type: ignore[operator]
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def test_a_load_returns_the_vaults_socket(peer: Peer) -> None:
    results = _in_thread(lambda: peer.link.load("a.encrypted", b"header"))
    request = peer.receive()
    assert isinstance(request, LoadPackage)
    assert (request.file_name, request.header) == ("a.encrypted", b"header")
    vault_end = peer.send_vault(request.request_id)
    loaded = results.get(timeout=10)
    assert isinstance(loaded, LoadedVault)
    assert loaded.vault_id == VAULT
    assert not os.get_inheritable(loaded.socket.fileno())
    loaded.socket.sendall(b"hello")
    assert vault_end.recv(16) == b"hello"
    loaded.socket.close()
    vault_end.close()


def test_a_refusal_carries_its_kind_and_its_line(peer: Peer) -> None:
    results = _in_thread(lambda: peer.link.load("a", b""))
    request = peer.receive()
    assert isinstance(request, LoadPackage)
    peer.send(LoadRefused(request.request_id, "KeyReleaseDeniedError", "the key policy says no"))
    error = results.get(timeout=10)
    assert isinstance(error, LoadRefusedError)
    assert (error.kind, str(error)) == ("KeyReleaseDeniedError", "the key policy says no")


def test_replies_in_another_order_find_their_requests(peer: Peer) -> None:
    first = _in_thread(lambda: peer.link.load("first", b""))
    request_1 = peer.receive()
    second = _in_thread(lambda: peer.link.load("second", b""))
    request_2 = peer.receive()
    assert isinstance(request_1, LoadPackage)
    assert isinstance(request_2, LoadPackage)
    peer.send(LoadRefused(request_2.request_id, "E", "for the second"))
    peer.send(LoadRefused(request_1.request_id, "E", "for the first"))
    assert str(first.get(timeout=10)) == "for the first"
    assert str(second.get(timeout=10)) == "for the second"


def test_an_interrupted_load_is_cancelled_and_its_late_vault_given_back(peer: Peer) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        time.sleep(0.3)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        peer.link.load("a", b"")
    request = peer.receive()
    assert isinstance(request, LoadPackage)
    assert peer.receive() == CancelLoad(request.request_id)
    vault_end = peer.send_vault(request.request_id)
    assert peer.receive() == UnloadVault(VAULT)
    assert vault_end.recv(1) == b""
    vault_end.close()


def test_the_reason_of_a_death_is_asked_for(peer: Peer) -> None:
    results = _in_thread(lambda: peer.link.death_reason(VAULT))
    request = peer.receive()
    assert isinstance(request, VaultDeathRequest)
    peer.send(VaultDeath(request.request_id, "it was killed"))
    assert results.get(timeout=10) == "it was killed"


def test_a_supervisor_that_does_not_know_is_not_waited_for_long(peer: Peer) -> None:
    assert peer.link.death_reason(VAULT) is None


def test_when_the_supervisor_goes_every_load_ends_and_says_so(peer: Peer) -> None:
    results = _in_thread(lambda: peer.link.load("a", b""))
    peer.receive()
    peer.sock.close()
    assert isinstance(results.get(timeout=10), SupervisorGoneError)
    with pytest.raises(SupervisorGoneError, match="enclave up"):
        peer.link.load("a", b"")
    peer.link.unload(VAULT)
    assert peer.link.death_reason(VAULT) is None
