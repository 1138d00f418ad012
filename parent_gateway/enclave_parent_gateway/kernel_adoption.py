"""Finds the kernels again that an earlier gateway launched: those in its files, those that run.

From the gateway's start their clients' connections wait at the sockets; they are carried once the
enclave says that the kernel runs.
"""

import logging
from collections.abc import Callable, Collection

from enclave_parent_gateway.kernel_slot import KernelSlot, RunningKernel
from enclave_parent_gateway.kernel_voices import KernelVoices

__all__ = ["KernelAdoption"]

log = logging.getLogger(__name__)


class KernelAdoption:
    """Puts kernels back into their slots.

    Args:
        voices: What earlier gateways kept.
        slot: Returns the slot of that name, made if it is new.
        discard: Closes a slot and forgets it.
        kernels: All kernels the gateway knows, by id; added to.
    """

    def __init__(
        self,
        voices: KernelVoices,
        slot: Callable[[str], KernelSlot],
        discard: Callable[[KernelSlot], None],
        kernels: dict[str, RunningKernel],
    ) -> None:
        self._voices = voices
        self._slot = slot
        self._discard = discard
        self._kernels = kernels
        self._waiting: dict[str, KernelSlot] = {}

    def load(self) -> None:
        """Listen for the kernels that earlier gateways launched, before anything is known."""
        for kept in self._voices.load():
            slot = self._slot(kept.slot)
            self._put(slot, RunningKernel(kept.kernel_id, kept.voice))

    def match(self, alive: Collection[str]) -> None:
        """Carry what waits to the kernels that run, and forget those that do not.

        Args:
            alive: Ids of the kernels that run in the enclave.
        """
        waiting, self._waiting = self._waiting, {}
        for kernel_id in sorted(alive - self._kernels.keys()):
            name = kernel_id.rpartition("-")[0]
            if name and (slot := self._slot(name)).kernel is None:
                self._put(slot, RunningKernel(kernel_id))
        waiting |= self._waiting
        self._waiting = {}
        for kernel_id, slot in waiting.items():
            if slot.kernel is None or slot.kernel.kernel_id != kernel_id:
                continue  # it has another kernel by now
            if kernel_id in alive:
                slot.accept()
                log.info("found kernel %s again", kernel_id)
            elif slot.kernel.state.returncode is None:
                self._discard(slot)

    def _put(self, slot: KernelSlot, kernel: RunningKernel) -> None:
        kernel.launched = True
        slot.kernel = self._kernels[kernel.kernel_id] = kernel
        try:
            slot.listen()
        except OSError as error:
            log.warning("cannot listen for kernel %s: %s", kernel.kernel_id, error)
            return
        self._waiting[kernel.kernel_id] = slot
