"""The commands `enclave proxy ...`: which hosts notebooks may reach, and what they reached."""

import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import click
import msgspec

from enclave_parent_gateway.api import ChangeEgress, EgressRules
from enclave_parent_gateway.cli_text import examples
from enclave_parent_gateway.egress.allowlist import (
    NAMED_SETS,
    PACKAGE_INDEX,
    Rule,
    parse_rule,
    with_private,
)
from enclave_parent_gateway.egress.allowlist_file import AllowlistFile
from enclave_parent_gateway.egress.connection_log import LogEntry, log_size, read_log
from enclave_parent_gateway.egress.package_index import package_index_rule
from enclave_parent_gateway.egress.vsock_proxy_file import read_vsock_proxy_file
from enclave_parent_gateway.errors import EnclaveNotRunningError
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.runtime_dir import EnclavePaths

__all__ = ["proxy"]

_FOLLOW_POLL_S = 0.2
_MEANING = {
    "kms": "AWS KMS, in {}",
    "s3": "AWS S3 and every bucket in it, in {}",
    PACKAGE_INDEX: "what pip installs from: {}",
}


@click.group(
    epilog=examples(
        "enclave proxy allow pypi           # %pip install works in notebooks",
        "enclave proxy allow s3 --region eu-west-1",
        "enclave proxy list",
    )
)
def proxy() -> None:
    """Say which hosts notebooks may reach. Nothing but KMS is allowed at first.

    Packages cannot reach any of them, whatever is allowed here.
    """


def _rules(targets: Iterable[str], region: str | None) -> list[Rule]:
    """Return the rules that were typed, the index's hosts not looked up."""
    rules = []
    for target in targets:
        named = target in NAMED_SETS and target != PACKAGE_INDEX
        rules.append(parse_rule(f"{target}/{region}" if region and named else target))
    return rules


def _change(allow: Iterable[Rule] = (), deny: Iterable[str] = ()) -> EgressRules:
    """Have the gateway change its allowlist; without one change the file that it will read."""
    paths = EnclavePaths.from_environment()
    request = ChangeEgress(tuple(allow), tuple(deny))
    try:
        return ask_blocking(paths.gateway_socket, request, EgressRules)
    except EnclaveNotRunningError:
        file = AllowlistFile(paths.durable)
        if request.allow or request.deny:
            paths.make_durable()
            return EgressRules(file.change(request.allow, request.deny).rules, 0)
        return EgressRules(file.read().rules, 0)


def _print_json(rules: EgressRules) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(rules))))


@proxy.command(
    epilog=examples(
        "enclave proxy allow pypi",
        "enclave proxy allow s3 --region eu-west-1",
        "enclave proxy allow api.example.org:443",
        "enclave proxy allow --file /etc/nitro_enclaves/vsock-proxy.yaml",
        "enclave proxy allow kms --region eu-west-1 --private 10.0.0.0/16   # a VPC endpoint",
    )
)
@click.argument("targets", nargs=-1, metavar="[kms|s3|pypi|HOST:PORT]...")
@click.option("--region", metavar="REGION", help="For kms and s3: this AWS region only.")
@click.option(
    "--private",
    multiple=True,
    metavar="NETWORK",
    help="Their addresses may be in this private network; else only public ones are reached.",
)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An allowlist of AWS's vsock-proxy: all of its hosts as well.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: what is allowed now.")
def allow(
    targets: tuple[str, ...],
    region: str | None,
    private: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Allow notebooks to reach hosts, from now on and after the next start.

    kms and s3 stand for AWS's hosts of these services; pypi for what pip on this machine is set
    to. Whoever may reach a host may also send their data there.
    """
    rules = _rules(targets, region)
    rules = [package_index_rule() if rule.text == PACKAGE_INDEX else rule for rule in rules]
    if file is not None:
        rules += read_vsock_proxy_file(file)
    rules = [with_private(rule, private) for rule in rules]
    if not rules:
        raise click.UsageError("name what to allow: kms, s3, pypi, HOST:PORT, or --file FILE")
    changed = _change(allow=rules)
    if as_json:
        _print_json(changed)
        return
    for rule in rules:
        click.echo(f"Allowed: {_describe(rule)}")


@proxy.command(epilog=examples("enclave proxy deny pypi", "enclave proxy deny api.example.org:443"))
@click.argument("targets", nargs=-1, required=True, metavar="kms|s3|pypi|HOST:PORT ...")
@click.option("--region", metavar="REGION", help="For kms and s3: the rule for this region.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: what is allowed now.")
def deny(targets: tuple[str, ...], region: str | None, as_json: bool) -> None:
    """Take hosts off the list again; connections to them are cut. Harmless if they are not on it.

    Without kms no encrypted package can be opened.
    """
    texts = [rule.text for rule in _rules(targets, region)]
    before = {rule.text for rule in _change().rules}
    changed = _change(deny=texts)
    if as_json:
        _print_json(changed)
        return
    for text in texts:
        click.echo(f"Denied: {text}" if text in before else f"It was not allowed: {text}")


@proxy.command("list", epilog=examples("enclave proxy list", "enclave proxy list --json"))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list_rules(as_json: bool) -> None:
    """Show which hosts notebooks may reach."""
    found = _change()
    if as_json:
        _print_json(found)
        return
    for rule in found.rules:
        click.echo(_describe(rule))
    if not found.rules:
        click.echo("Nothing is allowed. Type: enclave proxy allow kms")


def _describe(rule: Rule) -> str:
    name, _, region = rule.text.partition("/")
    meaning = _MEANING.get(name)
    private = f", also at {', '.join(rule.private)}" if rule.private else ""
    if meaning is None:
        return rule.text + private
    where = ", ".join(rule.hosts) if rule.hosts else region or "every region"
    return f"{rule.text:<14} {meaning.format(where)}{private}"


@proxy.command(
    epilog=examples("enclave proxy log", "enclave proxy log -f", "enclave proxy log --json -n 1000")
)
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object a line.")
def log(lines: int, follow: bool, as_json: bool) -> None:
    """Show the connections of this boot: opened, closed with their bytes, refused and why."""
    paths = EnclavePaths.from_environment()
    paths.require_own("sudo -u enclave enclave proxy log")
    path = paths.egress_log
    size = log_size(path)
    entries = list(read_log(path))
    shown = len(entries)
    for entry in entries[max(0, shown - lines) :]:
        _print_entry(entry, as_json)
    if not entries and not follow and not as_json:
        click.echo("No notebook has used the proxy since boot.")
    try:
        while follow:
            time.sleep(_FOLLOW_POLL_S)
            size, before = log_size(path), size
            if size == before:
                continue
            entries = list(read_log(path))
            # Fewer than before: the oldest file was dropped.
            for entry in entries[shown:] if len(entries) >= shown else ():
                _print_entry(entry, as_json)
            shown = len(entries)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _print_entry(entry: LogEntry, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(entry))
        return
    when = datetime.fromtimestamp(entry.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    who = entry.kernel or "the enclave"
    line = f"{when}  {entry.event:<8} {who}  {entry.destination or 'no destination'}"
    if entry.event == "closed":
        line += f"  {entry.bytes_out} bytes out, {entry.bytes_in} in, {entry.seconds:.1f} s"
    if entry.reason:
        line += f"  {entry.reason}"
    click.echo(line)
