"""A slot that somebody holds: it is forgotten when their connection closes."""

import asyncio
from collections.abc import Callable

from enclave_protocol.messages import Done

__all__ = ["hold_slot"]


async def hold_slot(gateway_ends: asyncio.Event, forget: Callable[[], object]) -> Done:
    """Wait; when this is cancelled, for the client hung up, have the slot forgotten.

    Args:
        gateway_ends: A gateway that ends leaves kernels running, and answers.
        forget: Starts that; never waits.
    """
    try:
        await gateway_ends.wait()
    finally:
        if not gateway_ends.is_set():
            forget()
    return Done()
