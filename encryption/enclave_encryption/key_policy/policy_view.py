"""A change of a key policy, and what is wrong with it, for people."""

import difflib
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from enclave_encryption.key_policy.findings import Finding
from enclave_encryption.key_policy.policy_change import PolicyChange, shown_policy
from enclave_encryption.key_policy.release_check import CheckedRelease, explained, opening
from enclave_protocol.plain_text import plain_text

__all__ = ["print_check", "print_diff", "print_findings"]

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def print_diff(console: Console, change: PolicyChange) -> None:
    """Print what becomes of the policy, line by line."""
    before, after = (shown_policy(text).splitlines() for text in (change.before, change.after))
    lines = list(difflib.unified_diff(before, after, "key policy", "new key policy", lineterm=""))
    if not lines:
        console.print(Text("The key policy is already so.", "dim"))
    for line in lines:
        style = "bold" if line.startswith(("---", "+++")) else _STYLES.get(line[:1], "")
        console.print(Text(plain_text(line, limit=None), style), soft_wrap=True)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print every way around attestation, or that there is none."""
    if not findings:
        console.print(Text("No statement lets anybody decrypt without attestation.", "green"))
        return
    console.print(Text("Around attestation:", "bold red"))
    for finding in findings:
        console.print(
            Text.assemble(("  ✗ ", "red"), plain_text(str(finding), limit=None)), soft_wrap=True
        )


def print_check(console: Console, checked: CheckedRelease) -> None:
    """Print the three answers to one principal."""
    console.print(Text(plain_text(checked.principal), "bold"), soft_wrap=True)
    rows = (
        ("in the enclave", checked.attested, True, ()),
        ("without attestation", checked.unattested, False, checked.open_unattested),
        ("in debug mode", checked.debug, False, checked.open_debug),
    )
    for name, decision, wanted, openings in rows:
        good = decision.allowed is wanted and not openings
        mark, style = ("✓", "green") if good else ("✗", "red")
        text = opening(openings) if openings else explained(decision, checked)
        answer = plain_text(text, limit=None)
        console.print(Text.assemble((f"  {mark} ", style), f"{name:<20} {answer}"), soft_wrap=True)
