"""`enclave attest`: a fresh document, verified here, and what that means."""

import base64
import hashlib
import secrets
from typing import TYPE_CHECKING

import click
import msgspec

from enclave_parent_gateway.api import ChannelAttested
from enclave_parent_gateway.backends.base import is_confidential
from enclave_parent_gateway.enclave_check import CheckedEnclave, EnclaveCheck
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.errors import EnclaveNotRunningError
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.attestation_report import document_fields, pcr_meaning, used_pcrs
from enclave_protocol.channel_binding import CHALLENGE_BYTES, public_key_of
from enclave_protocol.messages import Attest
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["attest", "new_nonce"]


def new_nonce() -> bytes:
    """Return a challenge that was never used."""
    return secrets.token_bytes(CHALLENGE_BYTES)


@click.command(
    epilog='\b\nExamples:\n  enclave attest\n  enclave attest --json | jq -r .pcrs.\\"0\\"'
)
@click.option("--json", "as_json", is_flag=True, help="For scripts; with the document itself.")
def attest(as_json: bool) -> None:
    """Have the enclave prove what it is, over a fresh nonce, and verify the proof.

    Exit code 1: there is no enclave, or what answers is not the one expected.
    """
    paths = EnclavePaths.from_environment()
    state = read_state(paths.state_file)
    if state is None:
        raise EnclaveNotRunningError("no enclave is up; type: enclave up")
    nonce = new_nonce()
    reply = ask_blocking(paths.gateway_socket, Attest(nonce), ChannelAttested)
    # Here as well: this process made the nonce, and believes the gateway's files, not its word.
    checked = EnclaveCheck(paths, state.backend)(
        reply.document, certificate=reply.certificate, nonce=nonce
    )
    confidential = is_confidential(state)
    checks = _checks(checked, reply)
    if as_json:
        report = document_fields(checked.document) | {
            "backend": state.backend,
            "confidential": confidential,
            "root_sha256": hashlib.sha256(checked.root).hexdigest(),
            "channel_key_sha256": _key_digest(reply),
            "expected_pcrs": {
                str(index): sorted(value.hex() for value in values)
                for index, values in sorted(checked.expected.items())
            },
            "checks": [{"name": name, "passed": True, "found": what} for name, what in checks],
            "document": base64.b64encode(reply.document).decode(),
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
        return
    _print(checked, checks, backend=state.backend, confidential=confidential)


def _key_digest(reply: ChannelAttested) -> str:
    return hashlib.sha256(public_key_of(reply.certificate)).hexdigest()


def _checks(checked: CheckedEnclave, reply: ChannelAttested) -> list[tuple[str, str]]:
    """Return what was verified and what was found; what fails raises before this is reached."""
    root = hashlib.sha256(checked.root).hexdigest()[:16]
    aws = checked.root == AWS_NITRO_ROOT_DER
    whose = "AWS Nitro's, pinned" if aws else "made on this machine: proves nothing to others"
    names = ", ".join(f"PCR{index}" for index in sorted(checked.expected))
    return [
        (
            "certificate chain",
            f"{len(checked.document.cabundle)} certificates and a leaf, all P-384",
        ),
        ("root", f"{root}..., {whose}"),
        ("signature", "the leaf's key signed this document, ES384"),
        ("time", f"written {checked.document.written:%Y-%m-%d %H:%M:%S} UTC, the chain valid now"),
        ("nonce", "the 32 random bytes of this request: no replay"),
        ("image", f"{names} as expected"),
        (
            "debug mode",
            "ON: its console is read on the parent, and its image is not proven"
            if checked.document.is_debug
            else "off: nobody reads the enclave's console",
        ),
        ("channel", f"the gateway's TLS connection ends in it, key {_key_digest(reply)[:16]}..."),
    ]


def _print(
    checked: CheckedEnclave, checks: list[tuple[str, str]], *, backend: str, confidential: bool
) -> None:
    from rich.console import Console  # late: `--json` can do without
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if not confidential:
        console.print(f"NOT CONFIDENTIAL ({backend} backend)", style="bold red")
    console.print(f"module  {checked.document.module_id}", markup=False)
    for table in (_check_table(Table, checks), _pcr_table(Table, checked)):
        console.print(table)
    console.print(
        "You trust: the hardware behind the root, the image behind PCR0, and this machine for "
        "what is shown here."
        if confidential
        else "Root on this machine reads everything in this enclave. For development only."
    )


def _check_table(table: "type[Table]", checks: list[tuple[str, str]]) -> "Table":
    view = table("verified", "", show_edge=False, box=None)
    for name, what in checks:
        view.add_row(f"[green]✓[/green] {name}", what)
    return view


def _pcr_table(table: "type[Table]", checked: CheckedEnclave) -> "Table":
    view = table("", "measures", show_edge=False, box=None)
    # Whole: people compare it.
    view.add_column("value", overflow="fold", min_width=48)
    for index, value in used_pcrs(checked.document).items():
        view.add_row(f"PCR{index}", pcr_meaning(index), value.hex())
    return view
