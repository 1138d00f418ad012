"""PCR values and encryption contexts as an owner types them."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from enclave_encryption.errors import KeyPolicyError

__all__ = ["CONDITION_PCRS", "is_debug", "parse_context", "parse_pcr"]

CONDITION_PCRS: Final = (1, 2, 3, 8)
"""Registers a release may depend on besides PCR0."""
_HEX: Final = re.compile(r"[0-9a-f]{96}")
_MAX_CONTEXT_BYTES: Final = 8192
"""KMS's limit of an encryption context."""


def is_debug(value: str) -> bool:
    """Return whether `value` is all zeros, with or without 0x: an enclave in debug mode."""
    return not value.lower().removeprefix("0x").strip("0")


def parse_pcr(text: str, index: int) -> str:
    """Return a PCR value as policies have it: 96 lower-case hex digits.

    Raises:
        KeyPolicyError: It is not SHA-384 in hex, or all zeros.
    """
    value = text.strip().lower().removeprefix("0x")
    if not _HEX.fullmatch(value):
        raise KeyPolicyError(
            f"PCR{index} {text[:40]!r} is not 96 hex digits (SHA-384): copy it whole, from "
            "`nitro-cli describe-eif` or `enclave status --json`"
        )
    if is_debug(value):
        raise KeyPolicyError(
            f"PCR{index} is all zeros: every enclave in debug mode measures so, whatever its "
            "image, and the parent reads its console. Take the value of a run without "
            "--debug-mode"
        )
    return value


def parse_context(pairs: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the values by key of texts such as `package=scorer`.

    Args:
        pairs: A key may come several times; `key=` alone gives no values.

    Raises:
        KeyPolicyError: No `=`, no key, or longer than KMS takes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or len(pair.encode()) > _MAX_CONTEXT_BYTES:
            raise KeyPolicyError(f"--context {pair[:80]!r}: give KEY=VALUE, such as package=scorer")
        found[key] = (*found.get(key, ()), *([value] if value else []))
    return found
