"""Time from attestation documents: it cannot be turned back, nor by the machine's clock."""

import datetime as datetimes
import time
from collections.abc import Iterator

import pytest

from enclave_kernel.key_release_errors import PackageExpiredError
from enclave_kernel.nsm import NsmClient
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.attestation_errors import AttestationError
from enclave_protocol.package_errors import PackageFormatError
from tests.support.local_services import software_nsm

DAY_MS = 86_400_000
NOON_MS = 1_800_000_000_000  # 2027-01-15T08:00:00Z


@pytest.fixture(scope="module")
def nsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NsmClient]:
    with (
        software_nsm(tmp_path_factory.mktemp("nsm")) as process,
        NsmClient.open(process.endpoint) as client,
    ):
        yield client


def timestamp(document: bytes) -> int:
    return decode_signed_document(document).document.timestamp


def test_it_tells_the_documents_time_and_goes_on(nsm: NsmClient) -> None:
    document = nsm.attest(nonce=b"n" * 16)
    clock = TrustedClock()
    clock.observe(document)
    first = clock.now_ms()
    assert 0 <= first - timestamp(document) < 1000
    time.sleep(0.05)
    assert 50 <= clock.now_ms() - first < 5000


def test_the_machines_clock_does_not_count(nsm: NsmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    document = nsm.attest(nonce=b"n" * 16)

    class NoClock(datetimes.datetime):
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> "NoClock":
            raise AssertionError("the wall clock was read")

    for name in ("time", "time_ns", "gmtime", "localtime"):
        monkeypatch.setattr(time, name, NoClock.now)
    monkeypatch.setattr("enclave_kernel.trusted_clock.datetime", NoClock)
    clock = TrustedClock()
    clock.observe(document)
    clock.check("2999-01-01T00:00:00Z")
    with pytest.raises(PackageExpiredError):
        clock.check("2020-01-01T00:00:00Z")


def test_it_never_goes_back(nsm: NsmClient) -> None:
    clock = TrustedClock(NOON_MS + 1000 * DAY_MS)
    clock.observe(nsm.attest(nonce=b"n" * 16))  # older by years
    assert clock.now_ms() >= NOON_MS + 1000 * DAY_MS


def test_before_it_was_set_nothing_that_expires_is_valid(nsm: NsmClient) -> None:
    clock = TrustedClock()
    clock.check("")
    with pytest.raises(PackageExpiredError, match="does not know the time"):
        clock.check("2999-01-01T00:00:00Z")
    with pytest.raises(AttestationError):
        clock.observe(nsm.attest(nonce=b"n" * 16)[:-1])
    with pytest.raises(PackageExpiredError):
        clock.now_ms()


@pytest.mark.parametrize(
    ("expires", "valid"),
    [
        ("2027-01-15T08:00:00Z", False),
        ("2027-01-15T08:01:00Z", True),
        ("2027-01-15T09:30:00+02:00", False),
        ("2027-01-15T06:30:00-02:00", True),
    ],
)
def test_zones_count(expires: str, valid: bool) -> None:
    clock = TrustedClock(NOON_MS)
    if valid:
        clock.check(expires)
    else:
        with pytest.raises(PackageExpiredError, match=r"2027-01-15T0.*newer one"):
            clock.check(expires)


@pytest.mark.parametrize("expires", ["soon", "2027-01-15", "2027-01-15T09:00:00", "x" * 5000])
def test_what_is_no_time(expires: str) -> None:
    with pytest.raises(PackageFormatError, match="RFC 3339") as caught:
        TrustedClock(NOON_MS).check(expires)
    assert len(str(caught.value)) < 300
