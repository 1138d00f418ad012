"""`keygen` and `encrypt --sign-with`: keys as files and in KMS, and what `inspect` says of them."""

import json
import os
import pty
import select
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import load_key
from enclave_protocol.package_header import decode_header
from enclave_protocol.package_signature import ECDSA_P384, ED25519
from tests.encryption.test_cli import COMMAND, ENVIRONMENT, encrypt, opened, refused, run
from tests.support import plain_package as plain
from tests.support.moto_kms import REGION, MotoKms, running_moto_kms

MANIFEST = '[package]\nname = "signed"\nversion = "1"\npublisher = "ACME Analytics"\n'


@pytest.fixture(scope="module")
def kms() -> Iterator[MotoKms]:
    with running_moto_kms() as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "signed"
    folder.mkdir()
    (folder / "enclave.toml").write_text(MANIFEST)
    (folder / "signed.py").write_text("x = 1\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 2000)
    return folder


def keygen(folder: Path, *more: str | Path) -> str:
    result = run("keygen", *more, cwd=folder)
    assert result.returncode == 0, result.stderr
    fingerprint: str = result.stdout.splitlines()[-1].removeprefix("Fingerprint: ")
    return fingerprint


def private(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_a_key_is_private_and_is_not_lost(tmp_path: Path) -> None:
    fingerprint = keygen(tmp_path)
    path = tmp_path / "publisher.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    assert load_key(path, None).signer.fingerprint == fingerprint
    kept = path.read_bytes()
    refused(run("keygen", cwd=tmp_path), "publisher.key: exists")
    assert path.read_bytes() == kept
    assert keygen(tmp_path, "--force") != fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == ["publisher.key"]
    refused(run("keygen", "-o", "missing/key", cwd=tmp_path), "cannot be written")


def test_a_link_is_not_followed_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "publisher.key").symlink_to(tmp_path / "elsewhere")
    refused(run("keygen", cwd=tmp_path), "exists")
    assert not (tmp_path / "elsewhere").exists()


def test_signed_with_a_file(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    fingerprint = keygen(tmp_path, "-o", "acme.key")
    result = run(*encrypt(kms, source, "--sign-with", "acme.key"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Signed by ACME Analytics, key {fingerprint}" in result.stdout
    path = tmp_path / "signed-1.encrypted"
    header = decode_header(path.read_bytes())
    assert header.label.signer is not None and header.label.signer.algorithm == ED25519
    assert sorted(opened(kms, path)) == ["enclave.toml", "signed.py", "weights.bin"]
    data_key = bytes(kms.unwrap(header.wrapped_key, header.encryption_context))
    _, files = plain.open_package(path.read_bytes(), data_key)
    assert files["signed.py"] == (b"x = 1\n", False)

    shown = run("inspect", path, cwd=tmp_path).stdout
    for text in ("ACME Analytics", fingerprint, "verified, ed25519"):
        assert text in shown
    document = json.loads(run("inspect", path, "--json", cwd=tmp_path).stdout)
    assert document["fingerprint"] == fingerprint
    assert document["signature_verified"] is True

    for place in (
        10 + len(header.label_bytes) + 12,
        len(header.raw) - len(header.wrapped_key) - 90,
    ):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        refused(run("inspect", path, cwd=tmp_path), "signature is of another label or body")
        data[place] ^= 1
        path.write_bytes(data)
    assert run("inspect", path, cwd=tmp_path).returncode == 0


def test_unsigned_is_said(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    result = run(*encrypt(kms, source), cwd=tmp_path)
    assert "Not signed" in result.stdout
    shown = run("inspect", "signed-1.encrypted", cwd=tmp_path).stdout
    assert "not signed" in shown and "none: loads with --unsigned only" in shown
    document = json.loads(run("inspect", "signed-1.encrypted", "--json", cwd=tmp_path).stdout)
    assert document["fingerprint"] is None and document["signature_verified"] is False


def test_nobody_signs_without_a_name(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    keygen(tmp_path)
    (source / "enclave.toml").write_text('[package]\nname = "signed"\nversion = "1"\n')
    result = run(*encrypt(kms, source, "--sign-with", "publisher.key"), cwd=tmp_path)
    refused(result, "publisher")
    assert not (tmp_path / "signed-1.encrypted").exists()


def test_passphrases(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    phrase = private(tmp_path / "phrase", b"correct horse\nsecond line\n")
    wrong = private(tmp_path / "wrong", b"battery staple\n")
    fingerprint = keygen(tmp_path, "-o", "a.key", "--passphrase-file", phrase)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "a.key").read_bytes()
    sign = ("--sign-with", "a.key", "--passphrase-file")
    assert fingerprint in run(*encrypt(kms, source, *sign, phrase), cwd=tmp_path).stdout
    refused(run(*encrypt(kms, source, *sign, wrong), cwd=tmp_path), "passphrase is wrong")
    refused(run(*encrypt(kms, source, "--sign-with", "a.key"), cwd=tmp_path), "no terminal")
    phrase.chmod(0o644)
    refused(run(*encrypt(kms, source, *sign, phrase), cwd=tmp_path), "chmod 600")
    private(tmp_path / "phrase", b"\n")
    refused(run(*encrypt(kms, source, *sign, phrase), cwd=tmp_path), "0 bytes")
    keygen(tmp_path, "-o", "b.key")
    more = ("--sign-with", "b.key", "--passphrase-file", wrong)
    refused(run(*encrypt(kms, source, *more), cwd=tmp_path), "has no passphrase")


def read_terminal(leader: int) -> bytes:
    ready, _, _ = select.select([leader], [], [], 30)
    return os.read(leader, 1000) if ready else b"Fingerprint: "


def test_a_passphrase_is_asked_for_on_a_terminal(tmp_path: Path) -> None:
    """Neither its argument list nor its output has it."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "keygen", "--passphrase"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        shown = b""
        for _ in range(2):
            # The blank comes when echo is off and what was typed too early is thrown away.
            while not shown.endswith(b": "):
                shown += read_terminal(leader)
            os.write(leader, b"correct horse\n")
            shown += b"\n"
        while b"Fingerprint" not in shown:
            shown += read_terminal(leader)
        assert process.wait(30) == 0
    os.close(leader)
    assert b"correct horse" not in shown
    assert load_key(tmp_path / "publisher.key", b"correct horse")


def pem(key: "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey") -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "no Ed25519 key"),
        (pem(rsa.generate_private_key(65537, 2048)), "no Ed25519 key"),
    ],
)
def test_what_is_no_key(
    kms: MotoKms, source: Path, tmp_path: Path, data: bytes, message: str
) -> None:
    private(tmp_path / "key", data)
    result = run(*encrypt(kms, source, "--sign-with", "key"), cwd=tmp_path)
    refused(result, message)
    assert not (tmp_path / "signed-1.encrypted").exists()


def test_a_key_that_others_can_read_is_refused(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    keygen(tmp_path)
    (tmp_path / "publisher.key").chmod(0o640)
    sign = ("--sign-with", "publisher.key")
    refused(run(*encrypt(kms, source, *sign), cwd=tmp_path), "chmod 600 publisher.key")
    refused(run(*encrypt(kms, source, "--sign-with", "none"), cwd=tmp_path), "cannot be read")


def test_signed_with_kms(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    arn = kms.new_signing_key()
    result = run(*encrypt(kms, source, "--sign-with-kms", arn), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "signed-1.encrypted"
    signer = decode_header(path.read_bytes()).label.signer
    assert signer is not None and signer.algorithm == ECDSA_P384
    assert f"Signed by ACME Analytics, key {signer.fingerprint}" in result.stdout
    assert sorted(opened(kms, path)) == ["enclave.toml", "signed.py", "weights.bin"]
    assert "verified, ecdsa-p384-sha384" in run("inspect", path, cwd=tmp_path).stdout


def test_other_kms_keys_do_not_sign(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    for arn in (kms.new_signing_key("ECC_NIST_P256"), kms.new_signing_key("RSA_3072")):
        result = run(*encrypt(kms, source, "--sign-with-kms", arn), cwd=tmp_path)
        refused(result, "has to be ECC_NIST_P384")
    more = ("--sign-with-kms", "alias/none", "--region", REGION)
    refused(run(*encrypt(kms, source, *more), cwd=tmp_path), "there is no key alias/none")
    assert not (tmp_path / "signed-1.encrypted").exists()


@pytest.mark.parametrize(
    "more",
    [
        ("--sign-with", "a", "--sign-with-kms", "b"),
        ("--passphrase-file", "a"),
        ("--sign-with-kms", "a", "--passphrase-file", "b"),
    ],
)
def test_options_that_contradict(
    kms: MotoKms, source: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert run(*encrypt(kms, source, *more), cwd=tmp_path).returncode == 2


def test_help_has_an_example() -> None:
    result = subprocess.run(
        [*COMMAND, "keygen", "--help"], capture_output=True, text=True, check=True
    )
    assert "enclave-owner keygen -o acme.key" in result.stdout
