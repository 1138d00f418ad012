"""THREATS E.13: who gets a data key. A real software NSM, and the local cloud's KMS.

What only AWS's own KMS and a real enclave can show is not here: see docs/threat_model.md.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_encryption.publisher_keys import make_key
from enclave_infra.local_cloud.identities import HOST_SECRET_ACCESS_KEY
from enclave_kernel.__main__ import main
from enclave_kernel.key_release_errors import (
    KeyReleaseDeniedError,
    KeyReleaseError,
    PackageExpiredError,
    WrongEnvironmentError,
)
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.supervisor.app import Supervisor, SupervisorOptions
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.channel_binding import channel_user_data, public_key_of
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import encode_frame
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.kms_cms import decrypt_cms
from enclave_protocol.messages import (
    Attest,
    Attested,
    Envelope,
    encode,
)
from enclave_protocol.package_errors import PackageTamperedError
from enclave_protocol.package_header import (
    PackageHeader,
    decode_header,
    encode_header,
    encryption_context,
)
from enclave_protocol.package_label import encode_label
from tests.redteam import attacks, kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import NotebookPlace, Place, achieved
from tests.support.example_package import FILES, make_label
from tests.support.local_services import (
    HOST_CREDENTIALS,
    TEST_PCR0,
    LocalCloudProcess,
    SoftwareNsmProcess,
    local_cloud,
    release_policy,
    software_nsm,
)
from tests.support.package_owner import PUBLISHER, PackageOwner, open_folder, write_package
from tests.support.process_memory import occurrences
from tests.support.supervisor_process import hangs_up


@dataclass(frozen=True)
class Aws:
    """An NSM and a KMS that trusts it."""

    nsm: SoftwareNsmProcess
    cloud: LocalCloudProcess
    pool: RsaPool
    folder: Path

    def package(self, name: str = "scorer", pcr0: str = TEST_PCR0) -> tuple[PackageHeader, bytes]:
        """Return a header, and its data key, of a package under a new KMS key."""
        arn = self.cloud.owner.create_key(Policy=release_policy(pcr0))["KeyMetadata"]["Arn"]
        return self.wrapped(arn, name)

    def wrapped(self, arn: str, name: str) -> tuple[PackageHeader, bytes]:
        key = secrets.token_bytes(32)
        label = make_label(FILES, name, key)
        context = encryption_context(label, encode_label(label))
        answer = self.cloud.owner.encrypt(KeyId=arn, Plaintext=key, EncryptionContext=context)
        slot = KeySlot(arn, answer["CiphertextBlob"])
        return decode_header(encode_header(label, slot)), key

    def release(
        self,
        header: PackageHeader,
        nsm: SoftwareNsmProcess | None = None,
        clock: TrustedClock | None = None,
    ) -> bytes:
        with NsmClient.open((nsm or self.nsm).endpoint) as client:
            return bytes(
                release_data_key(
                    header,
                    nsm=client,
                    keys=self.pool,
                    credentials=HOST_CREDENTIALS,
                    endpoint_url=self.cloud.endpoint_url,
                    clock=clock or TrustedClock(),
                )
            )

    def decrypt(self, header: PackageHeader, **recipient: Any) -> dict[str, Any]:
        """What root on the parent does with the credentials it has."""
        return dict(
            self.cloud.host.decrypt(
                CiphertextBlob=header.wrapped_key,
                KeyId=header.kms_key_arn,
                EncryptionContext=header.encryption_context,
                **recipient,
            )
        )


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    folder = tmp_path_factory.mktemp("aws")
    with (
        software_nsm(folder) as nsm,
        local_cloud(folder, root_cert=nsm.root_cert) as cloud,
        RsaPool(2) as pool,
    ):
        yield Aws(nsm, cloud, pool, folder)


def code_of(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


def document_for(aws: Aws, key: rsa.RSAPrivateKey) -> bytes:
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with NsmClient.open(aws.nsm.endpoint) as client:
        return client.attest(public_key=public)


def recipient(document: bytes) -> dict[str, Any]:
    return {
        "Recipient": {
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": document,
        }
    }


def test_the_approved_enclave_gets_its_key(aws: Aws) -> None:
    """The control for everything below."""
    header, key = aws.package()
    assert aws.release(header) == key


@needs_root
def test_a01_a02_the_device(arena: Arena, hostile: Place) -> None:
    outcome = hostile.run(kernel_attacks.make_devices)
    assert outcome["/dev/nsm"] == "ENOENT" and outcome["/dev/vsock"] == "ENOENT"
    assert outcome["mknod nsm"] == "EPERM"
    assert achieved(arena.plain(private_mounts=True).run(kernel_attacks.make_devices)) >= {
        "mknod nsm"
    }


@needs_root
def test_a01_the_software_nsm(aws: Aws, modern: Arena, user: NotebookPlace) -> None:
    """The chain that makes it matter, from an NSM that can be reached; and that it cannot be."""
    header, key = aws.package()
    own = rsa.generate_private_key(65537, 2048)
    answer = aws.decrypt(header, **recipient(document_for(aws, own)))
    assert bytes(decrypt_cms(own, answer["CiphertextForRecipient"])) == key
    socket = modern.supervisor.path.with_name("nsm.sock")
    assert socket.exists()
    for place in (modern.vault, user, modern.plain(1_980_004)):
        assert achieved(place.run(attacks.connect_to, [str(socket)])) == set()
    assert achieved(modern.plain().run(attacks.connect_to, [str(socket)]))


def test_a03_without_attestation(aws: Aws) -> None:
    header, _ = aws.package()
    with pytest.raises(ClientError) as denied:
        aws.decrypt(header)
    assert code_of(denied.value) == "AccessDeniedException"
    # A policy that forgot the condition is what this test would notice.
    open_policy = release_policy(TEST_PCR0, with_attestation=False)
    arn = aws.cloud.owner.create_key(Policy=open_policy)["KeyMetadata"]["Arn"]
    careless, key = aws.wrapped(arn, "careless")
    assert aws.decrypt(careless)["Plaintext"] == key


def test_a04_the_key_of_another_package(aws: Aws) -> None:
    arn = aws.cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
    first, _ = aws.wrapped(arn, "first")
    second, _ = aws.wrapped(arn, "second")
    mixed = decode_header(encode_header(first.label, second.slot))
    with pytest.raises(PackageTamperedError):
        aws.release(mixed)


@needs_root
def test_a05_a_package_of_somebody_elses(notebook: HostileNotebook) -> None:
    """Own code, own KMS key that approves this enclave, the publisher's name: it is not loaded."""
    home, folder = notebook.home, notebook.folder
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    stranger = folder / "stranger.key"
    make_key(stranger, None, force=False)
    source = {
        "enclave.toml": '[package]\nname = "marked"\nversion = "9"\nmodule = "evil"\n'
        f'publisher = "{PUBLISHER}"\n[exports]\nfunctions = {{ f = "f()" }}\n',
        "evil.py": "def f():\n    return 'mine'\n",
    }
    with open_folder() as work:
        package = write_package(work / "evil", source)
        arn = owner.new_key(status["pcrs"]["0"])
        owner.encrypt(package, arn, folder / "evil.encrypted", sign_with=stranger)
        (work / "bare").mkdir()
        (work / "bare" / "evil.py").write_text(source["evil.py"])
        owner.encrypt(work / "bare", arn, folder / "bare.encrypted")
    for line, error in (
        ("%load_encrypted evil.encrypted", "PublisherChangedError"),
        ("%load_encrypted evil.encrypted --unsigned", "PublisherChangedError"),
        ("%load_encrypted bare.encrypted as evil", "UnsignedPackageError"),
    ):
        shown = notebook.cell(line)
        assert error in shown.text + shown.error + shown.message, shown
        assert notebook.cell("evil").error == "NameError"
    # The positive control: what the refusal says to type is what it takes.
    assert notebook.cell("%load_encrypted bare.encrypted as evil --unsigned").error == ""
    notebook.cell("%unload_encrypted evil")


