"""Entropy and time, from the software NSM and into this machine's kernel."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from enclave_kernel.boot.heartbeat import HeartbeatError, send_heartbeat
from enclave_kernel.boot.nsm_seed import (
    ForeignNsmError,
    is_signed_by_aws,
    seed_entropy,
    set_clock,
)
from enclave_kernel.nsm import NsmClient
from tests.support.local_services import software_nsm


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NsmClient]:
    with (
        software_nsm(tmp_path_factory.mktemp("nsm")) as running,
        NsmClient.open(running.endpoint) as opened,
    ):
        yield opened


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may credit entropy")
def test_the_kernel_takes_the_seed(client: NsmClient) -> None:
    seed_entropy(client)


def test_only_the_kernel_generator_takes_one(client: NsmClient, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="ioctl"):
        seed_entropy(client, tmp_path / "file")


def test_a_clock_that_is_right_is_left_alone(client: NsmClient) -> None:
    before = time.time()
    assert set_clock(client) == 0.0
    assert 0 <= time.time() - before < 5


_VECTORS = Path(__file__).parents[2] / "vectors"
_QEMU = (_VECTORS / "qemu" / "virtio-nsm.cbor").read_bytes()


def test_whose_documents_they_are(client: NsmClient) -> None:
    for name in ("evervault-beta-valid", "evervault-beta-debug", "sui-fastcrypto-1"):
        assert is_signed_by_aws((_VECTORS / "attestation" / f"{name}.cbor").read_bytes())
    altered = (_VECTORS / "attestation" / "veracruz-badsig.cbor").read_bytes()
    for document in (_QEMU, client.attest(), altered, b"", _QEMU[:100]):
        assert not is_signed_by_aws(document)


def test_no_time_is_taken_from_another_kind_of_nsm() -> None:
    with pytest.raises(ForeignNsmError, match="no key can be released here"):
        set_clock(NsmClient(_Recorded(_QEMU)))


class _Recorded:
    """A module that gives one document: QEMU's NSM is in none of Debian's packages."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    def exchange(self, _request: bytes) -> bytes:
        return cbor2.dumps({"Attestation": {"document": self._document}})

    def close(self) -> None:
        pass


def test_heartbeat_that_nobody_hears() -> None:
    with pytest.raises(HeartbeatError, match="CID 3"):
        send_heartbeat(3)
