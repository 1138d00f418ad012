"""`inspect` shows a stranger's label: as text, never as markup or as orders to the terminal."""

import io
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from enclave_encryption.label_view import print_label
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.manifest import ExportedClass, Exports, Policy
from enclave_protocol.package_header import PackageHeader, decode_header, header_with_slot
from tests.support.example_package import FILES, KEY_ARN, make_label

COMMAND = [sys.executable, "-c", "from enclave_encryption.cli import main; main()"]
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOSTILE = "[/][bold]\x1b]52;c;x\x07\r\n\u202e"


def header_of(**fields: Any) -> PackageHeader:
    """A header that no owner's tool would write: what these fields say is not checked."""
    data = msgspec.json.encode(msgspec.structs.replace(make_label(FILES), **fields), order="sorted")
    return decode_header(header_with_slot(data, KeySlot(KEY_ARN, b"wrapped"), None))


def test_nothing_in_a_label_is_markup_or_drives_the_terminal() -> None:
    package = msgspec.structs.replace(
        make_label(FILES).package, description=HOSTILE, publisher=HOSTILE, module=HOSTILE
    )
    exports = Exports(
        functions={"f": f"f{HOSTILE}"},
        classes={"C": ExportedClass(f"C{HOSTILE}", (f"m{HOSTILE}()",), (HOSTILE,))},
        returns={"f": HOSTILE, f"C.m{HOSTILE}": HOSTILE},
    )
    docs = {"f": HOSTILE, "C": HOSTILE, f"C.{HOSTILE}": HOSTILE}
    output = io.StringIO()
    print_label(
        Console(file=output, width=200),
        Path(f"x{HOSTILE}"),
        header_of(package=package, exports=exports, docs=docs),
        1,
        NOW,
    )
    shown = output.getvalue()
    assert all(line.isprintable() for line in shown.splitlines())
    # The four rows, four exports with what two of them return, and three docs.
    assert shown.count("[/][bold]") == 13


@pytest.mark.parametrize("option", [[], ["--json"]])
@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"exports": Exports(functions={"f": "f("})}, "functions.f"),
        (
            {"exports": Exports(functions={"f": "f()"}, returns={"f": "[/]"}), "docs": {}},
            "returns.f is '[/]', expected one of",
        ),
        ({"docs": {"score": "\x1b[2J"}}, "[docs] score has characters that do not print"),
    ],
)
def test_a_label_that_breaks_a_rule_is_one_line(
    tmp_path: Path, option: list[str], fields: dict[str, Any], rule: str
) -> None:
    path = tmp_path / "x.encrypted"
    path.write_bytes(header_of(**fields).raw)
    done = subprocess.run(
        [*COMMAND, "inspect", str(path), *option], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"enclave-owner: {path}: the label is malformed: ")
    assert rule in line and line.isprintable()


def shown_with(policy: Policy) -> str:
    output = io.StringIO()
    console = Console(file=output, width=200)
    print_label(console, Path("x"), header_of(policy=policy), 1, NOW)
    return output.getvalue()


def test_quotas_and_expiry_are_readable() -> None:
    shown = shown_with(
        Policy(
            max_calls=10_000,
            calls_per_minute=1,
            max_result_bytes=2**20,
            expires="2027-01-31T00:00:00+00:00",
        )
    )
    assert "at most 10,000 calls each time it is loaded, 1 call a minute, 1.0 MiB a result" in shown
    assert "2027-01-31T00:00:00+00:00 (in 66 days)" in shown
    none = shown_with(Policy())
    assert "quotas" not in none and "expires" not in none


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        ("2026-11-25T11:59:59Z", "(expired less than a minute ago: no call is answered any more)"),
        ("2026-11-25T12:00:00Z", "(expired less than a minute ago"),
        ("2026-11-24T11:00:00Z", "(expired 1 day ago"),
        ("2026-11-25T15:30:00+01:00", "(in 2 hours)"),
        ("2026-11-25T12:01:30Z", "(in 1 minute)"),
    ],
)
def test_how_far_the_expiry_is(expires: str, expected: str) -> None:
    assert expected in shown_with(Policy(expires=expires))
