"""Incident ids: numbers in errors that tell a package's owner, and nobody else, where they arose.

The key is a file of the package's own, `incidents.key`, so that it is where the code is: with the
owner, and in a vault. Half of an id is random, so that two ids tell nobody without the key whether
the same line raised both.

Source: docs/spec/vault_calls.md, "Incidents".
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = [
    "INCIDENT_KEY_NAME",
    "MAX_INCIDENT_KEY_BYTES",
    "IncidentKeyError",
    "Place",
    "is_incident",
    "make_incident",
    "parse_incident_key",
    "stands_for",
]

INCIDENT_KEY_NAME: Final = "incidents.key"
"""In the root of a package's directory."""
MAX_INCIDENT_KEY_BYTES: Final = 128
"""Of that file: 64 hex digits, and room for white space."""
_KEY: Final = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_ID: Final = re.compile(r"[0-9a-f]{16}")
_NONCE_BYTES: Final = 4
_TAG_BYTES: Final = 4
_DOMAIN: Final = b"enclave incident v1\0"


class IncidentKeyError(EnclaveError):
    """A package's `incidents.key` holds no key."""


@dataclass(frozen=True)
class Place:
    """Where code of a package raised.

    Attributes:
        path: Of the source, in the package; empty: no line of the package's was involved.
        line: From 1; 0 without a path.
    """

    path: str = ""
    line: int = 0


def parse_incident_key(data: bytes) -> bytes:
    """Return the 32 bytes in an `incidents.key`.

    Raises:
        IncidentKeyError: It holds something else; the message does not show what.
    """
    found = _KEY.fullmatch(data) if len(data) <= MAX_INCIDENT_KEY_BYTES else None
    if found is None:
        raise IncidentKeyError(
            f"{INCIDENT_KEY_NAME} holds no key: expected 64 hex digits, as `openssl rand -hex 32` "
            "writes them"
        )
    return bytes.fromhex(found[1].decode())


def is_incident(text: str) -> bool:
    """Whether `text` has the form of an incident id."""
    return _ID.fullmatch(text) is not None


def make_incident(key: bytes, place: Place) -> str:
    """Return a new id for an error that arose at `place`: 16 hex digits.

    Args:
        key: 32 bytes.
        place: Where.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return (nonce + _tag(key, nonce, place)).hex()


def stands_for(key: bytes, incident: str, place: Place) -> bool:
    """Whether `incident` was made for `place` under `key`.

    A wrong yes has a chance of 2^-32: this finds places, and proves nothing to anybody.
    """
    raw = bytes.fromhex(incident)
    return hmac.compare_digest(raw[_NONCE_BYTES:], _tag(key, raw[:_NONCE_BYTES], place))


def _tag(key: bytes, nonce: bytes, place: Place) -> bytes:
    # The line comes first: a path can hold anything but NUL.
    path = place.path.encode(errors="backslashreplace")
    message = b"%s%s%d\0%s" % (_DOMAIN, nonce, place.line, path)
    return hmac.digest(key, message, "sha256")[:_TAG_BYTES]
