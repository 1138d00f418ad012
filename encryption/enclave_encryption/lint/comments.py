"""`# enclave: allow RULE`: what the owner has looked at and wants no warning of."""

import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from enclave_encryption.lint.finding import RULES, Finding
from enclave_protocol.manifest import did_you_mean

__all__ = ["allowed_in_python", "allowed_in_toml", "unknown_rules", "without_allowed"]

_ALLOW: Final = re.compile(r"#\s*enclave:\s*allow\s+(\w+(?:\s*,\s*\w+)*)")


def allowed_in_python(source: str) -> dict[int, frozenset[str]]:
    """Return which rules the comments of a module allow, by line; text in strings is none."""
    if "enclave:" not in source:
        return {}
    found: dict[int, frozenset[str]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                found.update(_allowed(token.start[0], token.string))
    except (tokenize.TokenError, SyntaxError):
        pass  # it was parsed before: what the tokenizer does not get through ends the comments
    return found


def allowed_in_toml(text: str) -> dict[int, frozenset[str]]:
    """Return which rules the comments of an `enclave.toml` allow, by line."""
    found: dict[int, frozenset[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found.update(_allowed(number, line))
    return found


def without_allowed(
    findings: Iterable[Finding], allowed: Mapping[str, Mapping[int, frozenset[str]]]
) -> Iterator[Finding]:
    """Yield the findings that no comment on one of their lines allows."""
    for finding in findings:
        lines = allowed.get(finding.path, {})
        if not any(
            finding.rule in lines.get(line, ())
            for line in range(finding.line, finding.last_line + 1)
        ):
            yield finding


def unknown_rules(path: str, allowed: Mapping[int, frozenset[str]]) -> Iterator[Finding]:
    """Yield a finding for each comment that allows what is no rule."""
    for line, names in allowed.items():
        for name in sorted(names - RULES.keys()):
            hint = did_you_mean(name, RULES) or f"; rules are {', '.join(sorted(RULES))}"
            yield Finding(path, line, "allow", f"there is no rule {name!r} to allow{hint}", line)


def _allowed(line: int, text: str) -> dict[int, frozenset[str]]:
    match = _ALLOW.search(text)
    return {line: frozenset(re.split(r"\s*,\s*", match[1]))} if match else {}
