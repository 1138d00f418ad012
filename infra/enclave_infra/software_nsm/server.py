"""The Unix socket of a software NSM: one SOCK_SEQPACKET packet is one request or response."""

import contextlib
import os
import selectors
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from enclave_protocol.errors import EnclaveError
from enclave_protocol.nsm_messages import MAX_REQUEST_BYTES

__all__ = ["SocketInUseError", "listen", "serve"]

_MAX_CLIENTS = 64
_MAX_PATH_BYTES = 107  # sockaddr_un


class SocketInUseError(EnclaveError):
    """The socket's path cannot be listened on."""


@contextlib.contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """Listen on `path` with mode 0600; the file is removed at the end.

    Raises:
        SocketInUseError: Another process serves it, or it is no socket, or too long.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise SocketInUseError(f"socket path {path} is over {_MAX_PATH_BYTES} bytes; shorten it")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        previous = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise SocketInUseError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(previous)
        try:
            listener.listen(_MAX_CLIENTS)
            listener.setblocking(False)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUseError(f"{path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SocketInUseError(f"another software NSM serves {path}; stop it first")


def serve(
    listener: socket.socket, handle: Callable[[bytes], bytes], *, on_ready: Callable[[], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT; call from the main thread.

    Args:
        listener: From `listen`.
        handle: Returns the response to one request; takes milliseconds, so one thread is enough.
        on_ready: Called when a request would be answered and a signal would end the loop.
    """
    waker, wakened = socket.socketpair()
    with waker, wakened, selectors.DefaultSelector() as selector:
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            # The wakeup descriptor ends the loop; the handler only replaces the default action.
            signal.signal(number, lambda *_: None)
        selector.register(wakened, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        clients: set[socket.socket] = set()
        on_ready()
        try:
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    if ready is wakened:
                        return
                    if ready is listener:
                        _accept(listener, selector, clients)
                    elif isinstance(ready, socket.socket) and not _answer(ready, handle):
                        selector.unregister(ready)
                        clients.discard(ready)
                        ready.close()
        finally:
            signal.set_wakeup_fd(-1)
            for client in clients:
                client.close()


def _accept(
    listener: socket.socket, selector: selectors.BaseSelector, clients: set[socket.socket]
) -> None:
    try:
        client, _ = listener.accept()
    except OSError:  # the client left before it was accepted
        return
    if len(clients) >= _MAX_CLIENTS:
        client.close()
        return
    client.setblocking(False)
    clients.add(client)
    selector.register(client, selectors.EVENT_READ)


def _answer(client: socket.socket, handle: Callable[[bytes], bytes]) -> bool:
    """Serve one request; False when the client is to be closed."""
    try:
        request = client.recv(MAX_REQUEST_BYTES + 1)
        if not request:
            return False
        client.send(handle(request))
    except BlockingIOError:
        return False  # it does not read its answers
    except OSError:
        return False
    return True
