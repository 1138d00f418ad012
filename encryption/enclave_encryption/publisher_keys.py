"""The publisher's signing key: a file, or a KMS key that signs without being seen.

Source: docs/decisions/publisher_signature.md.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from enclave_encryption.errors import OutputError, SigningKeyError
from enclave_protocol.package_signature import ED25519, Signer

__all__ = ["FileKey", "PublisherKey", "is_encrypted", "load_key", "make_key", "read_passphrase"]

_MAX_KEY_FILE_BYTES: Final = 64 * 1024
_MAX_PASSPHRASE_BYTES: Final = 1023
"""OpenSSL takes no more."""


class PublisherKey(Protocol):
    """What `encrypt` signs with."""

    @property
    def signer(self) -> Signer:
        """Goes into the label."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature as it is in the file."""
        ...


@dataclass(frozen=True)
class FileKey:
    """An Ed25519 key from a file."""

    private: Ed25519PrivateKey

    @property
    def signer(self) -> Signer:
        """Goes into the label."""
        return _signer(self.private.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        return self.private.sign(message)


def make_key(path: Path, passphrase: bytes | None, *, force: bool) -> Signer:
    """Write a new Ed25519 key to `path`, PEM PKCS8, mode 0600, whole or not at all.

    Args:
        path: A file that is there is replaced with `force` only.
        passphrase: Encrypts the file; None for none.
        force: Replace a file, the key in which is then lost.

    Raises:
        SigningKeyError: There is a file.
        OutputError: It cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            if force:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike a rename it replaces nothing
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise SigningKeyError(
            f"{path}: exists; packages signed with another key are refused by everybody who pinned "
            "this one: keep it, or give -o another name, or --force"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    return _signer(private.public_key())


def load_key(path: Path, passphrase: bytes | None) -> FileKey:
    """Return the key in a file that `make_key` wrote.

    Raises:
        SigningKeyError: Not readable, readable for others, no Ed25519 key, or the passphrase is
            missing or wrong.
    """
    data = _read_private(path, _MAX_KEY_FILE_BYTES)
    try:
        key = serialization.load_pem_private_key(data, passphrase)
    except TypeError:
        hint = (
            "is protected with a passphrase: give --passphrase-file FILE, or type it when asked"
            if passphrase is None
            else "has no passphrase: leave out --passphrase-file"
        )
        raise SigningKeyError(f"{path}: {hint}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningKeyError(
            f"{path}: holds no private key, or the passphrase is wrong; make a key with "
            "`enclave-owner keygen`"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: is no Ed25519 key; make one with `enclave-owner keygen`")
    return FileKey(key)


def is_encrypted(path: Path) -> bool:
    """Return whether the key in a file needs a passphrase.

    Raises:
        SigningKeyError: The file is not readable, or readable for others.
    """
    return b"BEGIN ENCRYPTED PRIVATE KEY" in _read_private(path, _MAX_KEY_FILE_BYTES)


def read_passphrase(path: Path) -> bytes:
    """Return the first line of a file.

    Raises:
        SigningKeyError: Not readable, readable for others, empty, or over 1023 bytes.
    """
    line = _read_private(path, _MAX_KEY_FILE_BYTES).split(b"\n")[0].rstrip(b"\r")
    if not 1 <= len(line) <= _MAX_PASSPHRASE_BYTES:
        raise SigningKeyError(
            f"{path}: its first line has {len(line)} bytes, expected a passphrase of 1 to "
            f"{_MAX_PASSPHRASE_BYTES}"
        )
    return line


def _read_private(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise SigningKeyError(
                    f"{path}: other users may read it (mode {mode & 0o777:04o}); type: "
                    f"chmod 600 {path}"
                )
            return file.read(limit)
    except OSError as error:
        raise SigningKeyError(f"{path}: cannot be read: {error.strerror}") from None


def _signer(public: Ed25519PublicKey) -> Signer:
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Signer(ED25519, spki.hex())
