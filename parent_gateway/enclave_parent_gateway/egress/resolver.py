"""Names to addresses, off the event loop and each name once for each connection."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from enclave_parent_gateway.egress.addresses import Address
from enclave_parent_gateway.egress.errors import UnreachableError

__all__ = ["Resolve", "SystemResolver"]

Resolve = Callable[[str], Awaitable[tuple[Address, ...]]]
"""Returns the addresses of a name, at least one; raises UnreachableError."""

_THREADS: Final = 16
"""A name server that does not answer holds one for half a minute."""
_TIMEOUT_S: Final = 10.0
_MAX_ADDRESSES: Final = 16


class SystemResolver:
    """Asks as every other program of the parent instance does (getaddrinfo)."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")

    async def __call__(self, name: str) -> tuple[Address, ...]:
        """Return the addresses of a name.

        Raises:
            UnreachableError: There are none, or nobody said within 10 s.
        """
        loop = asyncio.get_running_loop()
        asking = loop.run_in_executor(self._threads, _look_up, name)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await asyncio.shield(asking)
        except TimeoutError:
            raise UnreachableError(f"the name {name} is not resolved within 10 s") from None
        except (OSError, UnicodeError):
            raise UnreachableError(f"the name {name} is not known") from None

    def close(self) -> None:
        """Let go of the threads; those that wait end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(name: str) -> tuple[Address, ...]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(ip_address(str(entry[4][0])) for entry in found)
    return tuple(addresses)[:_MAX_ADDRESSES]