def test_a15_a_clock_that_is_turned(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiry goes by documents, which the parent does not write, and never back."""
    arn = aws.cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
    header, key = aws.wrapped(arn, "expiring")
    policy = msgspec.structs.replace(header.label.policy, expires="2020-01-01T00:00:00Z")
    expired = replace(header, label=msgspec.structs.replace(header.label, policy=policy))
    with pytest.raises(PackageExpiredError):
        aws.release(expired)
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("enclave_kernel.trusted_clock.time.time", lambda: 0.0)
    clock = TrustedClock()
    with pytest.raises(PackageExpiredError):
        aws.release(expired, clock=clock)
    monkeypatch.undo()
    assert aws.release(header) == key


def test_a06_the_endpoint_is_not_the_parents_to_choose(aws: Aws) -> None:
    """The endpoint follows from the key's region; plain HTTP takes an option for development."""
    options = ["--listen", "vsock:1", "--runtime-dir", "/nowhere"]
    with pytest.raises(SystemExit):
        main([*options, "--kms-endpoint-url", "http://x"])
    header, _ = aws.package()
    assert header.kms_key_arn.split(":")[3] == header.region


def test_a07_an_answer_that_was_given_before(aws: Aws) -> None:
    header, key = aws.package()
    first = rsa.generate_private_key(65537, 2048)
    answer = aws.decrypt(header, **recipient(document_for(aws, first)))["CiphertextForRecipient"]
    assert bytes(decrypt_cms(first, answer)) == key
    with pytest.raises(EnclaveError):
        decrypt_cms(rsa.generate_private_key(65537, 2048), answer)
    pairs = {aws.pool.get().public_key().public_numbers().n for _ in range(4)}
    assert len(pairs) == 4


async def test_a08_o07_debug_mode(aws: Aws) -> None:
    """Its console can be read: KMS refuses its zeroes for a PCR0, and the enclave does not ask."""
    header, _ = aws.package()
    with software_nsm(
        aws.folder, debug=True, name="debug.sock", root_dir=aws.folder / "root"
    ) as nsm:
        with NsmClient.open(nsm.endpoint) as client:
            assert not any(client.describe_pcr(0)[1])
        with pytest.raises(KeyReleaseDeniedError):
            aws.release(header, nsm)
        options = SupervisorOptions(
            listen=f"unix:{aws.folder}/s", nsm=nsm.endpoint, runtime_dir=aws.folder
        )
        supervisor = Supervisor(options)
        try:
            with pytest.raises(WrongEnvironmentError, match="console can be read"):
                await supervisor._release_key(header)
        finally:
            await supervisor._close()


def test_g06_an_enclave_that_vouches_for_itself(aws: Aws) -> None:
    """A developer's has a root of its own: a KMS that trusts another one releases it no key."""
    header, _ = aws.package()
    with software_nsm(aws.folder, name="mine.sock", root_dir=aws.folder / "mine") as nsm:
        assert nsm.pcr0 == aws.nsm.pcr0
        with pytest.raises(KeyReleaseError):
            aws.release(header, nsm)


def test_a09_an_image_that_was_withdrawn(aws: Aws) -> None:
    header, key = aws.package()
    assert aws.release(header) == key
    aws.cloud.owner.put_key_policy(
        KeyId=header.kms_key_arn, PolicyName="default", Policy=release_policy("ab" * 48)
    )
    with pytest.raises(KeyReleaseDeniedError):
        aws.release(header)


def test_a10_a_version_that_was_revoked(aws: Aws) -> None:
    """The enclave remembers nothing: the owner denies the old version's encryption context."""
    arn = aws.cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
    old, key = aws.wrapped(arn, "versioned")
    assert aws.release(old) == key
    policy = json.loads(release_policy(TEST_PCR0))
    context = old.encryption_context
    name = next(iter(context))
    policy["Statement"].append(
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "kms:Decrypt",
            "Resource": "*",
            "Condition": {"StringEquals": {f"kms:EncryptionContext:{name}": context[name]}},
        }
    )
    aws.cloud.owner.put_key_policy(KeyId=arn, PolicyName="default", Policy=json.dumps(policy))
    with pytest.raises(KeyReleaseDeniedError):
        aws.release(old)
    newer, key = aws.wrapped(arn, "another")
    assert aws.release(newer) == key


