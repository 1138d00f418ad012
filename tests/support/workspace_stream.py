"""Workspace streams into a real supervisor, through the gateway's own relay."""

import asyncio
import socket
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from enclave_parent_gateway.workspace_relay import WorkspaceRelay
from enclave_protocol.channel_binding import verify_channel
from tests.support.supervisor_process import SupervisorProcess

__all__ = ["workspace_stream"]


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work)


@contextmanager
def workspace_stream(supervisor: SupervisorProcess) -> Iterator[socket.socket]:
    """Return a connection as `enclave sync` has it: attested and in TLS behind the relay."""

    def check(document: bytes, *, certificate: bytes, nonce: bytes) -> object:
        return verify_channel(
            document,
            certificate=certificate,
            nonce=nonce,
            root=supervisor.nsm.root,
            now=datetime.now(UTC),
            pcrs={0: {bytes.fromhex(supervisor.nsm.pcr0)}},
        )

    started, stopping = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="relay-", dir="/tmp") as folder:
        path = Path(folder) / "workspace.sock"

        async def serve() -> None:
            relay = WorkspaceRelay(path, f"unix:{supervisor.path}", check)
            relay.start()
            started.set()
            await stopping.wait()
            relay.close()

        thread = threading.Thread(target=_run, args=(loop, serve()))
        thread.start()
        try:
            assert started.wait(10)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(30)
                sock.connect(str(path))
                yield sock
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join(10)
