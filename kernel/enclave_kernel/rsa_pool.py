"""RSA-2048 pairs made ahead of time: KMS wants a fresh one for every key release (THREATS A-07).

Making one takes 44 ms on average (two cores), which a user who loads a package would wait for.
"""

import queue
import threading
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_protocol.errors import EnclaveError

__all__ = ["RsaPool", "RsaPoolClosedError"]

_KEY_BITS = 2048  # what KMS accepts in an attestation document
_PUBLIC_EXPONENT = 65537


class RsaPoolClosedError(EnclaveError):
    """A key was asked of a pool that is closed."""

    def __init__(self) -> None:
        super().__init__("the pool of RSA keys is closed: the enclave is shutting down")


class RsaPool:
    """Keeps up to `size` unused pairs; every pair is handed out once.

    Args:
        size: Pairs kept ready, at least 1.
    """

    def __init__(self, size: int = 2) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1")
        self._ready: queue.Queue[rsa.RSAPrivateKey] = queue.Queue()
        self._wanted = threading.Semaphore(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="rsa-pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def ready(self) -> int:
        """How many pairs can be had without waiting."""
        return self._ready.qsize()

    def get(self) -> rsa.RSAPrivateKey:
        """Return an unused pair: at once when one is ready, otherwise after making one.

        Raises:
            RsaPoolClosedError: The pool is closed.
        """
        if self._closed.is_set():
            raise RsaPoolClosedError
        try:
            key = self._ready.get_nowait()
        except queue.Empty:
            # Our own, so that a burst of requests does not queue behind one thread.
            return _generate()
        self._wanted.release()
        return key

    def close(self) -> None:
        """Stop the thread and forget the unused pairs; waits for a pair being made (< 1 s)."""
        self._closed.set()
        self._wanted.release()
        self._thread.join()
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                return

    def _fill(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed.is_set():
                return
            self._ready.put(_generate())


def _generate() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=_PUBLIC_EXPONENT, key_size=_KEY_BITS)
