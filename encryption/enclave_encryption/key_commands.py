"""`enclave-owner rekey` and `rotate-key`: the KMS key behind a package, changed."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
from rich.console import Console

from enclave_encryption.errors import KmsDeniedError, KmsError
from enclave_encryption.key_policy.key_admin import KeyAdmin
from enclave_encryption.key_policy.key_rotation import KeyRotation
from enclave_encryption.kms_connection import KmsConnection, caller_arn
from enclave_encryption.package_rekey import (
    check_region,
    open_package_file,
    rewrap_patiently,
    write_rekeyed,
)
from enclave_encryption.progress_bar import progress_bar
from enclave_encryption.re_encryption import ReEncryption
from enclave_encryption.rekey_window import rekey_window
from enclave_protocol.key_slot import KeySlot

__all__ = ["rekey_command", "rotate_key_command"]


@click.command("rekey")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-k", "--key", "key_id", metavar="KEY_ID", required=True, help="The new KMS key.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Default: FILE itself, replaced in one step.",
)
@click.option(
    "--open-policy",
    is_flag=True,
    help="Let yourself re-encrypt for as long as it takes: the old key's policy is opened for "
    "this package's data key, and put back.",
)
@click.option("--principal", metavar="ARN", help="Who you are to KMS; default: AWS STS is asked.")
@click.option("--region", metavar="R", help="AWS region; default: the package's.")
@click.option("--endpoint-url", metavar="URL", help="Another KMS endpoint than AWS's.")
def rekey_command(
    file: Path,
    key_id: str,
    output: Path | None,
    open_policy: bool,
    principal: str | None,
    region: str | None,
    endpoint_url: str | None,
) -> None:
    """Put FILE's data key under another KMS key, without decrypting anything.

    KMS re-encrypts the wrapped data key; body, label and a publisher's signature stay as they
    are. With the same KEY_ID after a rotation the data key is wrapped under the new material.

    Copies of the file as it was still open under the old key: revoke there (key-policy
    --remove-pcr0), or disable that key, if they must not.

    \b
    Example:
      enclave-owner rekey scorer-1.2.0.encrypted -k alias/new-packages --open-policy
    """
    stream, header = open_package_file(file)
    with stream:
        new = KmsConnection(key_id, region=region or header.region, endpoint_url=endpoint_url)
        check_region(header, new.arn)
        source = ReEncryption(header.kms_key_arn, region=region, endpoint_url=endpoint_url)
        context = header.encryption_context
        window: AbstractContextManager[None] = nullcontext()
        if open_policy:
            admin = KeyAdmin(header.kms_key_arn, region=region, endpoint_url=endpoint_url)
            who = principal or caller_arn(region or header.region)
            window = rekey_window(admin, who, context)
        try:
            # On terminals only: a changed key policy may take a while until it holds.
            with Console(stderr=True).status("KMS re-encrypts the data key"), window:
                wrapped = rewrap_patiently(
                    source, header.wrapped_key, context, new.arn, settling=open_policy
                )
        except KmsDeniedError as error:
            hint = "" if open_policy else "; --open-policy lets you, for as long as it takes"
            raise KmsError(
                f"{error}: re-encrypting needs kms:ReEncryptFrom on {header.kms_key_arn} and "
                f"kms:ReEncryptTo on {new.arn}{hint}"
            ) from None
        slot = KeySlot(new.arn, wrapped)
        total = os.fstat(stream.fileno()).st_size - len(header.raw)
        with progress_bar("Copying", total) as advance:
            written = write_rekeyed(stream, header, slot, output or file, advance)
    click.echo(f"Wrote {written.path}: opens with {new.arn} instead of {header.kms_key_arn}")


@click.command("rotate-key")
@click.option("-k", "--key", "key_id", metavar="KEY_ID", required=True, help="Id, alias or ARN.")
@click.option("--now", is_flag=True, help="Rotate once, now. KMS allows ten in a key's life.")
@click.option(
    "--every",
    "days",
    metavar="DAYS",
    type=click.IntRange(90, 2560),
    help="From now on rotate every so many days (90 to 2560).",
)
@click.option("--stop", is_flag=True, help="Do not rotate on its own any more.")
@click.option("--region", metavar="R", help="AWS region; default: the ARN's or your profile's.")
@click.option("--endpoint-url", metavar="URL", help="Another KMS endpoint than AWS's.")
def rotate_key_command(
    key_id: str,
    now: bool,
    days: int | None,
    stop: bool,
    region: str | None,
    endpoint_url: str | None,
) -> None:
    """Have KMS make new material for a key; without an option, say whether it does.

    The key's ARN and policy stay, and packages encrypted before keep opening: KMS keeps the old
    material for them. `rekey FILE -k` with the same key wraps a package's data key anew.

    \b
    Example:
      enclave-owner rotate-key -k alias/packages --now --every 365
    """
    if stop and (now or days is not None):
        raise click.UsageError("--stop does not go with --now or --every")
    key = KeyRotation(key_id, region=region, endpoint_url=endpoint_url)
    if now:
        key.rotate_now()
        click.echo(f"{key.arn}: rotated")
    if days is not None:
        key.enable(days)
    if stop:
        key.disable()
    state = "rotates on its own" if key.enabled() else "does not rotate on its own"
    click.echo(f"{key.arn}: {state}")
