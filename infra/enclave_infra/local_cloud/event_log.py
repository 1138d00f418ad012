"""What CloudTrail would have: every call to KMS, by whom, on which key, with which context.

No plaintext, no ciphertext. A file of JSON lines that starts anew when it is full.

Source: AWS KMS Developer Guide, "Logging AWS KMS API calls with AWS CloudTrail".
"""

import json
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from enclave_infra.local_cloud.identities import Identity

__all__ = ["EventLog"]

_MAX_BYTES: Final = 4 * 1024 * 1024
_PARAMETERS: Final = (
    *("keyId", "encryptionContext", "sourceKeyId", "destinationKeyId"),
    *("sourceEncryptionContext", "destinationEncryptionContext"),
)


class EventLog:
    """Appends to `cloudtrail.jsonl`.

    Args:
        state_dir: Where; exists and is this user's.
        clock: Returns the time, with time zone.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], datetime]) -> None:
        self._path = state_dir / "cloudtrail.jsonl"
        self._clock = clock
        self._lock = threading.Lock()

    def record(
        self,
        operation: str,
        values: Any,
        *,
        caller: Identity,
        region: str,
        pcr0: str | None,
        error: str | None,
    ) -> None:
        """Append one event.

        Args:
            operation: Such as "Decrypt".
            values: The request's parameters; those that CloudTrail shows are taken.
            caller: Who asked.
            region: Where.
            pcr0: Of the enclave that an attestation document came from.
            error: KMS's code of a refusal.
        """
        given = values if isinstance(values, dict) else {}
        shown = {name: given.get(name[0].upper() + name[1:]) for name in _PARAMETERS}
        event: dict[str, Any] = {
            "eventTime": self._clock().isoformat(timespec="seconds"),
            "eventSource": "kms.amazonaws.com",
            "eventName": operation[:60],
            "awsRegion": region,
            "userIdentity": {"arn": caller.session_arn},
            "requestParameters": {name: value for name, value in shown.items() if value},
        }
        if pcr0 is not None:
            recipient = {"attestationDocumentEnclaveImageDigest": pcr0}
            event["additionalEventData"] = {"recipient": recipient}
        if error is not None:
            event["errorCode"] = error
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                if os.fstat(descriptor).st_size > _MAX_BYTES:
                    os.truncate(descriptor, 0)
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
