"""Notices that an enclave has ended, also where its streams stay open and silent.

Nothing of a virtual machine's end has to reach the sockets of those who talked to it. So the
gateway asks again and again; what it does about the end is `gateway`'s business.
Source: docs/spec/control.md, "Liveness".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from enclave_parent_gateway.errors import EnclaveGoneError, RefusedError, TransportError
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.transport import connect

__all__ = ["Liveness"]

log = logging.getLogger(__name__)

_EVERY_S = 0.3
_SILENCE_S = 0.5
_PROBE_S = 0.5
"""Together well below the 2 s in which notebooks are to be told."""
_WEDGED_S = 10.0
"""An enclave whose process lives, and that neither answers nor accepts for so long, has hung. Not
sooner: a queue of connections that is full for a moment looks the same."""


class Liveness:
    """Watches one enclave.

    Args:
        endpoint: The supervisor's, as in `transport.connect`.
        process: Returns the process whose end is the enclave's, if there is one on this machine.
        ping: Asks the supervisor; raises `EnclaveGoneError` if no answer comes in so many seconds.
        heard_at: Returns when it was last heard, on the loop's clock.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        process: Callable[[], ProcessIdentity | None],
        ping: Callable[[float], Awaitable[object]],
        heard_at: Callable[[], float],
    ) -> None:
        self._endpoint = endpoint
        self._process = process
        self._ping = ping
        self._heard_at = heard_at
        # Of its own: connections to what is gone must not keep this one waiting.
        self._thread = ThreadPoolExecutor(1, "liveness")

    async def ended(self) -> None:
        """Return when the enclave has ended, and not because it is slow."""
        loop = asyncio.get_running_loop()
        process = self._process()
        silent_since: float | None = None
        while True:
            await asyncio.sleep(_EVERY_S)
            if process is not None and not process.is_running():
                return
            asked_at = loop.time()
            if await self._answers() or self._heard_at() > asked_at:
                silent_since = None
                continue
            # Its kernel accepts, however busy the supervisor is.
            accepts = await loop.run_in_executor(self._thread, self._accepts)
            if not accepts and process is None:
                return
            if silent_since is None:
                silent_since = asked_at
                log.warning("the enclave is there and does not answer; is it overloaded?")
            if accepts:
                silent_since = loop.time()
            elif loop.time() - silent_since > _WEDGED_S:
                return

    async def _answers(self) -> bool:
        try:
            await self._ping(_SILENCE_S)
        except EnclaveGoneError:
            return False
        except RefusedError:
            pass
        return True

    def _accepts(self) -> bool:
        try:
            connect(self._endpoint, timeout_s=_PROBE_S).close()
        except TransportError as error:
            # A Unix socket's queue is full: who listens there is busy, and not gone.
            return isinstance(error.__cause__, BlockingIOError)
        return True

    def process_ended(self) -> bool:
        """Return whether the enclave's process is known, and gone."""
        process = self._process()
        return process is not None and not process.is_running()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
