import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_infra.software_nsm.certificates import CertificateChain, RootError, load_root
from enclave_infra.software_nsm.measurement import (
    MeasurementError,
    extend,
    initial_pcrs,
    measure,
)
from enclave_infra.software_nsm.server import SocketInUseError, listen
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.nsm_messages import MAX_REQUEST_BYTES
from tests.support.attestation_documents import make_documents
from tests.support.local_services import TEST_PCR0, SoftwareNsmProcess, software_nsm

_ZERO = bytes(48)
_VECTORS = Path(__file__).parents[1] / "vectors" / "attestation"


# Measurement


def test_known_pcrs() -> None:
    """FACTS, "EIF version 4": an empty ramdisk's PCR2, and PCR3 of a role."""
    role = "arn:aws:iam::123456789012:role/Webserver"
    pcrs = initial_pcrs(pcr0=b"\1" * 48, role_arn=role, instance_id="i-1", debug=False)
    assert pcrs[2].hex() == (
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"
        "10edb30948c90ba67310f7b964fc500a"
    )
    assert pcrs[3].hex() == (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef"
        "4fc1f1a452e315b9e98f9e312e6921e6"
    )
    assert pcrs[4] == hashlib.sha384(_ZERO + b"i-1").digest()


def test_debug_zeroes_what_nitro_zeroes() -> None:
    pcrs = initial_pcrs(pcr0=b"\1" * 48, role_arn="r", instance_id="i-1", debug=True)
    assert {index for index, value in pcrs.items() if any(value)} == {3, 4}


def _package(directory: Path) -> Path:
    package = directory / "package"
    (package / "inner").mkdir(parents=True)
    (package / "b.py").write_bytes(b"b = 1\n")
    (package / "inner" / "a.py").write_bytes(b"")
    (package / "data.txt").write_bytes(b"not measured")
    return package


def test_measurement_is_as_documented(tmp_path: Path) -> None:
    package = _package(tmp_path)
    stream = b"package/b.py\x006\x00b = 1\n" + b"package/inner/a.py\x000\x00"
    expected = hashlib.sha384(_ZERO + hashlib.sha384(stream).digest()).digest()
    assert measure([package]) == expected
    assert measure([package.parent / "package"]) == expected


def test_measurement_sees_every_python_file_and_nothing_else(tmp_path: Path) -> None:
    package = _package(tmp_path)
    before = measure([package])
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "b.py").write_bytes(b"cached")
    (package / "data.txt").write_bytes(b"other")
    assert measure([package]) == before
    (package / "inner" / "a.py").write_bytes(b"b = 1\n")
    (package / "b.py").write_bytes(b"")
    moved = measure([package])
    assert moved != before
    (package / "new.py").write_bytes(b"")
    assert measure([package]) not in (before, moved)


def test_nothing_to_measure(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MeasurementError, match="nothing to measure"):
            measure([path])


# Certificates


def test_root_is_made_once_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "root"
    first = load_root(directory)
    assert load_root(directory).der == first.der
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert files == {"root-key.pem": 0o600, "root.pem": 0o600}
    public = (directory / "root.pem").read_bytes()
    assert b"PRIVATE" not in public
    assert x509.load_pem_x509_certificate(public) == first.certificate


def test_concurrent_first_starts_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        roots = set(pool.map(lambda _: load_root(tmp_path / "root").der, range(16)))
    assert len(roots) == 1
    assert len(list((tmp_path / "root").iterdir())) == 2


def test_open_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    with pytest.raises(RootError, match="chmod 700"):
        load_root(tmp_path / "root")


def test_damaged_root_is_not_replaced(tmp_path: Path) -> None:
    load_root(tmp_path / "root")
    path = tmp_path / "root" / "root-key.pem"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RootError, match="damaged"):
        load_root(tmp_path / "root")
    assert len(path.read_bytes()) == 100


def _chain(directory: Path) -> CertificateChain:
    return CertificateChain(
        load_root(directory / "root"), instance_id="i-1", module_id="i-1-enc1", region="us-east-1"
    )


