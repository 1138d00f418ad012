"""Carries workspace streams between `enclave sync` and the enclave; looks at none of their bytes.

The mirror itself runs as whoever typed `enclave sync`, with that person's rights and no others; the
way into the enclave is the gateway's, which knows that it is the right one.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_parent_gateway.attested_stream import PeerCheck, open_attested
from enclave_parent_gateway.kernel_slot import is_own_peer
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import PROTOCOL_VERSION, OpenWorkspace
from enclave_protocol.relay import relay_secured

__all__ = ["WorkspaceRelay"]

log = logging.getLogger(__name__)
_BACKLOG = 4


class WorkspaceRelay:
    """A Unix socket whose connections are carried into the enclave, as long as it is open.

    Args:
        path: The socket's.
        endpoint: The supervisor's, as in `transport.connect`.
        check: Verifies the peer of every stream.
        key: The gateway's, as in `open_attested`.
        on_opened: Told of every stream that it was opened.
    """

    def __init__(
        self,
        path: Path,
        endpoint: str,
        check: PeerCheck,
        key: Ed25519PrivateKey | None = None,
        on_opened: Callable[[], None] = lambda: None,
    ) -> None:
        self._key = key
        self._on_opened = on_opened
        self._check = check
        self._path = path
        self._endpoint = endpoint
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))

    def close(self) -> None:
        """Close the socket and every connection."""
        for task in self._tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()
        self._path.unlink(missing_ok=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("cannot accept a workspace stream: %s", error)
                await asyncio.sleep(0.1)
                continue
            if is_own_peer(client):
                self._spawn(self._carry(client))
            else:
                client.close()

    async def _carry(self, client: socket.socket) -> None:
        opening = OpenWorkspace(PROTOCOL_VERSION)
        try:
            stream = await open_attested(self._endpoint, opening, self._check, self._key)
        except (EnclaveError, OSError, TimeoutError) as error:
            log.warning("no workspace stream: %s", error or type(error).__name__)
            client.close()
            return
        except BaseException:
            client.close()
            raise
        self._on_opened()
        await relay_secured(stream.reader, stream.writer, client)
