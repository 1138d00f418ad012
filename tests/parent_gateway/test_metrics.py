"""The metrics' text and the socket it is served on; a whole enclave's: test_observability."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from enclave_parent_gateway.api import ChannelTraffic, EgressStatus, GatewayStatus, SlotStatus
from enclave_parent_gateway.errors import EnclaveNotRunningError, GatewayError
from enclave_parent_gateway.metrics_command import scrape
from enclave_parent_gateway.metrics_server import MetricsServer
from enclave_parent_gateway.metrics_text import metrics_text
from enclave_protocol.enclave_usage import EnclaveCounts, ReleaseTimes, VaultInfo
from enclave_protocol.messages import EnclaveStatus, Failed, KernelInfo

_VAULT = VaultInfo("secret-model", "1", True, 5, 64 * 2**20, 25)
_ENCLAVE = EnclaveStatus(
    version="0.1.0",
    module_id="i-0123",
    debug=False,
    uptime_s=12.5,
    pcrs={"0": "ab" * 48},
    isolation=(),
    kernels=(
        KernelInfo("aa-bb", 7, 1.0, (_VAULT,), 3 * 2**20, 150, 2.0),
        KernelInfo("cc-dd", 8, 1.0, ()),
    ),
    vaults=1,
    counts=EnclaveCounts(2, {"KeyReleaseDeniedError": 3}, ReleaseTimes((1, 0, 2, *(0,) * 8), 0.5)),
)
_STATUS = GatewayStatus(
    _ENCLAVE,
    (SlotStatus("aa", "aa-bb", None, 5, ()),),
    0.0,
    egress=EgressStatus(("kms",), 1, None, 2, 10, 20, 30, 40, 50),
    streams={"shell": 3, "supervisor": 1},
    traffic=(ChannelTraffic("iopub", 100, 200),),
)


def _values(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_every_number_is_where_it_belongs() -> None:
    values = _values(metrics_text(_STATUS, "local").decode())
    info = next(key for key in values if key[0] == "enclave_build_info")
    assert set(info[1:]) == {"local", "0.1.0", "ab" * 48, "false"}
    expected = {
        ("enclave_up",): 1,
        ("enclave_untrusted",): 0,
        ("enclave_streams_opened_total", "shell"): 3,
        ("enclave_streams_opened_total", "supervisor"): 1,
        ("enclave_channel_bytes_total", "iopub", "to_kernel"): 100,
        ("enclave_channel_bytes_total", "iopub", "from_kernel"): 200,
        ("enclave_channel_connections",): 5,
        ("enclave_egress_connections_total", "allowed"): 10,
        ("enclave_egress_connections_total", "denied"): 20,
        ("enclave_egress_connections_total", "failed"): 30,
        ("enclave_egress_bytes_total", "out"): 40,
        ("enclave_egress_bytes_total", "in"): 50,
        ("enclave_egress_open",): 2,
        ("enclave_egress_rules",): 1,
        ("enclave_uptime_seconds",): 12.5,
        ("enclave_kernels",): 2,
        ("enclave_vaults",): 1,
        ("enclave_kernels_memory_bytes",): 3 * 2**20,
        ("enclave_kernels_cpu_ratio",): 1.5,
        ("enclave_package_loads_total",): 2,
        ("enclave_package_refusals_total", "KeyReleaseDeniedError"): 3,
        ("enclave_kms_release_seconds_count",): 3,
        ("enclave_kms_release_seconds_sum",): 0.5,
        ("enclave_kms_release_seconds_bucket", "0.05"): 1,
        ("enclave_kms_release_seconds_bucket", "0.1"): 1,
        ("enclave_kms_release_seconds_bucket", "0.25"): 3,
        ("enclave_kms_release_seconds_bucket", "+Inf"): 3,
    }
    assert {key: values.get(key) for key in expected} == expected
    buckets = {key for key in values if key[0] == "enclave_kms_release_seconds_bucket"}
    assert values.keys() - expected.keys() - buckets == {info}


def test_no_kernel_package_or_rule_is_named() -> None:
    text = metrics_text(_STATUS, "local").decode()
    for name in ("aa-bb", "secret-model", "i-0123", '"kms"', "python_", "process_"):
        assert name not in text


def test_without_an_enclave_the_gateways_own_counts_stay() -> None:
    status = GatewayStatus(None, (), 0.0, Failed("PcrMismatchError", "x"), streams={"shell": 3})
    values = _values(metrics_text(status, "local").decode())
    assert values[("enclave_up",)] == 0 and values[("enclave_untrusted",)] == 1
    assert values[("enclave_streams_opened_total", "shell")] == 3
    assert ("enclave_kernels",) not in values


@asynccontextmanager
async def _server(folder: Path) -> AsyncIterator[Path]:
    async def status() -> GatewayStatus:
        return _STATUS

    path = folder / "metrics.sock"
    # What an earlier gateway left is in nobody's way.
    path.write_bytes(b"")
    server = MetricsServer(path, "local", status)
    await server.start()
    try:
        yield path
    finally:
        await server.close()
        assert not path.exists()


async def _say(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request)
        return await reader.read(-1)
    finally:
        writer.close()


async def test_a_scrape(tmp_path: Path) -> None:
    async with _server(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = await asyncio.to_thread(scrape, path)
        assert _values(text) == _values(metrics_text(_STATUS, "local").decode())
        answer = await _say(path, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Type: text/plain; version=" in head
        assert f"Content-Length: {len(body)}".encode() in head


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b"HTTP/1.1 405 "),
        (b"\xff\x00 nonsense\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b""),
    ],
)
async def test_what_is_no_scrape(tmp_path: Path, request_: bytes, answer: bytes) -> None:
    async with _server(tmp_path) as path:
        try:
            said = await _say(path, request_)
        except ConnectionResetError:
            said = b""
        assert said.startswith(answer) and (answer or not said)
        assert await asyncio.to_thread(scrape, path)


async def test_clients_that_say_nothing_leave_room_for_one_that_does(tmp_path: Path) -> None:
    async with _server(tmp_path) as path:
        silent = [await asyncio.open_unix_connection(path) for _ in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(GatewayError):
            await asyncio.to_thread(scrape, path)
        for _, writer in silent:
            writer.close()
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(scrape, path)


def test_a_scrape_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(EnclaveNotRunningError, match="type: enclave up"):
        scrape(tmp_path / "metrics.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "metrics.sock"))
        with pytest.raises(EnclaveNotRunningError):
            scrape(tmp_path / "metrics.sock")
