"""What a notebook holds of an iterator whose code runs in a vault."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from enclave_kernel.session.proxy_parts import StaysInVault, with_package_frame
from enclave_kernel.session.vault_client import VaultClient
from enclave_protocol.package_label import Label

__all__ = ["EncryptedIterator", "iterator_class"]


class EncryptedIterator(StaysInVault, Iterator[Any]):
    """Items of a call's result, fetched in batches as they are asked for.

    As with a generator: whatever ends it, an error and an interrupt included, ends it for good.
    Safe from many threads, which share its items.

    Args:
        client: The connection to its vault.
        handle: Its number there.
    """

    __slots__ = ("__weakref__", "_client", "_items", "_lock", "_release", "_take")

    def __init__(self, client: VaultClient, handle: int) -> None:
        self._client = client
        self._items: deque[Any] = deque()
        self._lock = threading.Lock()
        self._take: Callable[[], tuple[list[Any], bool]] | None = lambda: client.next_items(handle)
        self._release = weakref.finalize(self, client.release, handle)
        # Not at exit: the vault goes with the notebook.
        self._release.atexit = False

    def __next__(self) -> Any:
        try:
            with self._lock:
                return self._next()
        except BaseException as error:
            # The frames below are this project's: the user sees the package as one frame.
            raise error.with_traceback(None) from None

    def close(self) -> None:
        """End it; what was fetched and not used is forgotten."""
        self._items.clear()
        self._take = None
        self._release()

    def __repr__(self) -> str:
        return f"{self._client.package.removesuffix('>')}: iterator>"

    def _next(self) -> Any:
        while not self._items:
            take = self._take
            if take is None:
                raise StopIteration
            try:
                items, ended = take()
            except BaseException:
                self.close()
                raise
            if ended:
                # The vault has forgotten it already.
                self._take = None
                self._release.detach()
            self._items.extend(items)
        return self._items.popleft()


def iterator_class(client: VaultClient, label: Label) -> Callable[[int], EncryptedIterator]:
    """Return what makes an iterator of its handle, shown as one of this package's."""
    advance = with_package_frame(EncryptedIterator.__next__, label, "__next__", "iterator")
    namespace = {"__slots__": (), "__next__": advance, "__module__": label.package.module}
    cls = type("iterator", (EncryptedIterator,), namespace)
    return lambda handle: cls(client, handle)
