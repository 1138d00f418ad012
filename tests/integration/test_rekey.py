"""`enclave-owner rekey` and `rotate-key`: another KMS key, the same package, and no way to swap."""

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from enclave_encryption.rekey_window import ALLOW_SID, opened_policy
from enclave_kernel.key_release_errors import KeyReleaseDeniedError
from enclave_protocol.chunked_encryption import Encryptor
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_archive import Entry, archive_size, encode_archive
from enclave_protocol.package_errors import PackageTamperedError
from enclave_protocol.package_header import (
    PackageHeader,
    decode_header,
    encode_header,
    encryption_context,
    header_with_slot,
)
from enclave_protocol.package_label import encode_label
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import parse_policy
from enclave_protocol.policy.wildcards import wildcard_match
from tests.support.kms_keys import error_code
from tests.support.local_services import HOST_ROLE_ARN, OWNER_ROLE_ARN
from tests.support.owner_tool import OWNER_ENVIRONMENT
from tests.support.package_owner import publisher_fingerprint, publisher_key_file
from tests.support.released_package import NEW_PCR0, Release, header_of, running_release

OPEN = ("--open-policy", "--principal", OWNER_ROLE_ARN)
TEXT = "secret = 42\n" * 4000


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with running_release(tmp_path_factory.mktemp("rekey")) as running:
        yield running


@pytest.fixture(scope="module")
def old_key(release: Release) -> str:
    return release.release_key()


@pytest.fixture(scope="module")
def new_key(release: Release) -> str:
    return release.release_key()


@pytest.fixture
def file(release: Release, old_key: str, tmp_path: Path) -> Path:
    """A fresh copy of one package."""
    made = release.folder / "package.encrypted"
    if not made.exists():
        release.encrypt(old_key, "package", TEXT)
    return Path(shutil.copy(made, tmp_path / "package.encrypted"))


def body(path: Path) -> bytes:
    data = path.read_bytes()
    return data[len(decode_header(data).raw) :]


def test_another_kms_key(release: Release, old_key: str, new_key: str, file: Path) -> None:
    before, policy = file.read_bytes(), release.policy(old_key)
    header = decode_header(before)
    release.owner("rekey", file, "-k", new_key, *OPEN)
    rekeyed = header_of(file)
    assert (header.kms_key_arn, rekeyed.kms_key_arn) == (old_key, new_key)
    # Label and body as they were: whoever signed the label signed this.
    assert rekeyed.label_bytes == header.label_bytes
    assert (rekeyed.context, rekeyed.encryption_context) == (
        header.context,
        header.encryption_context,
    )
    assert body(file) == before[len(header.raw) :]
    assert release.policy(old_key) == policy
    assert release.contents(file) == TEXT.encode()
    # The new key decides now; the old file still asks the old one.
    release.owner("key-policy", "-k", new_key, "--add-pcr0", NEW_PCR0, "--apply")
    assert release.contents(file, "new") == TEXT.encode()
    with pytest.raises(KeyReleaseDeniedError):
        release.contents(before, "new")
    assert release.contents(before) == TEXT.encode()


def test_the_publishers_signature_stays(
    release: Release, old_key: str, new_key: str, tmp_path: Path
) -> None:
    source, file = tmp_path / "signed", tmp_path / "signed.encrypted"
    source.mkdir()
    (source / "module.py").write_text(TEXT)
    manifest = '[package]\nname = "signed"\npublisher = "ACME Analytics"\n'
    (source / "enclave.toml").write_text(manifest)
    sign = ("--sign-with", publisher_key_file())
    release.owner("encrypt", "-d", source, "-k", old_key, "-o", file, *sign)
    before = header_of(file)
    release.owner("rekey", file, "-k", new_key, *OPEN)
    after = header_of(file)
    assert before.signature is not None and after.signature == before.signature
    assert after.slot != before.slot
    # Verified on the way: the signature is of label and body, and the body is the signed one.
    assert TEXT.encode() in release.contents(file)
    after.verify_signature()
    assert after.label.signer is not None
    assert after.label.signer.fingerprint == publisher_fingerprint()


