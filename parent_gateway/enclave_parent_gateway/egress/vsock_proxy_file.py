"""Reads the allowlist file of AWS's vsock-proxy, so that one made for it can be used here.

    allowlist:
    - {address: kms.eu-west-1.amazonaws.com, port: 443}

YAML, of which that tool's own files use this much: one list of maps with two scalars, in flow or
block style, comments, quotes. Nothing else is accepted, so that no YAML library with its tags and
anchors reads a file that decides about the network.

Source: aws-nitro-enclaves-cli, vsock_proxy/README.md and configs/vsock-proxy.yaml.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enclave_parent_gateway.egress.allowlist import Rule, parse_rule
from enclave_parent_gateway.egress.errors import AllowlistError

__all__ = ["parse_vsock_proxy_file", "read_vsock_proxy_file"]

_MAX_BYTES: Final = 256 * 1024
_SCALAR = r"""(?:"([^"'\s\\]*)"|'([^"'\s\\]*)'|([^"'\s{}\[\],#&*!|>%@`]+))"""
_PAIR = re.compile(rf"(address|port)\s*:\s+{_SCALAR}\Z")
_COMMENT = re.compile(r"(?:^|\s)#.*")


def read_vsock_proxy_file(path: Path) -> tuple[Rule, ...]:
    """Return the rules in the file.

    Raises:
        AllowlistError: It cannot be read, or is not in that format; names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AllowlistError(f"{path} cannot be read: {error}") from error
    if len(data) > _MAX_BYTES:
        raise AllowlistError(f"{path} is over {_MAX_BYTES} bytes, too long for an allowlist")
    try:
        return parse_vsock_proxy_file(text)
    except AllowlistError as error:
        raise AllowlistError(f"{path}: {error}") from None


def parse_vsock_proxy_file(text: str) -> tuple[Rule, ...]:
    """Return the rules in the text of such a file.

    Raises:
        AllowlistError: It is not in that format; names the line.
    """
    lines = list(_lines(text))
    if not lines or lines[0][1] != "allowlist:":
        raise AllowlistError("the file does not begin with 'allowlist:'")
    entries: list[tuple[int, list[str]]] = []
    for number, line in lines[1:]:
        stripped = line.lstrip(" ")
        if stripped.startswith("- "):
            entries.append((number, []))
            stripped = stripped[2:].strip()
        elif not entries or stripped == line:
            raise AllowlistError(f"line {number} is no entry of the list")
        if stripped.startswith("{") and stripped.endswith("}"):
            entries[-1][1].extend(part.strip() for part in stripped[1:-1].split(","))
        else:
            entries[-1][1].append(stripped)
    return tuple(_rule(number, pairs) for number, pairs in entries)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield what says something, with its line number."""
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            raise AllowlistError(f"line {number} has a tab, which YAML does not indent with")
        said = _COMMENT.sub("", line).rstrip()
        if said and not (number == 1 and said == "---"):
            yield number, said


def _rule(number: int, pairs: list[str]) -> Rule:
    values: dict[str, str] = {}
    for pair in pairs:
        match = _PAIR.match(pair)
        if match is None or match[1] in values:
            raise AllowlistError(f"line {number} is not {{address: HOST, port: PORT}}")
        values[match[1]] = next(value for value in match.groups()[1:] if value is not None)
    if len(values) != 2:
        raise AllowlistError(f"line {number} is not {{address: HOST, port: PORT}}")
    address = values["address"]
    host = f"[{address}]" if ":" in address else address
    try:
        return parse_rule(f"{host}:{values['port']}")
    except AllowlistError as error:
        raise AllowlistError(f"line {number}: {error}") from None
