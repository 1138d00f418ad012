"""The local cloud as boto3 sees it: keys, cryptography and attested answers."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_infra.local_cloud.ciphertext import wrap
from enclave_protocol.kms_cms import decrypt_cms
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents
from tests.support.kms_keys import error_code, host_may, new_key, root_file, spki
from tests.support.local_services import (
    OWNER_CREDENTIALS,
    LocalCloudProcess,
    kms_client,
    local_cloud,
    release_policy,
)

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> DocumentMaker:
    return make_documents(tmp_path_factory.mktemp("nsm") / "root", datetime.now(UTC))


@pytest.fixture(scope="module")
def cloud(
    tmp_path_factory: pytest.TempPathFactory, maker: DocumentMaker
) -> Iterator[LocalCloudProcess]:
    directory = tmp_path_factory.mktemp("cloud")
    with local_cloud(directory, root_cert=root_file(directory, maker)) as running:
        yield running


@pytest.fixture
def attest(maker: DocumentMaker) -> Callable[..., dict[str, Any]]:
    def recipient(key: Any = _KEY, *, age: timedelta = timedelta()) -> dict[str, Any]:
        maker.now = datetime.now(UTC) - age
        return {
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": maker.document(public_key=spki(key)),
        }

    return recipient


# Keys and ARNs


def test_a_key_belongs_to_its_maker(cloud: LocalCloudProcess) -> None:
    metadata = cloud.owner.create_key(Policy=release_policy(PCR0.hex()))["KeyMetadata"]
    assert metadata["AWSAccountId"] == "111111111111"
    assert metadata["Arn"] == f"arn:aws:kms:us-east-1:111111111111:key/{metadata['KeyId']}"
    frankfurt = kms_client(cloud.endpoint_url, OWNER_CREDENTIALS, "eu-central-1")
    arn = frankfurt.create_key()["KeyMetadata"]["Arn"]
    assert arn.startswith("arn:aws:kms:eu-central-1:111111111111:key/")
    assert error_code(cloud.owner.describe_key, KeyId=arn) == "NotFoundException"
    assert frankfurt.describe_key(KeyId=arn)["KeyMetadata"]["Arn"] == arn


def test_every_name_of_a_key(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    alias = f"alias/{arn[-8:]}"
    cloud.owner.create_alias(AliasName=alias, TargetKeyId=arn)
    assert error_code(cloud.owner.create_alias, AliasName=alias, TargetKeyId=arn) == (
        "AlreadyExistsException"
    )
    alias_arn = arn.rpartition(":")[0] + ":" + alias
    for name in (arn, arn.rpartition("/")[2], alias, alias_arn):
        assert cloud.owner.encrypt(KeyId=name, Plaintext=b"x")["KeyId"] == arn
    assert alias in {found["AliasName"] for found in cloud.owner.list_aliases()["Aliases"]}
    cloud.owner.delete_alias(AliasName=alias)
    assert error_code(cloud.owner.describe_key, KeyId=alias) == "NotFoundException"


@pytest.mark.parametrize("name", ["alias/none", "0" * 36, "arn:aws:kms:us-east-1:1:key/x", "?"])
def test_unknown_names(cloud: LocalCloudProcess, name: str) -> None:
    assert error_code(cloud.owner.describe_key, KeyId=name) == "NotFoundException"


def test_keys_it_cannot_keep_are_refused(cloud: LocalCloudProcess) -> None:
    for arguments in ({"KeySpec": "RSA_2048"}, {"MultiRegion": True}, {"Origin": "EXTERNAL"}):
        code = error_code(cloud.owner.create_key, **arguments)
        assert code == "UnsupportedOperationException"


# Cryptography


def test_encryption_context_is_bound_pair_by_pair(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x", EncryptionContext={"a": "bc"})
    blob_bytes = blob["CiphertextBlob"]
    opened = cloud.owner.decrypt(CiphertextBlob=blob_bytes, EncryptionContext={"a": "bc"})
    assert (opened["Plaintext"], opened["KeyId"]) == (b"x", arn)
    for context in ({}, {"ab": "c"}, {"a": "bd"}, {"a": "bc", "d": "e"}):
        code = error_code(cloud.owner.decrypt, CiphertextBlob=blob_bytes, EncryptionContext=context)
        assert code == "InvalidCiphertextException"


def test_re_encrypt_needs_both_keys(cloud: LocalCloudProcess) -> None:
    source = new_key(cloud, host_may("kms:ReEncryptFrom"))
    closed, target = new_key(cloud), new_key(cloud, host_may("kms:ReEncryptTo"))
    blob = cloud.owner.encrypt(KeyId=source, Plaintext=b"x")["CiphertextBlob"]

    def move(client: "KMSClient", key: str) -> bytes:
        return client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key)["CiphertextBlob"]

    assert error_code(move, cloud.host, closed) == "AccessDeniedException"
    moved = move(cloud.host, target)
    assert cloud.owner.decrypt(CiphertextBlob=moved)["KeyId"] == target


def test_wrong_key_id(cloud: LocalCloudProcess) -> None:
    first, second = new_key(cloud), new_key(cloud)
    blob = cloud.owner.encrypt(KeyId=first, Plaintext=b"x")["CiphertextBlob"]
    code = error_code(cloud.owner.decrypt, CiphertextBlob=blob, KeyId=second)
    assert code == "IncorrectKeyException"


@pytest.mark.parametrize(
    "blob",
    [b"x", b"\1\0\0", b"\1\xff\xffarn", wrap(bytes(32), "arn:aws:kms:x", {}, b"x")],
    ids=["one byte", "no name", "long name", "unknown key"],
)
def test_blobs_of_nobody(cloud: LocalCloudProcess, blob: bytes) -> None:
    code = error_code(cloud.owner.decrypt, CiphertextBlob=blob)
    assert code in ("InvalidCiphertextException", "NotFoundException")


# Attested operations


def test_attested_operations_give_no_plaintext(
    cloud: LocalCloudProcess, attest: Callable[..., Any]
) -> None:
    arn = new_key(cloud)
    owner, recipient = cloud.owner, attest()
    made = owner.generate_data_key(KeyId=arn, KeySpec="AES_256", Recipient=recipient)
    assert not made.get("Plaintext")
    data_key = decrypt_cms(_KEY, made["CiphertextForRecipient"])
    assert data_key == owner.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"]
    opened = owner.decrypt(CiphertextBlob=made["CiphertextBlob"], Recipient=recipient)
    assert "Plaintext" not in opened
    assert decrypt_cms(_KEY, opened["CiphertextForRecipient"]) == data_key
    drawn = owner.generate_random(NumberOfBytes=1024, Recipient=recipient)
    assert "Plaintext" not in drawn
    assert len(decrypt_cms(_KEY, drawn["CiphertextForRecipient"])) == 1024
    pair = owner.generate_data_key_pair(KeyId=arn, KeyPairSpec="RSA_2048", Recipient=recipient)
    assert "PrivateKeyPlaintext" not in pair
    private = serialization.load_der_private_key(
        bytes(decrypt_cms(_KEY, pair["CiphertextForRecipient"])), None
    )
    assert spki(private) == pair["PublicKey"]


def test_the_same_operations_without_recipient(cloud: LocalCloudProcess) -> None:
    arn, owner = new_key(cloud), cloud.owner
    made = owner.generate_data_key(KeyId=arn, NumberOfBytes=48)
    assert len(made["Plaintext"]) == 48
    hidden = owner.generate_data_key_without_plaintext(KeyId=arn, KeySpec="AES_128")
    assert "Plaintext" not in hidden
    assert len(owner.decrypt(CiphertextBlob=hidden["CiphertextBlob"])["Plaintext"]) == 16
    assert len(owner.generate_random(NumberOfBytes=7)["Plaintext"]) == 7
    pair = owner.generate_data_key_pair(KeyId=arn, KeyPairSpec="ECC_NIST_P384")
    private = serialization.load_der_private_key(pair["PrivateKeyPlaintext"], None)
    assert spki(private) == pair["PublicKey"]
    sealed = owner.generate_data_key_pair_without_plaintext(KeyId=arn, KeyPairSpec="RSA_2048")
    assert "PrivateKeyPlaintext" not in sealed


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda attest: attest(age=timedelta(minutes=6)), id="6 minutes old"),
        pytest.param(lambda attest: attest(age=-timedelta(minutes=6)), id="from the future"),
        pytest.param(
            lambda attest: attest(ec.generate_private_key(ec.SECP384R1())), id="no RSA key"
        ),
        pytest.param(lambda attest: attest(rsa.generate_private_key(65537, 3072)), id="RSA-3072"),
        pytest.param(
            lambda attest: attest() | {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1"}, id="SHA-1"
        ),
        pytest.param(lambda attest: attest() | {"AttestationDocument": b"x"}, id="no document"),
        pytest.param(
            lambda attest: (
                attest() | {"AttestationDocument": attest()["AttestationDocument"][:-1] + b"\0"}
            ),
            id="altered signature",
        ),
    ],
)
def test_bad_recipients(
    cloud: LocalCloudProcess, attest: Callable[..., Any], break_it: Callable[..., Any]
) -> None:
    recipient = break_it(attest)
    assert (
        error_code(cloud.owner.generate_random, NumberOfBytes=8, Recipient=recipient)
        == "ValidationException"
    )


def test_attestation_conditions(cloud: LocalCloudProcess, attest: Callable[..., Any]) -> None:
    good, bad = PCR0.hex(), "0b" * 48
    image, pcr = "kms:RecipientAttestation:ImageSha384", "kms:RecipientAttestation:PCR"
    empty = "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba6"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"StringEqualsIgnoreCase": {image: good.upper()}}, "", "AccessDeniedException"),
        ({"StringEquals": {image: bad}}, "AccessDeniedException", "AccessDeniedException"),
        ({"StringEquals": {f"{pcr}0": good}}, "", "AccessDeniedException"),
        (
            {"StringEquals": {f"{pcr}0": good}, "StringLike": {f"{pcr}2": empty + "*"}},
            *("", "AccessDeniedException"),
        ),
        ({"StringEquals": {f"{pcr}8": bad}}, "AccessDeniedException", "AccessDeniedException"),
        ({"Null": {image: "true"}}, "AccessDeniedException", ""),
        ({"StringNotEquals": {image: bad}}, "", ""),
    ]
    for condition, attested, plain in cases:
        arn = new_key(cloud, host_may("kms:Decrypt", **condition))
        blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
        with_document = error_code(cloud.host.decrypt, CiphertextBlob=blob, Recipient=attest())
        without = error_code(cloud.host.decrypt, CiphertextBlob=blob)
        assert (with_document, without) == (attested, plain), condition


def test_context_conditions(cloud: LocalCloudProcess) -> None:
    condition = {
        "StringEquals": {"kms:EncryptionContext:package": "scorer"},
        "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["package", "version"]},
    }
    arn = new_key(cloud, host_may("kms:Encrypt", **condition))
    contexts: list[tuple[dict[str, str], str]] = [
        ({"package": "scorer"}, ""),
        ({"package": "scorer", "version": "1"}, ""),
        ({"package": "scorer", "other": "1"}, "AccessDeniedException"),
        ({"package": "Scorer"}, "AccessDeniedException"),
        ({}, "AccessDeniedException"),
    ]
    for context, expected in contexts:
        code = error_code(cloud.host.encrypt, KeyId=arn, Plaintext=b"x", EncryptionContext=context)
        assert code == expected, context
