"""Time that the parent cannot turn: of attestation documents, and from then on a counter's.

The timestamp of a document is the hypervisor's. The enclave's own wall clock is never read: it
starts with what it is given, and nothing keeps it right. Between documents the time since boot
counts on, which no process can set; sleep of the machine included.

Source: THREATS A-15; docs/spec/vault_process.md, "Time".
"""

import threading
import time
from datetime import UTC, datetime
from typing import Final

from enclave_kernel.key_release_errors import PackageExpiredError
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.package_errors import PackageFormatError

__all__ = ["TrustedClock"]

_COUNTER: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux counts sleep only here; elsewhere is development."""


class TrustedClock:
    """Tells the time once it was set; never goes back. Safe from many threads.

    Args:
        now_ms: Milliseconds since 1970, from another such clock just now; None: not set yet.
    """

    def __init__(self, now_ms: int | None = None) -> None:
        self._lock = threading.Lock()
        self._set_ms: int | None = None
        self._set_at_ns = 0
        if now_ms is not None:
            self._set(now_ms)

    def observe(self, document: bytes) -> None:
        """Set it by an attestation document that the NSM made just now.

        Raises:
            AttestationError: It is none.
        """
        self._set(decode_signed_document(document).document.timestamp)

    def now_ms(self) -> int:
        """Return milliseconds since 1970.

        Raises:
            PackageExpiredError: It was never set, so nothing can be known to be valid still.
        """
        with self._lock:
            now = self._now_ms()
        if now is None:
            raise PackageExpiredError("the enclave does not know the time yet; try again")
        return now

    def check(self, expires: str) -> None:
        """Check that a package has not expired.

        Args:
            expires: Of its policy: RFC 3339 with a zone; "" for never.

        Raises:
            PackageExpiredError: It has, or the time is not known.
            PackageFormatError: `expires` is no time with a zone.
        """
        if not expires:
            return
        try:
            until = datetime.fromisoformat(expires)
        except ValueError:
            until = None
        if until is None or until.tzinfo is None:
            raise PackageFormatError(
                f"its policy expires at {expires[:80]!r}, expected an RFC 3339 time with its zone"
            )
        if datetime.fromtimestamp(self.now_ms() / 1000, UTC) >= until:
            raise PackageExpiredError(
                f"the package expired at {expires}: ask its owner for a newer one"
            )

    def _set(self, now_ms: int) -> None:
        with self._lock:
            # Never back: an older document, or one that waited, makes nothing valid again.
            self._set_ms = max(now_ms, self._now_ms() or 0)
            self._set_at_ns = time.clock_gettime_ns(_COUNTER)

    def _now_ms(self) -> int | None:
        if self._set_ms is None:
            return None
        return self._set_ms + (time.clock_gettime_ns(_COUNTER) - self._set_at_ns) // 1_000_000
