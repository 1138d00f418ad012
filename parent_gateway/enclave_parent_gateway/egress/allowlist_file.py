"""The allowlist on the parent's disk: what a person allowed holds over restarts.

JSON, replaced as a whole. Without a file the default holds: KMS, nothing else. A file that cannot
be read is an error, and never the default: it may have been meant to be stricter.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from enclave_parent_gateway.egress.allowlist import (
    DEFAULT_RULES,
    Allowlist,
    Rule,
    parse_rule,
    with_private,
)
from enclave_parent_gateway.egress.errors import AllowlistError
from enclave_parent_gateway.runtime_dir import FileLock
from enclave_parent_gateway.whole_file import replace_file

__all__ = ["FILE_NAME", "AllowlistFile"]

FILE_NAME: Final = "egress.json"
_MAX_BYTES: Final = 1024 * 1024


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]


class AllowlistFile:
    """One enclave's.

    Args:
        folder: The enclave's durable folder; need not exist before something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def read(self) -> Allowlist:
        """Return what holds.

        Raises:
            AllowlistError: The file is not an allowlist, or cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return Allowlist(DEFAULT_RULES)
        except OSError as error:
            raise AllowlistError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            rules = msgspec.json.decode(data[:_MAX_BYTES], type=_Stored).rules
        except (msgspec.MsgspecError, ValueError) as error:
            raise AllowlistError(
                f"{self.path} is no allowlist ({error}); remove it to allow KMS and nothing else"
            ) from error
        _check(rules)
        return Allowlist(rules)

    def change(self, allow: Iterable[Rule], deny: Iterable[str]) -> Allowlist:
        """Add and remove rules, and return what holds then. Blocks while another one changes it.

        Raises:
            AllowlistError: The file is not an allowlist, cannot be written, or becomes too long.
        """
        added = tuple(allow)
        _check(added)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire(lambda: None)
            try:
                changed = self.read().with_changes(added, deny)
                self._write(changed)
            finally:
                lock.release()
        except OSError as error:
            raise AllowlistError(f"{self.path} cannot be written: {error.strerror}") from error
        return changed

    def _write(self, allowlist: Allowlist) -> None:
        stored = msgspec.json.encode(_Stored(allowlist.rules))
        replace_file(self.path, msgspec.json.format(stored))


def _check(rules: Iterable[Rule]) -> None:
    for rule in rules:
        for text in (rule.text, *rule.hosts):
            if parse_rule(text).text != text:
                raise AllowlistError(f"{text!r} is no rule in its usual form")
        if with_private(rule, rule.private) != rule:
            raise AllowlistError(f"{', '.join(rule.private)} are no networks in their usual form")
