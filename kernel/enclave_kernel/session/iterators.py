"""What a notebook holds of an iterator whose code runs in a vault."""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.call_thread import in_thread
from enclave_kernel.session.proxy_parts import StaysInVault, with_package_frame
from enclave_kernel.session.vault_client import VaultClient
from enclave_protocol.package_label import Label

__all__ = ["EncryptedAsyncIterator", "EncryptedIterator", "async_iterator_class", "iterator_class"]

_Take = Callable[[CallInterrupt | None], tuple[list[Any], bool]]
_Open = Callable[[CallInterrupt], "EncryptedIterator"]


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
        self._take: _Take | None = lambda watch: client.next_items(handle, watch)
        self._release = weakref.finalize(self, client.release, handle)
        # Not at exit: the vault goes with the notebook.
        self._release.atexit = False

    def __next__(self) -> Any:
        try:
            with self._lock:
                if not self.fetch():
                    raise StopIteration
                return self._items.popleft()
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

    def fetch(self, watch: CallInterrupt | None = None) -> bool:
        """Have an item at hand if there is one; return whether there is. Errors as for a call."""
        while not self._items:
            take = self._take
            if take is None:
                return False
            try:
                items, ended = take(watch)
            except BaseException:
                self.close()
                raise
            if ended:
                # The vault has forgotten it already.
                self._take = None
                self._release.detach()
            self._items.extend(items)
        return True

    @property
    def has_items(self) -> bool:
        """Whether an item is at hand."""
        return bool(self._items)

    def pop(self) -> Any:
        """Return an item that is at hand.

        Raises:
            IndexError: There is none.
        """
        return self._items.popleft()


class EncryptedAsyncIterator(StaysInVault, AsyncIterator[Any]):
    """The same for `async for`: the call is made when its first item is awaited.

    Args:
        client: The connection to its vault.
        make: Makes the call; blocks.
    """

    __slots__ = ("__weakref__", "_client", "_make", "_source", "_turn")

    def __init__(self, client: VaultClient, make: _Open) -> None:
        self._client = client
        self._make: _Open | None = make
        self._source: EncryptedIterator | None = None
        self._turn = asyncio.Lock()

    async def __anext__(self) -> Any:
        try:
            async with self._turn:
                if await self._fetch() and self._source is not None:
                    return self._source.pop()
                raise StopAsyncIteration
        except BaseException as error:
            raise error.with_traceback(None) from None

    async def aclose(self) -> None:
        """End it; what was fetched and not used is forgotten."""
        self._make = None
        if self._source is not None:
            # Never waits: the vault hears of it when it is free.
            self._source.close()

    def __repr__(self) -> str:
        return f"{self._client.package.removesuffix('>')}: async iterator>"

    async def _fetch(self) -> bool:
        make = self._make
        if make is not None:
            # Whatever comes of it, it is made once.
            self._make = None
            watch = self._client.new_watch()
            opened = await in_thread(lambda: make(watch), watch.press)
            self._source = opened
        source = self._source
        if source is None:
            return False
        watch = self._client.new_watch()
        return source.has_items or await in_thread(lambda: source.fetch(watch), watch.press)


def iterator_class(client: VaultClient, label: Label) -> Callable[[int], EncryptedIterator]:
    """Return what makes an iterator of its handle, shown as one of this package's."""
    advance = with_package_frame(EncryptedIterator.__next__, label, "__next__", "iterator")
    namespace = {"__slots__": (), "__next__": advance, "__module__": label.package.module}
    cls = type("iterator", (EncryptedIterator,), namespace)
    return lambda handle: cls(client, handle)


def async_iterator_class(
    client: VaultClient, label: Label
) -> Callable[[_Open], EncryptedAsyncIterator]:
    """Return what makes an async iterator of the call that opens it, as `iterator_class`."""
    name = "async_iterator"
    advance = with_package_frame(EncryptedAsyncIterator.__anext__, label, "__anext__", name)
    namespace = {"__slots__": (), "__anext__": advance, "__module__": label.package.module}
    cls = type(name, (EncryptedAsyncIterator,), namespace)
    return lambda make: cls(client, make)
