"""The publishers' keys that this user trusts: pinned at first use, changed by the user only.

One JSON file in the durable directory, mode 0600, replaced whole. It is the user's own protection:
the enclave compares, and only asks what is in here.

Source: docs/decisions/publisher_signature.md.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.runtime_dir import EnclavePaths, FileLock
from enclave_parent_gateway.whole_file import replace_file
from enclave_protocol.package_signature import MAX_PUBLISHER_CHARS, is_publisher, publisher_key

__all__ = ["Pin", "PublisherPins", "PublisherPinsError"]

_NAME: Final = "publishers.json"
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_PINS: Final = 2000
"""Far more than people load from; a notebook that makes them up must not fill the disk."""
_LOCK_WAIT_S: Final = 5.0
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z")

_T = TypeVar("_T")


class PublisherPinsError(GatewayError):
    """The file of pinned keys cannot be used, or what was to be pinned is no key."""


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One publisher's key.

    Attributes:
        publisher: As it was written when it was pinned.
        fingerprint: 64 lower-case hex digits.
        since: When, RFC 3339.
        how: `first use`, or `trust`: the user typed it.
    """

    publisher: str
    fingerprint: str
    since: str
    how: str


class PublisherPins:
    """The pins of one user. Every operation reads the file; none is kept in memory.

    Args:
        paths: Where the file is: `publishers.json` in the durable directory.
    """

    def __init__(self, paths: EnclavePaths) -> None:
        self._paths = paths

    def all(self) -> list[Pin]:
        """Return every pin, by publisher.

        Raises:
            PublisherPinsError: The file is not one of this version.
        """
        pins = self._read(self._paths.durable / _NAME)
        return sorted(pins.values(), key=lambda pin: publisher_key(pin.publisher))

    def fingerprint(self, publisher: str) -> str:
        """Return the key that is pinned for a publisher; "" if none is.

        Raises:
            PublisherPinsError: The file is not one of this version.
        """
        pin = self._read(self._paths.durable / _NAME).get(publisher_key(publisher))
        return "" if pin is None else pin.fingerprint

    def pin_new(self, publisher: str, fingerprint: str) -> str:
        """Pin a key for a publisher that has none; return the one that is pinned now.

        Raises:
            PublisherPinsError: It cannot be kept.
        """

        def change(pins: dict[str, Pin]) -> str:
            key = publisher_key(publisher)
            if key not in pins:
                pins[key] = _pin(publisher, fingerprint, "first use")
            return pins[key].fingerprint

        return self._change(change)

    def trust(self, publisher: str, fingerprint: str) -> str:
        """Pin a key, in the place of another if there is one; return the former one, or "".

        Raises:
            PublisherPinsError: No fingerprint or publisher, or it cannot be kept.
        """

        def change(pins: dict[str, Pin]) -> str:
            former = pins.get(publisher_key(publisher))
            pins[publisher_key(publisher)] = _pin(publisher, fingerprint, "trust")
            return "" if former is None else former.fingerprint

        return self._change(change)

    def remove(self, publisher: str) -> bool:
        """Forget a publisher's key; return whether there was one.

        Raises:
            PublisherPinsError: The file cannot be changed.
        """
        return self._change(lambda pins: pins.pop(publisher_key(publisher), None) is not None)

    def _change(self, change: Callable[[dict[str, Pin]], _T]) -> _T:
        folder = self._paths.make_durable()
        path = folder / _NAME
        with _locked(folder / f"{_NAME}.lock"):
            before = self._read(path)
            pins = dict(before)
            result = change(pins)
            if pins != before:
                if len(pins) > _MAX_PINS:
                    raise PublisherPinsError(
                        f"{_MAX_PINS} publishers are pinned, the most there may be; remove some "
                        "with: enclave trust --remove PUBLISHER"
                    )
                _write(path, pins)
        return result

    def _read(self, path: Path) -> dict[str, Pin]:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PublisherPinsError(f"{path} cannot be read: {error.strerror}") from error
        try:
            pins = msgspec.json.decode(data, type=list[Pin])
        except (msgspec.MsgspecError, ValueError) as error:
            # Not an empty list: every key would be new again, and accepted.
            raise PublisherPinsError(
                f"{path} holds no pinned keys of this version ({error}); repair it, or remove it "
                "and compare every publisher's fingerprint again"
            ) from error
        return {publisher_key(pin.publisher): pin for pin in pins}


def _pin(publisher: str, fingerprint: str, how: str) -> Pin:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise PublisherPinsError(
            f"{fingerprint[:80]!r} is no fingerprint: expected the 64 hex digits that the "
            "publisher got from `enclave-owner keygen`"
        )
    if not is_publisher(publisher):
        raise PublisherPinsError(
            f"a publisher's name has 1 to {MAX_PUBLISHER_CHARS} printable characters, none of them "
            "invisible"
        )
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Pin(publisher, fingerprint, since, how)


def _write(path: Path, pins: dict[str, Pin]) -> None:
    ordered = [pins[key] for key in sorted(pins)]
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(ordered)))
    except OSError as error:
        raise PublisherPinsError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude the gateway from the command line and the other way round."""
    lock = FileLock(path)
    deadline = time.monotonic() + _LOCK_WAIT_S

    def waiting() -> None:
        if time.monotonic() > deadline:
            raise PublisherPinsError(f"{path} is held by another process; try again")

    lock.acquire(waiting)
    try:
        yield
    finally:
        lock.release()
