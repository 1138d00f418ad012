"""`enclave-owner key-policy` writes policies; the local KMS and attested releases obey them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.key_release_errors import KeyReleaseDeniedError
from tests.support.kms_keys import error_code
from tests.support.local_services import HOST_ROLE_ARN, OWNER_ROLE_ARN
from tests.support.released_package import (
    NEW_PCR0,
    OLD_PCR0,
    Release,
    header_of,
    running_release,
)

FIRST = ("--pcr0", OLD_PCR0, "--principal", HOST_ROLE_ARN)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with running_release(tmp_path_factory.mktemp("release")) as running:
        yield running


def released_to(release: Release, file: Any) -> list[str]:
    """The enclaves that get the key, each asked for real."""
    found = []
    for name in release.nsms:
        try:
            found.append(name) if release.contents(file, name) else None
        except KeyReleaseDeniedError:
            continue
    return found


def without_attestation(release: Release, file: Any, who: str) -> Callable[[], object]:
    header = header_of(file)
    client = release.cloud.host if who == "host" else release.cloud.owner
    return lambda: client.decrypt(
        CiphertextBlob=header.wrapped_key,
        KeyId=header.kms_key_arn,
        EncryptionContext=header.encryption_context,
    )


def test_from_the_default_policy_to_a_release(release: Release) -> None:
    arn = release.new_key()
    file = release.encrypt(arn, "first")
    before = release.policy(arn)
    # KMS's default policy: the account decrypts without any enclave.
    assert error_code(without_attestation(release, file, "owner")) == ""
    assert "Around attestation" in release.owner("key-policy", "-k", arn, code=1)

    refused = release.owner("key-policy", "-k", arn, *FIRST, "--apply", code=1)
    assert "--narrow" in refused and "Enable IAM" in refused
    assert release.policy(arn) == before

    shown = release.owner("key-policy", "-k", arn, *FIRST, "--narrow")
    assert "+" in shown and OLD_PCR0 in shown and "--apply puts this policy" in shown
    assert release.policy(arn) == before

    release.owner("key-policy", "-k", arn, *FIRST, "--narrow", "--apply")
    assert released_to(release, file) == ["old"]
    for who in ("owner", "host"):
        assert error_code(without_attestation(release, file, who)) == "AccessDeniedException"
    release.owner("key-policy", "-k", arn)
    assert "already so" in release.owner("key-policy", "-k", arn, *FIRST, "--apply")
    # The owner still manages the key and encrypts with it.
    assert release.contents(release.encrypt(arn, "second", "y = 2\n")) == b"y = 2\n"


def test_rolling_images_and_revocation(release: Release) -> None:
    arn = release.release_key()
    file = release.encrypt(arn, "rolling")
    assert released_to(release, file) == ["old"]
    release.owner("key-policy", "-k", arn, "--add-pcr0", NEW_PCR0, "--apply")
    assert released_to(release, file) == ["old", "new"]
    release.owner("key-policy", "-k", arn, "--remove-pcr0", OLD_PCR0, "--apply")
    assert released_to(release, file) == ["new"]
    release.owner("key-policy", "-k", arn, "--remove-pcr0", NEW_PCR0, "--apply")
    assert released_to(release, file) == []


def test_the_refusal_in_the_enclave_says_what_the_owner_would_run(release: Release) -> None:
    arn = release.release_key()
    file = release.encrypt(arn, "asked")
    with pytest.raises(KeyReleaseDeniedError) as caught:
        release.contents(file, "new")
    command = str(caught.value).partition("run: enclave-owner ")[2]
    release.owner(*command.split())
    assert released_to(release, file) == ["old", "new"]
    with pytest.raises(KeyReleaseDeniedError, match="debug mode"):
        release.contents(file, "debug")


def test_the_encryption_context(release: Release) -> None:
    arn = release.release_key()
    ours, other = release.encrypt(arn, "ours"), release.encrypt(arn, "other")
    release.owner("key-policy", "-k", arn, "--context", "package=ours", "--apply")
    assert released_to(release, ours) == ["old"]
    assert released_to(release, other) == []
    # Under another context than the package's own KMS opens nothing, whatever the policy says.
    header = header_of(other)
    context = {**header.encryption_context, "package": "ours"}
    release.owner("key-policy", "-k", arn, "--context", "package=", "--apply")
    code = error_code(
        release.cloud.owner.decrypt,
        CiphertextBlob=header.wrapped_key,
        EncryptionContext=context,
    )
    assert code == "AccessDeniedException"
    assert released_to(release, other) == ["old"]


def test_a_revoked_package(release: Release) -> None:
    arn = release.release_key()
    bad, good = release.encrypt(arn, "bad"), release.encrypt(arn, "good")
    version = header_of(bad).label.package.version
    release.owner("key-policy", "-k", arn, "--revoke-package", f"bad:{version}", "--apply")
    assert (released_to(release, bad), released_to(release, good)) == ([], ["old"])
    release.owner("key-policy", "-k", arn, "--restore-package", f"bad:{version}", "--apply")
    assert released_to(release, bad) == ["old"]


def test_checks_foretell_what_kms_does(release: Release) -> None:
    arn = release.release_key()
    file = release.encrypt(arn, "foretold")
    context = [f"{k}={v}" for k, v in header_of(file).encryption_context.items()]
    options = [part for pair in context for part in ("--context", pair)]

    def check(pcr0: str, code: int) -> Any:
        command = ("key-policy", "-k", arn, "--check", "--pcr0", pcr0, *options, "--json")
        (answer,) = json.loads(release.owner(*command, code=code))["checks"]
        return answer

    old = check(OLD_PCR0, 0)
    assert old["principal"] == HOST_ROLE_ARN
    assert old["attested"]["statement"] == "EnclaveRelease"
    assert old["attested"]["needs_iam"]  # the parent is in another account
    assert not old["unattested"]["allowed"] and not old["debug"]["allowed"]
    new = check(NEW_PCR0, 1)
    assert (new["attested"]["allowed"], new["attested"]["statement"]) == (
        False,
        "EnclaveDenyUnattested",
    )
    assert released_to(release, file) == ["old"]
    text = release.owner("key-policy", "-k", arn, "--check", "--pcr0", OLD_PCR0)
    assert "in the enclave" in text and 'allowed by "EnclaveRelease"' in text
    # A policy that somebody opened: released, but not only to the enclave.
    wide = release.new_key()
    command = ("key-policy", "-k", wide, "--check", "--pcr0", OLD_PCR0)
    release.owner(*command, "--principal", OWNER_ROLE_ARN, code=3)
    release.owner(*command, code=2)  # nobody to ask for


def test_a_grant_is_no_way_around(release: Release) -> None:
    """Where the owner keeps CreateGrant: the Deny stops the grant, and nothing else would."""
    arn = release.new_key()
    file = release.encrypt(arn, "granted")
    release.owner("key-policy", "-k", arn, *FIRST, "--apply", "--allow-widening")
    release.cloud.owner.create_grant(
        KeyId=arn, GranteePrincipal=HOST_ROLE_ARN, Operations=["Decrypt", "ReEncryptFrom"]
    )
    stolen = without_attestation(release, file, "host")
    header = header_of(file)
    own = release.cloud.host.create_key()["KeyMetadata"]["Arn"]

    def moved() -> object:
        return release.cloud.host.re_encrypt(
            CiphertextBlob=header.wrapped_key,
            SourceEncryptionContext=header.encryption_context,
            DestinationKeyId=own,
        )

    assert error_code(stolen) == error_code(moved) == "AccessDeniedException"
    assert released_to(release, file) == ["old"]
    # The control: without the Deny both ways are open.
    policy = json.loads(release.policy(arn))
    policy["Statement"] = [s for s in policy["Statement"] if s["Sid"] != "EnclaveDenyUnattested"]
    release.cloud.owner.put_key_policy(KeyId=arn, PolicyName="default", Policy=json.dumps(policy))
    assert error_code(stolen) == error_code(moved) == ""
    assert "no statement denies" in release.owner("key-policy", "-k", arn, code=1)


def test_revoking_is_never_refused(release: Release) -> None:
    """A policy that is wide already is no reason to leave an image in it."""
    arn = release.new_key()
    file = release.encrypt(arn, "wide")
    release.owner("key-policy", "-k", arn, *FIRST, "--apply", "--allow-widening")
    assert released_to(release, file) == ["old"]
    release.owner("key-policy", "-k", arn, "--remove-pcr0", OLD_PCR0, "--apply")
    assert released_to(release, file) == []


def test_json_for_scripts(release: Release) -> None:
    arn = release.new_key()
    command = ("key-policy", "-k", arn, *FIRST, "--json")
    result = release.owner(*command, code=1)
    answer, end = json.JSONDecoder().raw_decode(result)
    assert answer["changes"] and not answer["applied"]
    assert {f["action"] for f in answer["findings"]} >= {"kms:Decrypt", "kms:CreateGrant"}
    assert "refused" in result[end:]
    answer = json.loads(release.owner(*command, "--narrow", "--apply"))
    assert answer["applied"] and not answer["findings"]
    assert answer["policy"] == json.loads(release.policy(arn))
    assert json.loads(release.owner("key-policy", "-k", arn, "--json"))["findings"] == []


def test_a_policy_in_a_file(release: Release, tmp_path: Path) -> None:
    """Nothing is asked of KMS: there is no such endpoint."""
    arn = release.release_key()
    file = tmp_path / "policy.json"
    file.write_text(release.policy(arn))
    nowhere = replace(release, cloud=replace(release.cloud, endpoint_url="http://127.0.0.1:9"))
    command = ("key-policy", "-k", arn, "--policy", file)
    nowhere.owner(*command, "--check", "--pcr0", OLD_PCR0)
    nowhere.owner(*command, "--check", "--pcr0", NEW_PCR0, code=1)
    assert NEW_PCR0 in nowhere.owner(*command, "--add-pcr0", NEW_PCR0)
    nowhere.owner(*command, "--add-pcr0", NEW_PCR0, "--apply", code=2)
    assert "full ARN" in nowhere.owner("key-policy", "-k", "alias/x", "--policy", file, code=1)


@pytest.mark.parametrize(
    ("options", "code", "needle"),
    [
        (("--pcr0", "00" * 48), 1, "debug mode"),
        (("--pcr0", "ab"), 1, "96 hex digits"),
        (("--pcr0", OLD_PCR0), 1, "--principal ARN"),
        (("--context", "package"), 1, "KEY=VALUE"),
        (("--remove-pcr0", OLD_PCR0), 1, "revoked already"),
        (("--check",), 2, "--pcr0"),
        (("--check", "--apply", "--pcr0", OLD_PCR0), 2, "only simulates"),
        (("--check", "--pcr0", OLD_PCR0, "--pcr0", NEW_PCR0), 2, "once"),
        (("--policy", "/dev/null"), 1, "no JSON"),
    ],
)
def test_wrong_use(
    release: Release, tmp_path: Path, options: tuple[str, ...], code: int, needle: str
) -> None:
    arn = release.new_key()
    file = tmp_path / "policy.json"
    file.write_text(release.policy(arn))
    printed = release.owner("key-policy", "-k", arn, "--policy", file, *options, code=code)
    assert needle in printed
    assert "Traceback" not in printed
