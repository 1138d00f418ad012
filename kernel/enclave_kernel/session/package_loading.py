"""From an encrypted file to a package in a vault: reads, streams, and cleans up when it fails."""

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from enclave_kernel import key_release_errors, publisher_errors
from enclave_kernel.call_channel import FileCutError
from enclave_kernel.session.proxies import EncryptedPackage, package_proxy
from enclave_kernel.session.proxy_parts import shown_name
from enclave_kernel.session.script_client import ScriptClient
from enclave_kernel.session.supervisor_link import LoadRefusedError
from enclave_kernel.session.vault_client import VaultClient
from enclave_kernel.session.vault_link import LoadedVaultLike, VaultLink
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_label import Label, check_label
from enclave_protocol.package_reader import read_header
from enclave_protocol.package_signature import PackageSignatureError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.vault_messages import BODY_CHUNK_BYTES, LoadFailed

__all__ = [
    "LoadedPackage",
    "OpenedFile",
    "PackageFileError",
    "PackageLoadError",
    "load_package",
    "open_encrypted",
    "request_vault",
    "send_body",
    "vault_failure",
]

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""


class PackageFileError(PackageError):
    """The file to load cannot be read."""


class PackageLoadError(PackageError):
    """The vault could not make use of the package."""


_VAULT_ERRORS: Final[dict[str, type[PackageError]]] = {
    kind.__name__: kind
    for kind in (
        PackageFormatError,
        PackageSignatureError,
        PackageTamperedError,
        PackageTruncatedError,
    )
}
_REFUSALS: Final[dict[str, type[PackageError]]] = _VAULT_ERRORS | {
    name: getattr(module, name)
    for module in (key_release_errors, publisher_errors)
    for name in module.__all__
}


_MAX_REFUSAL_CHARS: Final = 1000
"""Two fingerprints and the command that accepts one fit."""


@dataclass
class LoadedPackage:
    """A package in its vault.

    Attributes:
        label: Its label; authentic, for the body verified.
        client: The connection to the vault.
        proxy: What the notebook works with.
        file: The file's name as it was typed.
        new_publisher: The key that it is signed with was pinned with this load.
    """

    label: Label
    client: VaultClient
    proxy: EncryptedPackage
    file: str
    new_publisher: bool = False


def load_package(
    file_name: str,
    link: VaultLink,
    progress: Progress,
    make: Callable[[LoadedVaultLike, str, VaultLink], VaultClient] = VaultClient,
    *,
    unsigned: bool = False,
) -> LoadedPackage:
    """Load the encrypted package in a file.

    Args:
        file_name: As the user typed it; relative to the working directory.
        link: The way to the supervisor.
        progress: Called often; it decides what to show.
        make: Makes the client, for those who want to know of its calls.
        unsigned: Whether a package without a publisher's signature will do.

    Raises:
        PackageError: The file is none, is altered or cut, its publisher is not the one that was
            pinned, or KMS does not release its key; names it. Nothing of it ran.
        LoadRefusedError: The supervisor refused for another reason; names the file, too.
        EnclaveError: The vault died, or the enclave is going down.
    """
    with open_encrypted(file_name, unsigned=unsigned) as opened:
        client = opened.start(link, make, progress)
        return _fill(opened, client, progress)


_Client = TypeVar("_Client", VaultClient, ScriptClient)


@dataclass
class OpenedFile:
    """An encrypted file whose header was read.

    Attributes:
        name: As the user typed it.
        header: Well-formed; authentic only once the body verified.
        stream: At the body's first byte.
        unsigned: Whether it may be without a publisher's signature.
        new_publisher: The key that it is signed with was pinned when the vault got its key.
    """

    name: str
    header: PackageHeader
    stream: io.FileIO
    unsigned: bool = False
    new_publisher: bool = False

    def start(
        self,
        link: VaultLink,
        make: Callable[[LoadedVaultLike, str, VaultLink], _Client],
        progress: Progress,
    ) -> _Client:
        """Return a client of a vault that has the package's key and waits for the body.

        Raises:
            PackageError: KMS does not release the key.
            LoadRefusedError: The supervisor refused for another reason.
        """
        progress("asking for its key", 0.0)
        vault = request_vault(self.name, self.header, link, unsigned=self.unsigned)
        self.new_publisher = vault.new_publisher
        try:
            return make(vault, shown_name(self.header.label), link)
        except BaseException:
            vault.socket.close()
            link.unload(vault.vault_id)
            raise


