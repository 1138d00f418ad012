"""`enclave-owner key-policy`: which enclaves a KMS key is released to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from enclave_encryption.errors import KeyPolicyError, WideningError
from enclave_encryption.key_policy.findings import Finding, find_widening
from enclave_encryption.key_policy.key_admin import KeyAdmin
from enclave_encryption.key_policy.measurements import CONDITION_PCRS, parse_context, parse_pcr
from enclave_encryption.key_policy.policy_change import (
    PolicyChange,
    plan_change,
    release_principals,
)
from enclave_encryption.key_policy.policy_view import print_check, print_diff, print_findings
from enclave_encryption.key_policy.release_check import (
    CheckedRelease,
    check_release,
    explained,
    opening,
)
from enclave_encryption.key_policy.release_rule import RuleChange
from enclave_protocol.plain_text import plain_text
from enclave_protocol.policy.policy_document import MAX_POLICY_BYTES, Decision, parse_policy
from enclave_protocol.policy.statement import Statement

__all__ = ["key_policy_command"]

_UNSOUND = 3
"""Exit code: released to this enclave, and to others than enclaves as well."""


@dataclass(frozen=True)
class _Target:
    """Whose policy it is.

    Attributes:
        admin: None with --policy FILE: KMS is not asked.
        key_arn: ARN of the key.
        policy: JSON.
    """

    admin: KeyAdmin | None
    key_arn: str
    policy: str


def _pcr_option(index: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option(
        f"--pcr{index}",
        f"pcr{index}",
        metavar="HEX",
        multiple=True,
        help=f"Demand this PCR{index}, too; may be repeated. `none` removes the condition.",
    )


@click.command("key-policy")
@click.option("-k", "--key", "key_id", metavar="KEY_ID", required=True, help="Id, alias or ARN.")
@click.option("--pcr0", metavar="HEX", multiple=True, help="Release to this image; repeatable.")
@click.option("--add-pcr0", metavar="HEX", multiple=True, help="... to this one, too.")
@click.option("--remove-pcr0", metavar="HEX", multiple=True, help="Not to this one any more.")
@_pcr_option(1)
@_pcr_option(2)
@_pcr_option(3)
@_pcr_option(8)
@click.option(
    "--context",
    metavar="KEY=VALUE",
    multiple=True,
    help="Demand this encryption context (package, version, label-sha256); `KEY=` removes it.",
)
@click.option(
    "--revoke-package",
    "revoke",
    metavar="NAME[:VERSION]",
    multiple=True,
    help="Release this package, or one version of it, to nobody.",
)
@click.option(
    "--restore-package",
    "restore",
    metavar="NAME[:VERSION]",
    multiple=True,
    help="... and again to whom the rules allow it.",
)
@click.option(
    "--principal",
    metavar="ARN",
    multiple=True,
    help="Role of the parent instance; needed once, then remembered in the policy.",
)
@click.option("--rule", metavar="NAME", default="", help="For a key with several release rules.")
@click.option("--narrow", is_flag=True, help="Take out of the policy what gets around attestation.")
@click.option("--allow-widening", is_flag=True, help="Apply although somebody gets around it.")
@click.option("--apply", is_flag=True, help="Put the policy; without it, only show the change.")
@click.option("--check", is_flag=True, help="Simulate a release under the policy there is.")
@click.option(
    "--policy",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
    help="Take the policy from FILE (- is stdin), and do not ask KMS; KEY_ID is then a full ARN.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("--region", metavar="R", help="AWS region; default: the ARN's or your profile's.")
@click.option("--endpoint-url", metavar="URL", help="Another KMS endpoint than AWS's.")
def key_policy_command(
    *,
    key_id: str,
    region: str | None,
    endpoint_url: str | None,
    file: Path | None,
    check: bool,
    apply: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Say which enclave images a KMS key is released to.

    Shows what would change in the key policy, and changes nothing without --apply. Everything
    else in the policy stays. Beside the release there is a Deny for everybody else, which also
    stops IAM policies and grants.

    A policy under which somebody could have the data key without attestation is refused; each
    way around is named. --narrow takes them out.

    With --check: would KMS release to an enclave with these PCRs, and by which statement? And
    the same request without attestation, and from an enclave in debug mode?

    \b
    Exit codes: 0 done, or released to this enclave only; 1 refused or denied; 2 wrong usage;
    3 (--check) released to this enclave, and without attestation, too, or perhaps: by a
    statement that depends on an address, a time or the like.

    \b
    Example:
      enclave-owner key-policy -k alias/packages --pcr0 9ab4... --principal ROLE_ARN --apply
      enclave-owner key-policy -k alias/packages --add-pcr0 77c0... --apply
      enclave-owner key-policy -k alias/packages --remove-pcr0 9ab4... --apply
      enclave-owner key-policy -k alias/packages --revoke-package scorer:1.1.0 --apply
      enclave-owner key-policy -k alias/packages --pcr0 77c0... --check
    """
    changing = ("narrow", "add_pcr0", "remove_pcr0", "revoke", "restore")
    if check and (apply or any(options[name] for name in changing)):
        raise click.UsageError("--check only simulates: give it --pcr0, --pcrN, --context")
    if file is not None and apply:
        raise click.UsageError("--policy FILE is for looking: --apply writes to KMS")
    target = _target(key_id, region, endpoint_url, file)
    change = _change(options)
    if check:
        return _check(target, change, as_json=as_json)
    return _change_policy(target, change, options, apply=apply, as_json=as_json)


