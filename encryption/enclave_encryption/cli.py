"""`enclave-owner`: what a package's owner types."""

import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from enclave_encryption.data_key import KmsKey
from enclave_encryption.errors import LintError, OwnerError
from enclave_encryption.key_commands import rekey_command, rotate_key_command
from enclave_encryption.key_policy.command import key_policy_command
from enclave_encryption.label_view import label_json, print_label, shown_size
from enclave_encryption.lint.package_lint import lint_package
from enclave_encryption.manifest_draft import draft_manifest
from enclave_encryption.output_file import OutputFile
from enclave_encryption.package_encryption import check_output, encrypt_package
from enclave_encryption.package_plan import PackagePlan, check_not_expired, plan_package
from enclave_encryption.progress_bar import progress_bar
from enclave_encryption.signing_commands import choose_publisher, keygen
from enclave_encryption.trial_command import try_command
from enclave_protocol.errors import EnclaveError
from enclave_protocol.incident import INCIDENT_KEY_NAME
from enclave_protocol.manifest import MANIFEST_NAME
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_label import check_label
from enclave_protocol.package_reader import read_header

__all__ = ["main"]

_CLEAN_UP_S = 5.0
"""So long another Ctrl-C does nothing; after that it ends what hangs."""
_last_interrupt_s = -_CLEAN_UP_S


class _InterruptedError(BaseException):
    """SIGINT or SIGTERM; no `except Exception` may take it for a failure."""


def main() -> None:
    """Run `enclave-owner` on the command line's arguments and exit.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. Errors are one line
    each on stderr; with ENCLAVE_DEBUG=1 they come with a traceback.
    """
    code = _run(sys.argv[1:])
    # All is cleaned up: another Ctrl-C while Python ends changes nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        # A stopped job is cleaned up like an interrupted one. Not KeyboardInterrupt: click
        # would print an empty line for it.
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)
        code = _owner.main(args=arguments, prog_name="enclave-owner", standalone_mode=False)
    except _InterruptedError:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        return _failed("interrupted; nothing was written", 130)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if os.environ.get("ENCLAVE_DEBUG") == "1":
            raise
        return _failed(_one_line(error), 1)
    return code if isinstance(code, int) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    global _last_interrupt_s
    now = time.monotonic()
    if now < _last_interrupt_s + _CLEAN_UP_S:
        # What the one before began is not to be left half done.
        return
    _last_interrupt_s = now
    raise _InterruptedError


