"""EIF files, written here as the format says, and known answers of FACTS."""

import hashlib
import io
import struct
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave_protocol.eif import EifError, EifSection, measure_eif, pcr_of, read_eif
from tests.support.eif_files import CMDLINE, KERNEL, METADATA, RAMDISK, eif, sealed

SIGNATURE = 4
EMPTY_PCR2 = (
    "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"
    "10edb30948c90ba67310f7b964fc500a"
)
WEBSERVER_PCR3 = (
    "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef"
    "4fc1f1a452e315b9e98f9e312e6921e6"
)
PLAIN = [
    (KERNEL, b"bzImage" * 1000),
    (CMDLINE, b"reboot=k"),
    (RAMDISK, b"init" * 999),
    (RAMDISK, b"application" * 300_000),
    (METADATA, b"{}"),
]


def pcr(*parts: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(parts)).digest()).digest()


def signing_certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    ).sign(key, hashes.SHA384())
    encodings = serialization.Encoding
    return certificate.public_bytes(encodings.PEM), certificate.public_bytes(encodings.DER)


def test_known_answers() -> None:
    single = eif([(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"r")])
    assert measure_eif(io.BytesIO(single))[2].hex() == EMPTY_PCR2
    # PCR3 is extended with the ARN itself, PCR0, 1, 2 and 8 with a digest (FACTS).
    arn = b"arn:aws:iam::123456789012:role/Webserver"
    assert hashlib.sha384(bytes(48) + arn).hexdigest() == WEBSERVER_PCR3
    assert pcr_of(hashlib.sha384(b"").digest()).hex() == EMPTY_PCR2


def test_an_image_is_measured_without_what_is_not_part_of_it() -> None:
    kernel, cmdline, first, second = (data for _, data in PLAIN[:4])
    image = read_eif(io.BytesIO(eif(PLAIN, flags=1)))
    assert image.pcrs == {
        0: pcr(kernel, cmdline, first, second),
        1: pcr(kernel, cmdline, first),
        2: pcr(second),
    }
    assert (image.arm64, image.memory_bytes, image.cpus) == (True, 1 << 30, 2)
    assert image.sections[:2] == (EifSection(KERNEL, 7000), EifSection(CMDLINE, 8))
    assert measure_eif(io.BytesIO(eif(PLAIN[:4]))) == image.pcrs


@pytest.mark.parametrize("as_numbers", [True, False])
def test_a_signed_image_has_pcr8(as_numbers: bool) -> None:
    pem, der = signing_certificate()
    kept = list(pem) if as_numbers else pem
    section = cbor2.dumps([{"signing_certificate": kept, "signature": [1, 2, 3]}])
    signed = measure_eif(io.BytesIO(eif([*PLAIN, (SIGNATURE, section)])))
    assert signed == measure_eif(io.BytesIO(eif(PLAIN))) | {8: pcr(der)}


class _Drip(io.BytesIO):
    """A stream that gives little at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1000, size or 0) if size and size > 0 else size)


def test_short_reads() -> None:
    assert measure_eif(_Drip(eif(PLAIN))) == measure_eif(io.BytesIO(eif(PLAIN)))


GOOD = eif([(KERNEL, b"kernel"), (CMDLINE, b"cmd"), (RAMDISK, b"disk")])


@pytest.mark.parametrize("at", range(0, len(GOOD), 7))
def test_any_bit_that_changed_is_seen(at: int) -> None:
    altered = bytearray(GOOD)
    altered[at] ^= 0x10
    with pytest.raises(EifError):
        read_eif(io.BytesIO(bytes(altered)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:547],
        GOOD[:-1],
        GOOD + b"x",
        eif(PLAIN[:3], version=3),
        eif([]),
        eif(PLAIN[:2]),
        eif([PLAIN[1], PLAIN[0], PLAIN[2]]),
        eif([PLAIN[0], PLAIN[0], PLAIN[1], PLAIN[2]]),
        eif([*PLAIN[:3], PLAIN[4], PLAIN[3]]),
        eif([*PLAIN[:3], PLAIN[4], PLAIN[4]]),
        eif([*PLAIN[:3], (6, b"new")]),
        eif([*PLAIN[:3], (SIGNATURE, b"no cbor")]),
        eif([*PLAIN[:3], (SIGNATURE, cbor2.dumps([{"signing_certificate": b"none"}]))]),
        eif([*PLAIN[:3], (SIGNATURE, bytes(65 * 1024))]),
        # A section somewhere else than it is; of another size than it has; more than are counted.
        sealed(GOOD[:28] + struct.pack(">Q", 549) + GOOD[36:]),
        sealed(GOOD[:284] + struct.pack(">Q", 7) + GOOD[292:]),
        sealed(GOOD[:284] + struct.pack(">Q", 1 << 62) + GOOD[292:]),
        sealed(GOOD[:26] + struct.pack(">H", 33) + GOOD[28:]),
        sealed(GOOD[:26] + struct.pack(">H", 2) + GOOD[28:]),
        sealed(GOOD[:276] + struct.pack(">Q", 9) + GOOD[284:]),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(EifError):
        read_eif(io.BytesIO(data))