def test_without_leave_nothing_happens(release: Release, new_key: str, file: Path) -> None:
    before = file.read_bytes()
    printed = release.owner("rekey", file, "-k", new_key, code=1)
    assert "kms:ReEncryptFrom" in printed and "--open-policy" in printed
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_to_another_file(release: Release, new_key: str, file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    release.owner("rekey", file, "-k", new_key, "-o", tmp_path / "new.encrypted", *OPEN)
    assert file.read_bytes() == before
    assert release.contents(tmp_path / "new.encrypted") == TEXT.encode()


def closed_key(release: Release) -> str:
    """Return the ARN of a key that nobody encrypts with, and so nobody re-encrypts to."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": OWNER_ROLE_ARN},
        "Action": ["kms:PutKeyPolicy", "kms:DescribeKey"],
        "Resource": "*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": statement})
    return release.cloud.owner.create_key(Policy=policy)["KeyMetadata"]["Arn"]


def test_the_policy_is_put_back_when_kms_refuses(
    release: Release, old_key: str, file: Path
) -> None:
    """Here: the new key does not let the owner re-encrypt to it."""
    arn = closed_key(release)
    before, policy = file.read_bytes(), release.policy(old_key)
    command = [sys.executable, "-c", _IMPATIENT, "rekey", str(file), "-k", arn, *OPEN]
    url = ["--endpoint-url", release.cloud.endpoint_url]
    result = subprocess.run(
        [*command, *url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=OWNER_ENVIRONMENT,
    )
    assert result.returncode == 1
    assert "kms:ReEncryptTo" in result.stderr
    assert file.read_bytes() == before
    assert release.policy(old_key) == policy


def test_what_is_revoked_meanwhile_stays_revoked(
    release: Release, old_key: str, file: Path
) -> None:
    arn = closed_key(release)
    before = json.loads(release.policy(old_key))
    command = [sys.executable, "-c", _PATIENT, "rekey", str(file), "-k", arn, *OPEN]
    url = ["--endpoint-url", release.cloud.endpoint_url]
    with subprocess.Popen(
        [*command, *url], stderr=subprocess.PIPE, env=OWNER_ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 30
        while ALLOW_SID not in release.policy(old_key):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        # By hand, as a colleague may: no tool puts the Deny in order.
        opened = json.loads(release.policy(old_key))
        revoked = {"Sid": "Revoked", "Effect": "Deny", "Principal": "*", "Resource": "*"}
        revoked |= {"Action": "kms:Decrypt"}
        opened["Statement"].append(revoked)
        release.cloud.owner.put_key_policy(
            KeyId=old_key, PolicyName="default", Policy=json.dumps(opened)
        )
        process.terminate()
        assert process.wait(20) == 130
    after = json.loads(release.policy(old_key))
    # The other tests' key, too.
    release.cloud.owner.put_key_policy(
        KeyId=old_key, PolicyName="default", Policy=json.dumps(before)
    )
    assert after == {**before, "Statement": [*before["Statement"], revoked]}


def test_the_policy_is_put_back_when_interrupted(
    release: Release, old_key: str, file: Path
) -> None:
    arn = closed_key(release)
    policy = release.policy(old_key)
    command = [sys.executable, "-c", _PATIENT, "rekey", str(file), "-k", arn, *OPEN]
    url = ["--endpoint-url", release.cloud.endpoint_url]
    with subprocess.Popen(
        [*command, *url], stderr=subprocess.PIPE, env=OWNER_ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 30
        while ALLOW_SID not in release.policy(old_key):  # now it retries, for a minute
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 130
    assert release.policy(old_key) == policy


_PATIENT = "from enclave_encryption.cli import main; main()"
_IMPATIENT = "from enclave_encryption import package_rekey as r; r._SETTLING_S = 0.5; " + _PATIENT


def test_while_it_is_open_only_the_owner_and_only_this_package(
    release: Release, old_key: str, file: Path
) -> None:
    context = header_of(file).encryption_context
    policy = parse_policy(opened_policy(release.policy(old_key), OWNER_ROLE_ARN, context))

    def may(who: str, action: str, asked: dict[str, str]) -> bool:
        request = kms_request(Caller.of(who), action, old_key, context=asked)
        return policy.evaluate(request).allowed

    other = {**context, "label-sha256": "0" * 64}
    assert may(OWNER_ROLE_ARN, "kms:ReEncryptFrom", context)
    assert not may(OWNER_ROLE_ARN, "kms:ReEncryptFrom", other)
    assert not may(OWNER_ROLE_ARN, "kms:ReEncryptFrom", {})
    assert not may(HOST_ROLE_ARN, "kms:ReEncryptFrom", context)
    assert not may(OWNER_ROLE_ARN, "kms:Decrypt", context)


def test_while_it_is_open_an_iam_policy_lets_nobody_else(
    release: Release, old_key: str, file: Path
) -> None:
    """A policy that names the account's root, as KMS's own first one, leaves it to IAM."""
    context = header_of(file).encryption_context
    before = json.loads(release.policy(old_key))
    everything = {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}
    root = {"Sid": "Root", "Principal": {"AWS": old_key.split(":")[4]}, **everything}
    text = json.dumps({**before, "Statement": [*before["Statement"], root]})
    role = OWNER_ROLE_ARN.replace(":role/", ":role/some/path/")
    session = OWNER_ROLE_ARN.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/") + "/me"

    def may(policy: str, who: str) -> bool:
        request = kms_request(Caller.of(who), "kms:ReEncryptFrom", old_key, context=context)
        return parse_policy(policy).evaluate(request).allowed

    assert not may(text, HOST_ROLE_ARN)
    for principal in (OWNER_ROLE_ARN, session):
        opened = opened_policy(text, principal, context)
        assert may(opened, session)
        assert may(opened, principal)
        assert not may(opened, HOST_ROLE_ARN)
        assert not may(opened, OWNER_ROLE_ARN + "-2")
    # Of a session the path is not known: IAM knows the role by its name.
    denials = json.loads(opened_policy(text, session, context))["Statement"]
    (pattern,) = [
        names
        for statement in denials
        for names in statement.get("Condition", {}).get("StringNotLike", {}).values()
    ]
    assert any(wildcard_match(each, role) for each in pattern)


def test_another_region_is_refused_before_anything(
    release: Release, old_key: str, file: Path
) -> None:
    arn = old_key.replace("us-east-1", "eu-west-1")
    assert "one region" in release.owner("rekey", file, "-k", arn, *OPEN, code=1)


def test_rotation(release: Release, old_key: str, file: Path) -> None:
    before = header_of(file)
    assert "rotated" in release.owner("rotate-key", "-k", old_key, "--now")
    printed = release.owner("rotate-key", "-k", old_key, "--every", "365")
    assert "rotates on its own" in printed
    assert release.contents(file) == TEXT.encode()
    release.owner("rekey", file, "-k", old_key, *OPEN)
    after = header_of(file)
    assert after.kms_key_arn == before.kms_key_arn
    assert after.wrapped_key != before.wrapped_key
    assert release.contents(file) == TEXT.encode()
    assert "does not rotate" in release.owner("rotate-key", "-k", old_key, "--stop")
    release.owner("rotate-key", "-k", old_key, "--stop", "--now", code=2)


# The wrapped key cannot be swapped


def with_slot(data: bytes, slot: KeySlot) -> bytes:
    header = decode_header(data)
    return header_with_slot(header.label_bytes, slot, header.signature) + data[len(header.raw) :]


def test_the_key_slot_of_another_package(release: Release, old_key: str, file: Path) -> None:
    other = release.encrypt(old_key, "other", "other = 1\n")
    for ours, theirs in ((file, other), (other, file)):
        swapped = with_slot(ours.read_bytes(), header_of(theirs).slot)
        with pytest.raises(PackageTamperedError):
            release.contents(swapped)


def parents_slot(release: Release, header: PackageHeader, data_key: bytes) -> KeySlot:
    """A data key of the parent's under a KMS key of its own, for a label of somebody else's."""
    client = release.cloud.host
    arn = client.create_key()["KeyMetadata"]["Arn"]
    sealed = client.encrypt(
        KeyId=arn, Plaintext=data_key, EncryptionContext=header.encryption_context
    )
    return KeySlot(arn, sealed["CiphertextBlob"])


def test_a_data_key_of_the_parents(release: Release, file: Path) -> None:
    """KMS gives the enclave that key, for it is the parent's to give; the label refuses it."""
    data = file.read_bytes()
    slot = parents_slot(release, decode_header(data), secrets.token_bytes(32))
    assert len(release.release(decode_header(with_slot(data, slot)))) == 32
    with pytest.raises(PackageTamperedError, match="data key does not fit"):
        release.contents(with_slot(data, slot))


def forged(release: Release, header: PackageHeader, *, keep_label: bool) -> bytes:
    """Another body, encrypted properly, under the label of `header` or one that differs little."""
    key, source = secrets.token_bytes(32), b"steal = 1\n"
    entries = [Entry("module.py", len(source))]
    label = header.label
    if not keep_label:
        label = msgspec.structs.replace(label, data_key_commitment=commit_data_key(key))
    assert archive_size(entries) <= label.archive_bytes
    padded = [Entry("module.py", 48_000)]
    assert archive_size(padded) == label.archive_bytes
    encoded = encode_header(label, KeySlot(header.kms_key_arn, b"x"))
    slot = parents_slot(release, decode_header(encoded), key)
    made = encode_header(label, slot)
    encryptor = Encryptor(key, decode_header(made).context)
    content = source + b"#" * (48_000 - len(source))
    pieces = encode_archive(padded, lambda _entry: [content])
    sealed = b"".join(bytes(encryptor.update(piece)) for piece in pieces)
    return made + sealed + encryptor.finalize()


def test_a_body_of_the_parents_under_the_publishers_label(release: Release, file: Path) -> None:
    """The whole file but its label is the parent's: only the label's commitment tells."""
    header = header_of(file)
    with pytest.raises(PackageTamperedError, match="data key does not fit"):
        release.contents(forged(release, header, keep_label=True))
    # The control: with a label of its own it opens, and that label no publisher signed.
    own = forged(release, header, keep_label=False)
    assert release.contents(own).startswith(b"steal = 1\n")
    assert decode_header(own).label_bytes != header.label_bytes
    assert encode_label(decode_header(own).label) == decode_header(own).label_bytes
    assert encryption_context(header.label, header.label_bytes) == header.encryption_context


def test_the_parent_cannot_rekey(release: Release, file: Path) -> None:
    header = header_of(file)
    own = release.cloud.host.create_key()["KeyMetadata"]["Arn"]
    code = error_code(
        release.cloud.host.re_encrypt,
        CiphertextBlob=header.wrapped_key,
        SourceEncryptionContext=header.encryption_context,
        DestinationKeyId=own,
    )
    assert code == "AccessDeniedException"
