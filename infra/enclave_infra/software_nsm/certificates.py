"""The certificates of a software NSM: its root on disk, and the chain below it in memory.

Names, lifetimes and extensions follow the real chains (tests/vectors/attestation).
"""

import os
import secrets
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave_protocol.errors import EnclaveError

__all__ = ["ROOT_CERTIFICATE_NAME", "CertificateChain", "Issuer", "RootError", "load_root"]

ROOT_CERTIFICATE_NAME = "root.pem"  # public; what verifiers are given
_ROOT_KEY_NAME = "root-key.pem"  # key and certificate in one file, so that it appears at once
_ROOT_LIFETIME = timedelta(days=30 * 365)
_RENEW_BEFORE = timedelta(minutes=10)
_BACKDATED = timedelta(seconds=3)


class RootError(EnclaveError):
    """The root's directory or key file cannot be used."""


@dataclass(frozen=True)
class Issuer:
    """A private key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


def load_root(directory: Path) -> Issuer:
    """Return this machine's root, making it at the first call; safe when several start at once.

    Args:
        directory: Made with mode 0700; an existing one must belong to us and be closed to others.

    Raises:
        RootError: The directory is open to others, or the key file is damaged.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise RootError(
                f"{directory} is open to other users; run: chmod 700 {directory}, as its owner"
            )
        path = directory / _ROOT_KEY_NAME
        if not path.exists():
            _create_once(path, _encode(_new_root()))
        root = _decode(path)
        public = root.certificate.public_bytes(serialization.Encoding.PEM)
        certificate_path = directory / ROOT_CERTIFICATE_NAME
        if not certificate_path.exists() or certificate_path.read_bytes() != public:
            temporary = _write_temporary(certificate_path, public)
            temporary.replace(certificate_path)
    except OSError as error:
        raise RootError(f"cannot use the root in {directory}: {error}") from error
    return root


def _create_once(path: Path, content: bytes) -> None:
    """Make `path` appear whole; when another process was faster, its file stays."""
    temporary = _write_temporary(path, content)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    finally:
        temporary.unlink()


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _encode(issuer: Issuer) -> bytes:
    key = issuer.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return key + issuer.certificate.public_bytes(serialization.Encoding.PEM)


def _decode(path: Path) -> Issuer:
    content = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(content, None)
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise RootError(
            f"{path} is damaged: {error}; remove it, and every key policy made for it is void"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RootError(f"{path} holds no elliptic-curve key; remove it to make a new root")
    return Issuer(key, certificate)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enclave-kernel local"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "NOT CONFIDENTIAL"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _new_root() -> Issuer:
    return _issue(
        None,
        "local.nitro-enclaves",
        now=datetime.now(UTC) - timedelta(hours=1),
        lifetime=_ROOT_LIFETIME,
        path_length=None,
        authority=True,
    )


def _issue(
    parent: Issuer | None,
    common_name: str,
    *,
    now: datetime,
    lifetime: timedelta,
    path_length: int | None,
    authority: bool,
) -> Issuer:
    """Return a new key certified by `parent`, or by itself when there is none."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(common_name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if parent is None else parent.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
        .add_extension(_usage(authority=authority), critical=authority)
    )
    if authority:  # as with Nitro, the leaf carries neither identifier
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        if parent is not None:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key()),
                critical=False,
            )
    signer = key if parent is None else parent.key
    return Issuer(key, builder.sign(signer, hashes.SHA384()))


class CertificateChain:
    """Root -> regional (20 d) -> zonal (6 d) -> instance (1 d) -> leaf (3 h), renewed when due.

    Args:
        root: The local root.
        instance_id: Names the instance's certificate.
        module_id: Names the leaf.
        region: Named in every certificate.
    """

    def __init__(self, root: Issuer, *, instance_id: str, module_id: str, region: str) -> None:
        suffix = f"{region}.local.nitro-enclaves"
        self._root = root
        self._levels = (
            (f"{secrets.token_hex(8)}.{suffix}", timedelta(days=20), 2),
            (f"{secrets.token_hex(8)}.zonal.{suffix}", timedelta(days=6), 1),
            (f"{instance_id}.{suffix}", timedelta(days=1), 0),
            (f"{module_id}.{region}.local", timedelta(hours=3), None),
        )
        self._issued: list[Issuer] = []

    def at(self, now: datetime) -> tuple[Issuer, tuple[bytes, ...]]:
        """Return the leaf and the bundle (DER, root first) valid at `now` for 10 minutes or more.

        A certificate that is due is replaced together with everything below it.
        """
        for position, issuer in enumerate(self._issued):
            certificate = issuer.certificate
            if not (
                certificate.not_valid_before_utc <= now
                and now + _RENEW_BEFORE < certificate.not_valid_after_utc
            ):
                del self._issued[position:]
                break
        while len(self._issued) < len(self._levels):
            name, lifetime, path_length = self._levels[len(self._issued)]
            self._issued.append(
                _issue(
                    self._issued[-1] if self._issued else self._root,
                    name,
                    now=now,
                    lifetime=lifetime,
                    path_length=path_length,
                    authority=path_length is not None,
                )
            )
        *authorities, leaf = self._issued
        return leaf, (self._root.der, *(issuer.der for issuer in authorities))