def test_certificates_look_like_the_real_ones(tmp_path: Path) -> None:
    """Lifetimes, keys and extensions against a genuine document's."""
    now = datetime.now(UTC)
    leaf, bundle = _chain(tmp_path).at(now)
    genuine = decode_signed_document((_VECTORS / "sui-fastcrypto-1.cbor").read_bytes()).document
    pairs = zip((*bundle, leaf.der), (*genuine.cabundle, genuine.certificate), strict=True)
    for position, (ours_der, real_der) in enumerate(pairs):
        ours, real = (x509.load_der_x509_certificate(der) for der in (ours_der, real_der))
        for kind in (x509.BasicConstraints, x509.KeyUsage):
            mine = ours.extensions.get_extension_for_class(kind)
            theirs = real.extensions.get_extension_for_class(kind)
            if kind is x509.BasicConstraints or position != 3:  # the instance's only signs
                assert (mine.value, mine.critical) == (theirs.value, theirs.critical)
        assert ours.signature_hash_algorithm is not None
        assert ours.signature_hash_algorithm.name == "sha384"
        ours_life, real_life = (
            certificate.not_valid_after_utc - certificate.not_valid_before_utc
            for certificate in (ours, real)
        )
        if position:
            assert abs(ours_life - real_life) < real_life / 10


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        (timedelta(hours=2), 4),
        (timedelta(hours=2, minutes=55), 3),
        (timedelta(hours=23, minutes=55), 2),
        (timedelta(days=5, hours=23, minutes=55), 1),
        (timedelta(days=25), 0),
    ],
)
def test_due_certificates_are_renewed_with_all_below(
    tmp_path: Path, after: timedelta, kept: int
) -> None:
    chain = _chain(tmp_path)
    now = datetime.now(UTC)
    leaf, bundle = chain.at(now)
    later_leaf, later_bundle = chain.at(now + after)
    before, later = (*bundle[1:], leaf.der), (*later_bundle[1:], later_leaf.der)
    same = [first == second for first, second in zip(before, later, strict=True)]
    assert same == [True] * kept + [False] * (4 - kept)
    maker = make_documents(tmp_path / "root", now + after)
    verify_attestation(maker.document(), root=maker.root.der, now=now + after)


# The process


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareNsmProcess]:
    with software_nsm(tmp_path_factory.mktemp("nsm")) as running:
        yield running


@pytest.fixture
def raw(service: SoftwareNsmProcess) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(service.socket))
        connection.settimeout(10)
        yield connection


def _ask(connection: socket.socket, request: object) -> object:
    connection.send(request if isinstance(request, bytes) else cbor2.dumps(request))
    return cbor2.loads(connection.recv(0x3000))


def test_ready_line_and_socket_mode(service: SoftwareNsmProcess) -> None:
    assert service.pcr0 == TEST_PCR0
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600


def test_semantics_of_the_real_module(tmp_path: Path) -> None:
    """The sequence of AWS's nsm-check."""
    with (
        software_nsm(tmp_path) as service,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw,
    ):
        raw.connect(str(service.socket))
        locked = {"Error": "ReadOnlyIndex"}
        for index in range(16):
            assert _ask(raw, {"LockPCR": {"index": index}}) == locked
            assert _ask(raw, {"ExtendPCR": {"index": index, "data": b"x"}}) == locked
        value = _ZERO
        for data in (b"\1\2\3", b""):
            value = extend(value, data)
            answer = _ask(raw, {"ExtendPCR": {"index": 16, "data": data}})
            assert answer == {"ExtendPCR": {"data": value}}
        assert 16 not in _attested_pcrs(raw)
        assert _ask(raw, {"LockPCR": {"index": 16}}) == "LockPCR"
        assert _ask(raw, {"DescribePCR": {"index": 16}}) == {
            "DescribePCR": {"lock": True, "data": value}
        }
        assert _attested_pcrs(raw)[16] == value
        assert _ask(raw, {"ExtendPCR": {"index": 16, "data": b"x"}}) == locked
        assert _ask(raw, {"LockPCRs": {"range": 33}}) == {"Error": "InvalidIndex"}
        assert _ask(raw, {"LockPCRs": {"range": 32}}) == "LockPCRs"
        assert len(_attested_pcrs(raw)) == 32
        for name in ("DescribePCR", "LockPCR"):
            assert _ask(raw, {name: {"index": 32}}) == {"Error": "InvalidIndex"}


