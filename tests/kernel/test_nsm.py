import ctypes
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from enclave_kernel import nsm as nsm_module
from enclave_kernel.nsm import NsmClient, NsmError, NsmRefusedError, NsmUnavailableError
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.nsm_messages import (
    NsmMessageError,
    PcrLocked,
    RandomBytes,
    decode_request,
    encode_response,
)
from tests.support.local_services import SoftwareNsmProcess, software_nsm


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareNsmProcess]:
    with software_nsm(tmp_path_factory.mktemp("nsm")) as running:
        yield running


@pytest.fixture
def client(service: SoftwareNsmProcess) -> Iterator[NsmClient]:
    with NsmClient.open(service.endpoint) as opened:
        yield opened


def test_attest(client: NsmClient, service: SoftwareNsmProcess) -> None:
    document = client.attest(public_key=b"k", user_data=b"u", nonce=b"n" * 32)
    root = x509.load_pem_x509_certificate(service.root_cert.read_bytes())
    content = verify_attestation(document, root=root, now=datetime.now(UTC), nonce=b"n" * 32)
    assert (content.public_key, content.user_data) == (b"k", b"u")
    assert content.pcrs[0].hex() == service.pcr0


def test_describe(client: NsmClient, service: SoftwareNsmProcess) -> None:
    described = client.describe()
    assert (described.max_pcrs, described.locked_pcrs) == (32, tuple(range(16)))
    assert client.describe_pcr(0) == (True, bytes.fromhex(service.pcr0))
    assert client.describe_pcr(31) == (False, bytes(48))


@pytest.mark.parametrize("count", [1, 256, 257, 1000])
def test_random(client: NsmClient, count: int) -> None:
    first, second = client.random(count), client.random(count)
    assert len(first) == len(second) == count
    assert count < 16 or first != second


@pytest.mark.parametrize("count", [0, -1, (1 << 20) + 1])
def test_random_count(client: NsmClient, count: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to"):
        client.random(count)


def test_refusal_carries_the_code(client: NsmClient) -> None:
    with pytest.raises(NsmRefusedError) as caught:
        client.describe_pcr(32)
    assert caught.value.code == "InvalidIndex"


def test_too_long_a_field_is_not_sent(client: NsmClient) -> None:
    with pytest.raises(NsmMessageError, match="public_key has 513 bytes"):
        client.attest(public_key=bytes(513))


def test_threads_share_a_client(client: NsmClient, service: SoftwareNsmProcess) -> None:
    root = x509.load_pem_x509_certificate(service.root_cert.read_bytes())
    found: list[bytes | None] = []

    def attest(number: int) -> None:
        document = client.attest(nonce=bytes((number,)) * 16)
        found.append(verify_attestation(document, root=root, now=datetime.now(UTC)).nonce)

    threads = [threading.Thread(target=attest, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(nonce for nonce in found if nonce) == [bytes((n,)) * 16 for n in range(8)]


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(NsmUnavailableError, match="is it running"):
        NsmClient.open(f"unix:{tmp_path / 'none.sock'}")


def test_service_ends(tmp_path: Path) -> None:
    with software_nsm(tmp_path) as running:
        client = NsmClient.open(running.endpoint)
        client.describe()
    with client, pytest.raises(NsmUnavailableError):
        client.describe()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\xff", NsmMessageError),
        (encode_response(PcrLocked()), NsmError),
        (encode_response(RandomBytes(b"r")) + b"\0", NsmMessageError),
        (bytes(0x3001), NsmMessageError),
    ],
    ids=["not CBOR", "answer to another request", "trailing byte", "too long"],
)
def test_a_lying_module(tmp_path: Path, answer: bytes, error: type[Exception]) -> None:
    path = str(tmp_path / "lying.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                decode_request(connection.recv(0x1001))
                connection.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with NsmClient.open(f"unix:{path}") as client, pytest.raises(error):
            client.random(1)
        thread.join()


def test_ioctl_number_and_argument() -> None:
    """`_IOWR(0x0A, 0, struct nsm_message)`, two iovecs, from the driver's header."""
    read_write, size = 3, ctypes.sizeof(nsm_module._Message)
    assert size == 32
    assert (read_write << 30 | size << 16 | 0x0A << 8) == nsm_module._IOCTL_REQUEST


def test_a_device_that_is_no_nsm() -> None:
    with (
        NsmClient.open("/dev/null") as client,
        pytest.raises(NsmUnavailableError, match="ioctl on /dev/null failed"),
    ):
        client.describe()


def test_no_device() -> None:
    with pytest.raises(NsmUnavailableError, match="cannot open /dev/no-nsm"):
        NsmClient.open("/dev/no-nsm")


@pytest.mark.skipif(not Path("/dev/nsm").exists(), reason="only an enclave has /dev/nsm")
def test_real_device() -> None:
    with NsmClient.open("/dev/nsm") as client:
        assert client.describe().max_pcrs == 32
        assert len(client.random(32)) == 32
