"""The kernel process's end of its socket to the supervisor."""

import contextlib
import itertools
import queue
import socket
import threading
from dataclasses import dataclass

from enclave_kernel import session_messages
from enclave_kernel.session_messages import (
    MAX_SESSION_BYTES,
    About,
    AboutRequest,
    AttestRequest,
    CancelLoad,
    FlushWorkspace,
    InterruptVault,
    LoadPackage,
    LoadRefused,
    NotebookAttested,
    PackageLoaded,
    StartKernel,
    UnloadVault,
    UsageRequest,
    VaultDeath,
    VaultDeathRequest,
    VaultsUsage,
    WorkspaceFlushed,
)
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import MessageError

__all__ = ["LoadRefusedError", "LoadedVault", "SupervisorGoneError", "SupervisorLink"]

_DEATH_WAIT_S = 2.0
_ABOUT_WAIT_S = 10.0
_FLUSH_WAIT_S = 15.0
"""Longer than the supervisor waits for the parent."""
_USAGE_WAIT_S = 2.0
_Reply = (
    PackageLoaded
    | LoadRefused
    | VaultDeath
    | About
    | NotebookAttested
    | WorkspaceFlushed
    | VaultsUsage
)


class SupervisorGoneError(EnclaveError):
    """The supervisor closed the connection: the enclave is going down."""

    def __init__(self) -> None:
        super().__init__("the enclave is going down; start it again with: enclave up")