def _target(
    key_id: str, region: str | None, endpoint_url: str | None, file: Path | None
) -> _Target:
    if file is None:
        admin = KeyAdmin(key_id, region=region, endpoint_url=endpoint_url)
        return _Target(admin, admin.arn, admin.policy())
    if not key_id.startswith("arn:") or ":key/" not in key_id or len(key_id.split(":")) != 6:
        raise KeyPolicyError(f"{key_id!r}: with --policy FILE, give -k the key's full ARN")
    with click.open_file(str(file), encoding="utf-8") as stream:
        try:
            return _Target(None, key_id, stream.read(MAX_POLICY_BYTES + 1))
        except UnicodeDecodeError:
            raise KeyPolicyError(f"{file}: is no UTF-8 text") from None


def _change(options: Mapping[str, Any]) -> RuleChange:
    def images(name: str) -> tuple[str, ...]:
        return tuple(parse_pcr(text, 0) for text in options[name])

    pcrs: dict[int, tuple[str, ...]] = {}
    for index in CONDITION_PCRS:
        given = options[f"pcr{index}"]
        if given:
            pcrs[index] = () if given == ("none",) else tuple(parse_pcr(t, index) for t in given)
    return RuleChange(
        rule=options["rule"],
        pcr0=images("pcr0") or None,
        add_pcr0=images("add_pcr0"),
        remove_pcr0=images("remove_pcr0"),
        pcrs=pcrs,
        context=parse_context(options["context"]),
        principals=tuple(options["principal"]),
        revoke=tuple(options["revoke"]),
        restore=tuple(options["restore"]),
    )


def _change_policy(
    target: _Target, rule: RuleChange, options: Mapping[str, Any], *, apply: bool, as_json: bool
) -> int:
    """Show the change, and with --apply make it; or judge the policy when nothing is to change."""
    if not (rule.asks or options["narrow"]):
        return _judge(target, as_json=as_json)
    change = plan_change(target.policy, target.key_arn, rule, narrow=options["narrow"])
    # Whoever only takes away is never refused: the policy was as wide before.
    refused = bool(change.findings) and rule.widens and not options["allow_widening"]
    put = apply and change.changes and not refused
    if put and target.admin is not None:
        target.admin.replace_policy(change.before, change.after)
    if as_json:
        click.echo(_change_json(target, change, applied=put))
    else:
        console = Console(highlight=False)
        print_diff(console, change)
        print_findings(console, change.findings)
        if put:
            console.print(f"Applied to {target.key_arn}.", soft_wrap=True)
        elif change.changes and not apply:
            console.print("Nothing was changed; --apply puts this policy.", style="dim")
    if refused:
        raise WideningError(
            "refused, for each of these lets somebody have the data key without attestation; "
            "--narrow takes them out of the policy, --allow-widening keeps them",
            [plain_text(str(f), limit=None) for f in change.findings] if as_json else [],
        )
    return 0


def _judge(target: _Target, *, as_json: bool) -> int:
    """Show the ways around attestation in the policy there is; returns the exit code."""
    policy = parse_policy(target.policy)
    findings = find_widening(policy, target.key_arn, release_principals(policy))
    if as_json:
        click.echo(_json({"key": target.key_arn, "findings": _findings(findings)}))
    else:
        print_findings(Console(highlight=False), findings)
    return 1 if findings else 0


def _check(target: _Target, rule: RuleChange, *, as_json: bool) -> int:
    """Simulate releases; returns the exit code."""
    policy = parse_policy(target.policy)
    pcrs = {index: values for index, values in {0: rule.pcr0 or (), **rule.pcrs}.items() if values}
    if not pcrs:
        raise click.UsageError("--check needs the enclave's PCRs: --pcr0 HEX")
    for name, values in (*((f"--pcr{i}", v) for i, v in pcrs.items()), *rule.context.items()):
        if len(values) != 1:
            raise click.UsageError(f"--check is about one enclave: give {name} once")
    principals = rule.principals or release_principals(policy)
    if not principals:
        raise click.UsageError(
            "the policy releases to nobody in an enclave: say with --principal ARN who asks"
        )
    context = {key: values[0] for key, values in rule.context.items()}
    checks = [
        check_release(
            policy, target.key_arn, name, {i: values[0] for i, values in pcrs.items()}, context
        )
        for name in principals
    ]
    if as_json:
        click.echo(_json({"key": target.key_arn, "checks": [_check_json(c) for c in checks]}))
    else:
        console = Console(highlight=False)
        for checked in checks:
            print_check(console, checked)
    if not all(checked.attested.allowed for checked in checks):
        return 1
    return 0 if all(checked.sound for checked in checks) else _UNSOUND


def _check_json(checked: CheckedRelease) -> dict[str, Any]:
    def shown(decision: Decision, openings: tuple[Statement, ...] = ()) -> dict[str, Any]:
        return {
            "allowed": decision.allowed,
            "outcome": decision.outcome.value,
            "statement": decision.statement.name.strip('"') if decision.statement else None,
            "needs_iam": decision.allowed and (decision.delegated or bool(checked.other_account)),
            "unjudged": [statement.name.strip('"') for statement in decision.unjudged],
            "may_be_allowed": [statement.name.strip('"') for statement in openings],
            "text": opening(openings) if openings else explained(decision, checked),
        }

    return {
        "principal": checked.principal,
        "attested": shown(checked.attested),
        "unattested": shown(checked.unattested, checked.open_unattested),
        "debug": shown(checked.debug, checked.open_debug),
    }


def _change_json(target: _Target, change: PolicyChange, *, applied: bool) -> str:
    return _json(
        {
            "key": target.key_arn,
            "changes": change.changes,
            "applied": applied,
            "policy": json.loads(change.after),
            "findings": _findings(change.findings),
        }
    )


def _findings(findings: tuple[Finding, ...]) -> list[dict[str, str]]:
    return [
        {"statement": f.statement.strip('"'), "action": f.action, "text": f.text} for f in findings
    ]


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
