"""`enclave-owner keygen`, and the options of `encrypt` that say what to sign with."""

import sys
from pathlib import Path

import click

from enclave_encryption.errors import OwnerError, SigningKeyError
from enclave_encryption.publisher_keys import (
    PublisherKey,
    is_encrypted,
    load_key,
    make_key,
    read_passphrase,
)
from enclave_protocol.manifest import MANIFEST_NAME, Manifest
from enclave_protocol.package_signature import Signer, check_signer

__all__ = ["DEFAULT_KEY_FILE", "check_publisher", "choose_publisher", "keygen"]

DEFAULT_KEY_FILE = "publisher.key"


@click.command("keygen")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_KEY_FILE),
    show_default=True,
    help="Where the private key goes, mode 0600.",
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase to protect FILE with.")
@click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take the passphrase from the first line of FILE.",
)
@click.option("--force", is_flag=True, help="Replace a key that is there: it is then lost.")
def keygen(output: Path, passphrase: bool, passphrase_file: Path | None, force: bool) -> None:
    """Make an Ed25519 key to sign your packages with, and print its fingerprint.

    Users see the fingerprint when they load your first package, and pin the key. Publish it where
    they can compare it; keep the file: packages signed with another key are refused by them.

    \b
    Example:
      enclave-owner keygen -o acme.key
      enclave-owner encrypt -d credit_scorer/ -k alias/packages --sign-with acme.key
    """
    secret = None
    if passphrase_file is not None:
        secret = read_passphrase(passphrase_file)
    elif passphrase:
        secret = _ask("Passphrase", confirm=True)
    signer = make_key(output, secret, force=force)
    click.echo(f"Wrote {output}, which is secret: keep a copy of it in a safe place.")
    click.echo(f"Fingerprint: {signer.fingerprint}")


def choose_publisher(
    manifest: Manifest,
    *,
    key_file: Path | None,
    kms_key: str | None,
    passphrase_file: Path | None,
    region: str | None,
    endpoint_url: str | None,
) -> PublisherKey | None:
    """Return what to sign with; None for a package that is not to be signed.

    Raises:
        OwnerError: The key cannot be used, or the manifest names no publisher.
    """
    if key_file is not None and kms_key is not None:
        raise click.UsageError("choose one of --sign-with and --sign-with-kms")
    if passphrase_file is not None and key_file is None:
        raise click.UsageError("--passphrase-file belongs to --sign-with")
    key: PublisherKey
    if key_file is not None:
        secret = None
        if passphrase_file is not None:
            secret = read_passphrase(passphrase_file)
        elif is_encrypted(key_file):
            secret = _ask(f"Passphrase of {key_file}", confirm=False)
        key = load_key(key_file, secret)
    elif kms_key is not None:
        # Late, as all that needs boto3.
        from enclave_encryption.kms_signing_key import KmsSigningKey

        key = KmsSigningKey(kms_key, region=region, endpoint_url=endpoint_url)
    else:
        return None
    check_publisher(manifest, key.signer)
    return key


def check_publisher(manifest: Manifest, signer: Signer) -> None:
    """Refuse to sign for nobody.

    Raises:
        OwnerError: The manifest names no publisher.
    """
    if not manifest.package.publisher.strip():
        raise OwnerError(
            f'{MANIFEST_NAME}: add publisher = "YOUR NAME" to [package]: a signature is of a '
            "publisher, and users pin your key under that name"
        )
    check_signer(signer, manifest.package.publisher)


def _ask(prompt: str, *, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise SigningKeyError("there is no terminal to ask on: give --passphrase-file FILE")
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()
