"""What the gateway does when the enclave has ended: tell every notebook, then count it as ended."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from enclave_parent_gateway.kernel_slot import KernelSlot

__all__ = ["EnclaveEnd"]

log = logging.getLogger(__name__)


class EnclaveEnd:
    """Tells the clients of every kernel.

    Args:
        text: What happened, and what to do.
        count_as_ended: Called when they were told: from then on Jupyter finds its kernels dead.
    """

    def __init__(self, text: str, count_as_ended: Callable[[], None]) -> None:
        self.text = text
        self._count_as_ended = count_as_ended

    async def tell(self, slots: Iterable[KernelSlot]) -> None:
        """Tell them; those whose cell is under way get its end before their kernel's."""
        told = []
        for slot in slots:
            try:
                slot.say_last_word(self.text)
            except OSError as error:
                log.warning("the clients of slot %s are not told: %s", slot.name, error)
            if slot.said_last_word:
                told.append(slot)
        log.error("the enclave has ended; %d notebooks are told", len(told))
        try:
            await asyncio.gather(*(slot.last_word_was_heard() for slot in told))
        finally:
            self._count_as_ended()