class LoadRefusedError(EnclaveError):
    """The supervisor did not load a package. `kind` is the class of its error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class LoadedVault:
    """A vault that holds the data key and waits for the package's body on `socket`.

    `new_publisher`: the key that the package is signed with was pinned just now.
    """

    vault_id: str
    socket: socket.socket
    new_publisher: bool = False


class SupervisorLink:
    """Asks the supervisor for vaults. Safe from many threads; waits can be interrupted.

    Args:
        sock: The stream socket to the supervisor, blocking; owned by the link.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.set_inheritable(False)
        self._sock = sock
        self._decoder = FrameDecoder(MAX_SESSION_BYTES)
        self._frames: list[bytes] = []
        self._descriptors: list[int] = []
        self._send_lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[_Reply | LoadedVault | None]] = {}
        self._waiting_lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._reader: threading.Thread | None = None
        self._gone = False

    def send(self, payload: bytes) -> None:
        """Send one encoded message.

        Raises:
            SupervisorGoneError: Nobody is there to take it.
        """
        try:
            with self._send_lock:
                self._sock.sendall(encode_frame(payload))
        except OSError as error:
            raise SupervisorGoneError from error

    def receive(self) -> StartKernel | _Reply:
        """Return the next message. Only before the first request: then a thread reads.

        Raises:
            SupervisorGoneError: The connection ended.
            MessageError: What came is no message.
        """
        while not self._frames:
            data, descriptors, _flags, _address = socket.recv_fds(self._sock, 65536, 4)
            self._descriptors += descriptors
            if not data:
                raise SupervisorGoneError
            self._frames += self._decoder.feed(data)
        return session_messages.decode_from_supervisor(self._frames.pop(0))

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        """Return a vault that has the data key of the package with this header.

        Args:
            file_name: As the user wrote it, for messages.
            header_raw: Everything before the package's body.
            unsigned: Whether a package without a publisher's signature will do.

        Raises:
            LoadRefusedError: The supervisor or KMS refused; one line says why.
            SupervisorGoneError: The enclave is going down.
            KeyboardInterrupt: Passed on after the load was cancelled.
        """
        number = next(self._numbers)
        message = LoadPackage(
            request_id=number, file_name=file_name, header=header_raw, unsigned=unsigned
        )
        try:
            reply = self._ask(number, session_messages.encode(message), None)
        except BaseException:
            with contextlib.suppress(SupervisorGoneError):
                self.send(session_messages.encode(CancelLoad(request_id=number)))
            raise
        if isinstance(reply, LoadedVault):
            return reply
        if isinstance(reply, LoadRefused):
            raise LoadRefusedError(reply.kind, reply.message)
        raise MessageError("the supervisor's reply to a load is not one")

    def interrupt(self, vault_id: str) -> None:
        """Have the supervisor send SIGINT to a vault."""
        self.send(session_messages.encode(InterruptVault(vault_id=vault_id)))

    def unload(self, vault_id: str) -> None:
        """Have the supervisor end a vault; an unknown one is fine."""
        with contextlib.suppress(SupervisorGoneError):
            self.send(session_messages.encode(UnloadVault(vault_id=vault_id)))

    def death_reason(self, vault_id: str) -> str | None:
        """Return why a vault died, or None when nothing is known within 2 s."""
        death = self.death(vault_id)
        return None if death is None else death.reason

    def death(self, vault_id: str) -> VaultDeath | None:
        """Return what is known of a vault that died or was unloaded; None as `death_reason`."""
        number = next(self._numbers)
        message = VaultDeathRequest(request_id=number, vault_id=vault_id)
        try:
            reply = self._ask(number, session_messages.encode(message), _DEATH_WAIT_S)
        except (SupervisorGoneError, queue.Empty):
            return None
        return reply if isinstance(reply, VaultDeath) else None

    def about(self) -> About:
        """Return what the supervisor says of the enclave.

        Raises:
            SupervisorGoneError: The enclave is going down, or does not answer within 10 s.
        """
        number = next(self._numbers)
        try:
            reply = self._ask(
                number, session_messages.encode(AboutRequest(request_id=number)), _ABOUT_WAIT_S
            )
        except queue.Empty:
            raise SupervisorGoneError from None
        if not isinstance(reply, About):
            raise MessageError("the supervisor's reply about the enclave is not one")
        return reply

    def attest(self, nonce: bytes) -> bytes:
        """Return an attestation document with this nonce, unverified.

        Args:
            nonce: 32 fresh random bytes.

        Raises:
            LoadRefusedError: The NSM did not attest, or this notebook asks too often.
            SupervisorGoneError: The enclave is going down, or does not answer within 10 s.
        """
        number = next(self._numbers)
        request = AttestRequest(request_id=number, nonce=nonce)
        try:
            reply = self._ask(number, session_messages.encode(request), _ABOUT_WAIT_S)
        except queue.Empty:
            raise SupervisorGoneError from None
        if isinstance(reply, LoadRefused):
            raise LoadRefusedError(reply.kind, reply.message)
        if not isinstance(reply, NotebookAttested):
            raise MessageError("the supervisor's reply to a request to attest is not one")
        return reply.document

    def flush_workspace(self) -> None:
        """Wait until what was written to the workspace is on the parent's disk, but not for ever.

        Raises:
            SupervisorGoneError: The enclave is going down.
        """
        number = next(self._numbers)
        with contextlib.suppress(queue.Empty):
            self._ask(number, session_messages.encode(FlushWorkspace(number)), _FLUSH_WAIT_S)

    def vaults_usage(self) -> VaultsUsage | None:
        """Return what this kernel's vaults use, None when nothing is known within 2 s."""
        number = next(self._numbers)
        payload = session_messages.encode(UsageRequest(request_id=number))
        try:
            reply = self._ask(number, payload, _USAGE_WAIT_S)
        except (SupervisorGoneError, queue.Empty):
            return None
        return reply if isinstance(reply, VaultsUsage) else None

    def _ask(self, number: int, payload: bytes, timeout_s: float | None) -> _Reply | LoadedVault:
        answers: queue.SimpleQueue[_Reply | LoadedVault | None] = queue.SimpleQueue()
        with self._waiting_lock:
            if self._gone:
                raise SupervisorGoneError
            self._waiting[number] = answers
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._read_replies, name="supervisor-link", daemon=True
                )
                self._reader.start()
        try:
            self.send(payload)
            reply = answers.get(timeout=timeout_s)
        finally:
            with self._waiting_lock:
                del self._waiting[number]
        if reply is None:
            raise SupervisorGoneError
        return reply

    def _read_replies(self) -> None:
        try:
            while True:
                message = self.receive()
                if not isinstance(message, StartKernel):
                    self._deliver(message)
        except (OSError, EnclaveError):
            with self._waiting_lock:
                self._gone = True
                for answers in self._waiting.values():
                    answers.put(None)

    def _deliver(self, message: _Reply) -> None:
        reply: _Reply | LoadedVault = message
        if isinstance(message, PackageLoaded):
            if not self._descriptors:
                raise MessageError("the supervisor announced a vault and sent no socket to it")
            sock = socket.socket(fileno=self._descriptors.pop(0))
            sock.set_inheritable(False)
            reply = LoadedVault(message.vault_id, sock, message.new_publisher)
        with self._waiting_lock:
            answers = self._waiting.get(message.request_id)
            if answers is not None:
                answers.put(reply)
                return
        # Cancelled meanwhile: nobody will use this vault.
        if isinstance(reply, LoadedVault):
            reply.socket.close()
            self.unload(reply.vault_id)