@contextmanager
def open_encrypted(file_name: str, *, unsigned: bool = False) -> Iterator[OpenedFile]:
    """Open an encrypted file and read its header; errors from within name the file.

    Args:
        file_name: As the user typed it.
        unsigned: Whether it may be without a publisher's signature.

    Raises:
        PackageError: The file is none.
    """
    try:
        with _open(file_name) as stream:
            header = read_header(stream, file=file_name)
            check_label(header.label)
            yield OpenedFile(file_name, header, stream, unsigned)
    except PackageError as error:
        raise error.with_file(file_name) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PackageFileError(f"cannot be read: {reason}", file=file_name) from None


def vault_failure(failure: LoadFailed, file_name: str) -> PackageError:
    """Return the error for what a vault refused."""
    kind = _VAULT_ERRORS.get(failure.kind, PackageLoadError)
    # Code of the package may have run in there and written this message itself.
    return kind(plain_text(failure.message), file=file_name)


def request_vault(
    file_name: str, header: PackageHeader, link: VaultLink, *, unsigned: bool
) -> LoadedVaultLike:
    """Return a vault that has the package's key and waits for its body.

    Args:
        file_name: As the user typed it.
        header: Well-formed.
        link: The way to the supervisor.
        unsigned: Whether a package without a publisher's signature will do.

    Raises:
        PackageError: KMS does not release the key, or its publisher is not trusted.
        LoadRefusedError: The supervisor refused for another reason.
    """
    try:
        return link.load(file_name, header.raw, unsigned=unsigned)
    except LoadRefusedError as refusal:
        named = str(PackageError("", file=file_name))
        # The supervisor passes on what a vault said.
        reason = plain_text(str(refusal).removeprefix(named), limit=_MAX_REFUSAL_CHARS)
        kind = _REFUSALS.get(refusal.kind)
        if kind is None:
            raise LoadRefusedError(refusal.kind, named + reason) from None
        # The error that the supervisor met, as itself: a notebook can tell them apart.
        raise kind(reason, file=file_name) from None


def _fill(opened: OpenedFile, client: VaultClient, progress: Progress) -> LoadedPackage:
    """Stream the body into the vault; on any failure, Ctrl-C included, nothing stays."""
    label = opened.header.label
    try:
        send_body(opened.stream, client, progress)
        failure = client.finish_body(lambda: progress("importing", 1.0))
        if failure is not None:
            raise vault_failure(failure, opened.name)
        proxy = package_proxy(client, label)
        return LoadedPackage(label, client, proxy, opened.name, opened.new_publisher)
    except BaseException:
        client.close("it was not loaded completely")
        raise


def send_body(stream: io.FileIO, client: VaultClient | ScriptClient, progress: Progress) -> None:
    """Stream a body; ends early when the vault refused it.

    Raises:
        VaultDiedError: The vault is gone.
        PackageTruncatedError: The file became shorter meanwhile.
    """
    descriptor = stream.fileno()
    while True:
        total = os.fstat(descriptor).st_size
        size = min(BODY_CHUNK_BYTES, total - stream.tell())
        if size <= 0:
            return
        try:
            if not client.send_body(descriptor, size):
                return
        except FileCutError:
            raise PackageTruncatedError(
                "the file became shorter while it was read: copy it again, whole"
            ) from None
        progress("decrypting", min(1.0, stream.tell() / total))


def _open(file_name: str) -> io.FileIO:
    path = Path(file_name).expanduser()
    try:
        # Not blocking: a FIFO by this name must not hang the notebook.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        found = sorted(entry.name for entry in Path().glob("*.encrypted"))[:5]
        hint = f"here are {', '.join(found)}" if found else "there is no *.encrypted file here"
        # Whoever may write here chose these names.
        reason = plain_text(f"no such file in {Path.cwd()}; {hint}")
        raise PackageFileError(reason, file=file_name) from None
    except ValueError:
        raise PackageFileError("is not a file's name", file=file_name) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise PackageFileError(
                "is a directory; expected a file that `enclave-owner encrypt` wrote",
                file=file_name,
            )
        if not stat.S_ISREG(mode):
            raise PackageFileError("is not a regular file", file=file_name)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
