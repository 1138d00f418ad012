"""What the supervisor may ask the gateway for: AWS credentials, and publishers' pinned keys."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from enclave_parent_gateway.backends.base import Backend
from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.publisher_pins import PublisherPins
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Body, CredentialsRequest, PinnedKey, PublisherKey

__all__ = ["SupervisorRequests"]


class SupervisorRequests:
    """Answers them.

    Args:
        paths: Of the enclave.
        backend: Knows where credentials come from.
    """

    def __init__(self, paths: EnclavePaths, backend: Backend) -> None:
        self._paths = paths
        self._backend = backend
        self._pins = PublisherPins(paths)
        # One thread: a chain that waits for IMDS must not keep connects waiting.
        self._credentials_thread = ThreadPoolExecutor(1, "credentials")

    async def answer(self, body: Body) -> Body:
        """Answer one request.

        Raises:
            GatewayError: It is none of these, or cannot be answered.
        """
        if isinstance(body, PublisherKey):
            return await asyncio.to_thread(self._pinned, body)
        if not isinstance(body, CredentialsRequest):
            raise GatewayError(f"the gateway does not answer {type(body).__name__}")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._credentials_thread, self._backend.credentials, self._paths
        )

    def _pinned(self, asked: PublisherKey) -> PinnedKey:
        if asked.pin:
            return PinnedKey(self._pins.pin_new(asked.publisher, asked.fingerprint))
        return PinnedKey(self._pins.fingerprint(asked.publisher))

    def close(self) -> None:
        """End the thread."""
        self._credentials_thread.shutdown(wait=False, cancel_futures=True)