def _one_line(error: Exception) -> str:
    if isinstance(error, EnclaveError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"there is no module {error.name}: pip install 'enclave-kernel[owner]'"
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    return (
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; "
        "please report it with what ENCLAVE_DEBUG=1 shows"
    )


def _failed(message: str, code: int) -> int:
    for line in message.splitlines():
        click.echo(f"enclave-owner: {line}", err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def _owner() -> None:
    """Encrypt code, models and data so that only an enclave you approved can use them.

    \b
    Example:
      enclave-owner init credit_scorer/
      enclave-owner try credit_scorer/ -c "score([1, 2, 3])"
      enclave-owner keygen -o acme.key
      enclave-owner encrypt -d credit_scorer/ -k alias/packages --sign-with acme.key
      enclave-owner inspect credit-scorer-1.2.0.encrypted
      enclave-owner key-policy -k alias/packages --pcr0 HEX --principal ROLE_ARN --apply
    """


_owner.add_command(keygen)
_owner.add_command(try_command)


@_owner.command("init")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--module", metavar="NAME", help="Module to export from; default: like DIR.")
@click.option("--force", is_flag=True, help=f"Replace an {MANIFEST_NAME} that is there.")
def _init(directory: Path, module: str | None, force: bool) -> None:
    """Write DIR/enclave.toml from the code in DIR, for you to review.

    The code is read, not run: exports come from __all__, or else from the public functions and
    classes; defaults that are no literals are written as "...". Warnings are those of `encrypt`.
    DIR/incidents.key is written, too, if it is not there: `try --incident` needs it.

    \b
    Example:
      enclave-owner init credit_scorer/
    """
    manifest = directory / MANIFEST_NAME
    if os.path.lexists(manifest) and not force:
        raise OwnerError(f"{manifest}: exists; use --force to replace it")
    text = draft_manifest(directory, module)
    with OutputFile(manifest) as file:
        file.write(text.encode())
    with_key = ""
    key = directory / INCIDENT_KEY_NAME
    if not os.path.lexists(key):
        with OutputFile(key) as file:
            file.write(f"{secrets.token_hex(32)}\n".encode())
        with_key = f" and {INCIDENT_KEY_NAME}"
    # A draft that `encrypt` would refuse has to be corrected first; it says how.
    with suppress(EnclaveError):
        _warn(plan_package(directory))
    click.echo(
        f"Wrote {manifest}{with_key}. Review it, then: enclave-owner try {directory}, and "
        f"enclave-owner encrypt -d {directory} -k KEY_ID"
    )


@_owner.command("encrypt")
@click.option(
    "-d",
    "--directory",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="What to encrypt. Left out: __pycache__, .git, .DS_Store.",
)
@click.option("-k", "--key", "key_id", metavar="KEY_ID", required=True, help="Id, alias or ARN.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Default: NAME-VERSION.encrypted here.",
)
@click.option(
    "--sign-with",
    metavar="KEYFILE",
    type=click.Path(path_type=Path),
    help="Sign as the publisher, with a key of `keygen`. Unsigned, users need --unsigned to load.",
)
@click.option("--sign-with-kms", metavar="KEY_ARN", help="Sign with a KMS key, ECC_NIST_P384.")
@click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="KEYFILE's passphrase is FILE's first line; default: ask.",
)
@click.option("--strict", is_flag=True, help="Take warnings for errors: exit code 1, no file.")
@click.option("--region", metavar="R", help="AWS region; default: the ARN's or your profile's.")
@click.option("--endpoint-url", metavar="URL", help="Another KMS endpoint than AWS's.")
def _encrypt(
    directory: Path,
    key_id: str,
    sign_with: Path | None,
    sign_with_kms: str | None,
    passphrase_file: Path | None,
    output: Path | None,
    strict: bool,
    region: str | None,
    endpoint_url: str | None,
) -> None:
    """Encrypt a directory into one file.

    Links, devices, sockets and unreadable files are refused by name before anything is written,
    and so are exports that the code does not have and an expiry that is past. The file appears
    whole or not at all.

    Warnings, on your screen only, name the lines where exported code evaluates, formats,
    unpickles or opens what users pass, or returns whole weights. A comment on the line,
    "# enclave: allow RULE", says that you looked at it.

    \b
    Example:
      enclave-owner encrypt -d credit_scorer/ -k alias/packages --sign-with acme.key
    """
    plan = plan_package(directory)
    check_not_expired(plan.manifest, datetime.now(UTC))
    if _warn(plan) and strict:
        raise LintError("--strict: warnings are errors; nothing was written")
    target = Path(plan.file_name) if output is None else output
    check_output(target, directory)
    publisher = choose_publisher(
        plan.manifest,
        key_file=sign_with,
        kms_key=sign_with_kms,
        passphrase_file=passphrase_file,
        region=region,
        endpoint_url=endpoint_url,
    )
    key = KmsKey(key_id, region=region, endpoint_url=endpoint_url)
    total = sum(file.entry.size for file in plan.tree.files)
    with progress_bar("Encrypting", total) as advance:
        written = encrypt_package(plan, key, target, advance, publisher)
    click.echo(
        f"Wrote {written.path}: {written.label.file_count} files, {shown_size(written.size)}, "
        f"opens with {written.kms_key_arn}"
    )
    signer = written.label.signer
    if signer is None:
        click.echo("Not signed: users load it with --unsigned. Sign with: --sign-with KEYFILE")
    else:
        click.echo(f"Signed by {written.label.package.publisher}, key {signer.fingerprint}")


def _warn(plan: PackagePlan) -> int:
    """Show on stderr, and nowhere else, what the owner should look at; return how much it is."""
    with Console(stderr=True).status("Looking through exported code"):  # on terminals only
        result = lint_package(plan.manifest, plan.manifest_text, plan.code)
    for finding in result.findings:
        click.echo(f"enclave-owner: warning: {finding}", err=True)
    if result.findings:
        count = "1 warning" if len(result.findings) == 1 else f"{len(result.findings)} warnings"
        click.echo(
            f"enclave-owner: {count}; for what you looked at and mean, put "
            "`# enclave: allow RULE` on its line",
            err=True,
        )
    if not result.complete:
        click.echo(
            "enclave-owner: the code goes further than was followed: there may be more to look at",
            err=True,
        )
    return len(result.findings)


@_owner.command("inspect")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def _inspect(file: Path, as_json: bool) -> None:
    """Show what FILE says about itself; needs no key and reads only its header.

    The publisher's signature is verified as far as that goes: that it is of this label. That the
    body is the one that was signed is seen by the enclave that opens it.

    A header that breaks a rule is not shown: the error says which, and no enclave opens the file.

    \b
    Example:
      enclave-owner inspect credit-scorer-1.2.0.encrypted --json
    """
    try:
        with file.open("rb") as stream:
            header = read_header(stream, file=str(file))
            check_label(header.label)
            header.verify_signature()
            size = os.fstat(stream.fileno()).st_size
    except PackageError as error:
        raise error.with_file(str(file)) from None
    except OSError as error:
        raise OwnerError(f"{file}: cannot be read: {error.strerror}") from None
    if as_json:
        click.echo(label_json(header, size))
    else:
        print_label(Console(), file, header, size, datetime.now(UTC))


_owner.add_command(key_policy_command)
_owner.add_command(rekey_command)
_owner.add_command(rotate_key_command)