def _attested_pcrs(raw: socket.socket) -> dict[int, bytes]:
    answer = _ask(raw, {"Attestation": {"user_data": None, "nonce": None, "public_key": None}})
    assert isinstance(answer, dict)
    return decode_signed_document(answer["Attestation"]["document"]).document.pcrs


def test_random_is_256_fresh_bytes(raw: socket.socket) -> None:
    answers = [_ask(raw, "GetRandom") for _ in range(2)]
    for answer in answers:
        assert isinstance(answer, dict)
        assert len(answer["GetRandom"]["random"]) == 256
    assert answers[0] != answers[1]


def test_fields_of_1024_bytes_are_attested(raw: socket.socket) -> None:
    fields = {name: bytes(1024) for name in ("user_data", "nonce", "public_key")}
    answer = _ask(raw, {"Attestation": fields})
    assert isinstance(answer, dict)
    content = decode_signed_document(answer["Attestation"]["document"]).document
    assert (content.user_data, content.nonce, content.public_key) == (bytes(1024),) * 3


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\xff", "InvalidArgument"),
        ("Reboot", "InvalidArgument"),
        ({"Attestation": {"nonce": bytes(1025)}}, "InvalidArgument"),
        (bytes(MAX_REQUEST_BYTES + 1), "InputTooLarge"),
        (bytes(60_000), "InputTooLarge"),
    ],
)
def test_malformed_requests(raw: socket.socket, request_: object, code: str) -> None:
    assert _ask(raw, request_) == {"Error": code}
    assert isinstance(_ask(raw, "DescribeNSM"), dict)


def test_a_client_that_reads_nothing_blocks_no_other(
    service: SoftwareNsmProcess, raw: socket.socket
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.connect(str(service.socket))
        deaf.setblocking(False)
        request = cbor2.dumps("GetRandom")
        try:
            for _ in range(10_000):
                deaf.send(request)
        except OSError:
            pass  # its own queue is full, or it was disconnected
        assert isinstance(_ask(raw, "DescribeNSM"), dict)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "enclave_infra.software_nsm", "--pcr0", TEST_PCR0]
    command += ["--socket", str(tmp_path / "s"), "--root-dir", str(tmp_path / "root")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(tmp_path / "s"))
            process.send_signal(number)
            _, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, b"")
    assert not (tmp_path / "s").exists()


def test_socket_of_a_running_one_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path), pytest.raises(SocketInUseError, match="another"), listen(path):
        pass
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(str(path))
    stale.close()
    with listen(path):
        assert path.is_socket()
    assert not path.exists()


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(SocketInUseError, match="no socket"), listen(path):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--pcr0", TEST_PCR0, "--socket", "/" + "x" * 120], "over 107 bytes"),
        (["--measure", "/nonexistent", "--socket", "/tmp/never"], "nothing to measure"),  # noqa: S108
    ],
)
def test_start_errors_are_one_line(tmp_path: Path, arguments: list[str], needle: str) -> None:
    command = [sys.executable, "-m", "enclave_infra.software_nsm", *arguments]
    command += ["--root-dir", str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert needle in done.stderr
    assert done.stderr.count("\n") == 1


def test_documents_of_a_process_verify_under_its_root(raw: socket.socket) -> None:
    answer = _ask(raw, {"Attestation": {"nonce": b"n" * 16}})
    assert isinstance(answer, dict)
    document = answer["Attestation"]["document"]
    root = decode_signed_document(document).document.cabundle[0]
    content = verify_attestation(document, root=root, now=datetime.now(UTC), nonce=b"n" * 16)
    name = x509.load_der_x509_certificate(root).subject.rfc4514_string()
    assert "NOT CONFIDENTIAL" in name
    assert content.module_id.startswith("i-")
    assert x509.load_der_x509_certificate(root).public_bytes(Encoding.DER) == root