def test_a11_each_package_has_its_own_key(aws: Aws) -> None:
    arn = aws.cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
    folder = write_package(aws.folder / "same", {"same.py": "x = 1\n"})
    owner = PackageOwner(aws.cloud.endpoint_url)
    made = [owner.encrypt(folder, arn, aws.folder / f"{n}.encrypted") for n in range(3)]
    commitments = {decode_header(path.read_bytes()).label.data_key_commitment for path in made}
    assert len(commitments) == 3


@needs_root
def test_a12_credentials(notebook: HostileNotebook) -> None:
    """The instance role's secret is in no process that a user or an owner can read."""
    secret = HOST_SECRET_ACCESS_KEY.encode()
    assert occurrences(notebook.pid, secret) == 0
    assert occurrences(notebook.vault_pid, secret) == 0
    pids = notebook.home.status()["pids"]
    assert any(occurrences(pid, secret) for name, pid in pids.items() if name == "cloud")
    code = "print(sorted(name for name in os.environ if 'AWS' in name or 'SECRET' in name))"
    assert notebook.cell(code).text.strip() == "[]"


@needs_root
def test_a13_attestation_on_request(modern: Arena) -> None:
    """A control stream gets a nonce attested for the supervisor's own TLS key, and no other."""
    with modern.supervisor.control() as control:
        attested = control.request(Attest(nonce=b"n" * 32))
        assert isinstance(attested, Attested)
        document = decode_signed_document(attested.document).document
        own = public_key_of(control.sock.getpeercert(binary_form=True) or b"")
        assert (document.nonce, document.public_key) == (b"n" * 32, None)
        assert document.user_data == channel_user_data(own)
    asked = msgspec.msgpack.decode(encode(Envelope(body=Attest(nonce=b"n" * 32), request_id=1)))
    asked["body"] |= {"public_key": b"k" * 294}
    with modern.supervisor.control() as control:
        control.sock.sendall(encode_frame(msgspec.msgpack.encode(asked)))
        assert hangs_up(control.sock)


def test_a14_another_key_in_the_key_slot(aws: Aws) -> None:
    header, _ = aws.package()
    other = aws.cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
    swapped = KeySlot(other, header.wrapped_key)
    with pytest.raises(PackageTamperedError):
        aws.release(decode_header(encode_header(header.label, swapped)))
