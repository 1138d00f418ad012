"""The hash of an encrypted body that a publisher signs: a tree of two levels, for speed.

SHA-256 of a domain and of the SHA-256 of every MiB of the body. Segments are hashed beside each
other and beside decryption, on the cores there are; the result does not depend on that.

Source: docs/spec/encrypted_package.md, "Signature".
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from enclave_protocol.chunked_encryption import BytesLike

__all__ = ["SEGMENT_BYTES", "BodyDigest"]

SEGMENT_BYTES: Final = 1024 * 1024
"""Long: after each one a thread needs the interpreter, which another that decrypts keeps busy."""
_DOMAIN: Final = b"enclave-kernel package body v1\x00"
_MAX_THREADS: Final = 4


class BodyDigest:
    """Hashes a body piece by piece. Close it, or use it in a `with` block: it has threads."""

    def __init__(self) -> None:
        self._root = hashlib.sha256(_DOMAIN)
        self._segment = hashlib.sha256()
        self._filled = 0
        # One core is for the thread that decrypts, and a second one that hashes in its way.
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) - 1))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="body-digest")
        self._thread_count = threads
        self._busy: list[Future[None]] = []
        self._complete: list[Any] = []

    def begin(self, data: BytesLike) -> None:
        """Begin to hash the next bytes; they must stay as they are until `join` returned."""
        self.join()  # one piece of a segment at a time
        view = memoryview(data).cast("B")
        pieces: list[tuple[Any, memoryview]] = []
        while view:
            piece = view[: SEGMENT_BYTES - self._filled]
            view = view[len(piece) :]
            self._filled += len(piece)
            pieces.append((self._segment, piece))
            if self._filled == SEGMENT_BYTES:
                self._complete.append(self._segment)
                self._segment, self._filled = hashlib.sha256(), 0
        for first in range(min(self._thread_count, len(pieces))):
            share = pieces[first :: self._thread_count]
            self._busy.append(self._threads.submit(_hash, share))

    def join(self) -> None:
        """Wait until all that was begun is hashed."""
        busy, self._busy = self._busy, []
        for done in busy:
            done.result()
        complete, self._complete = self._complete, []
        for segment in complete:
            self._root.update(segment.digest())

    def update(self, data: BytesLike) -> None:
        """Hash the next bytes."""
        self.begin(data)
        self.join()

    def finish(self) -> bytes:
        """Return the digest, 32 bytes, of all bytes so far; nothing can be added afterwards."""
        self.join()
        self.close()
        if self._filled:
            self._root.update(self._segment.digest())
        return self._root.digest()

    def close(self) -> None:
        """End the threads; harmless when they have ended."""
        self._threads.shutdown(wait=True)


def _hash(pieces: Sequence[tuple[Any, memoryview]]) -> None:
    for segment, piece in pieces:
        segment.update(piece)
