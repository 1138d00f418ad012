"""Entropy and time, from the software NSM and into this machine's kernel."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_kernel.boot.heartbeat import HeartbeatError, send_heartbeat
from enclave_kernel.boot.nsm_seed import seed_entropy, set_clock
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


def test_heartbeat_that_nobody_hears() -> None:
    with pytest.raises(HeartbeatError, match="CID 3"):
        send_heartbeat(3)
