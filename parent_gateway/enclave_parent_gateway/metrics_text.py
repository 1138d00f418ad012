"""The gateway's status as Prometheus reads it. Values in, text out.

Labels are of fixed small sets: no kernel, package, path, host or address is one. What belongs to
one kernel or one vault is in `enclave status --json`.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from enclave_parent_gateway.api import EgressStatus, GatewayStatus
from enclave_protocol.enclave_usage import RELEASE_BOUNDS_S, ReleaseTimes
from enclave_protocol.messages import EnclaveStatus

__all__ = ["CONTENT_TYPE", "metrics_text"]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def metrics_text(status: GatewayStatus, backend: str) -> bytes:
    """Return all metrics in Prometheus's text format.

    Args:
        status: What the gateway knows now; without an enclave there are the gateway's own counts.
        backend: Name of the backend.
    """
    # Ours alone: the library's default one would show this process's Python, memory and files.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now(status, backend))
    return generate_latest(registry)


class _Now(Collector):
    def __init__(self, status: GatewayStatus, backend: str) -> None:
        self._status = status
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        """Yield what `generate_latest` writes."""
        status = self._status
        yield GaugeMetricFamily(
            "enclave_up",
            "1 if the enclave answers and proved that it is the one expected, else 0.",
            float(status.enclave is not None),
        )
        yield GaugeMetricFamily(
            "enclave_untrusted",
            "1 if something answers that did not prove that it is the enclave expected.",
            float(status.refusal is not None),
        )
        yield from _gateway(status)
        yield from _egress(status.egress)
        if status.enclave is not None:
            yield from _enclave(status.enclave, self._backend)


def _gateway(status: GatewayStatus) -> Iterator[Metric]:
    streams = CounterMetricFamily(
        "enclave_streams_opened",
        "Streams to the enclave that were opened, by what they carry.",
        labels=("carries",),
    )
    for carries, count in sorted(status.streams.items()):
        streams.add_metric((carries,), count)
    yield streams
    traffic = CounterMetricFamily(
        "enclave_channel_bytes",
        "Bytes on the Jupyter channels of all kernels, to and from the enclave.",
        labels=("channel", "direction"),
    )
    for each in status.traffic:
        traffic.add_metric((each.channel, "to_kernel"), each.bytes_to_kernel)
        traffic.add_metric((each.channel, "from_kernel"), each.bytes_from_kernel)
    yield traffic
    yield GaugeMetricFamily(
        "enclave_channel_connections",
        "Connections of Jupyter clients that are open now.",
        sum(slot.connections for slot in status.slots),
    )


def _egress(egress: EgressStatus) -> Iterator[Metric]:
    made = CounterMetricFamily(
        "enclave_egress_connections",
        "Connections that notebooks and the enclave asked the proxy for, by what came of it.",
        labels=("result",),
    )
    made.add_metric(("allowed",), egress.allowed)
    made.add_metric(("denied",), egress.denied)
    made.add_metric(("failed",), egress.failed)
    yield made
    moved = CounterMetricFamily(
        "enclave_egress_bytes", "Bytes that the proxy carried.", labels=("direction",)
    )
    moved.add_metric(("out",), egress.bytes_out)
    moved.add_metric(("in",), egress.bytes_in)
    yield moved
    yield GaugeMetricFamily(
        "enclave_egress_open", "Connections of the proxy that are open now.", egress.connections
    )
    yield GaugeMetricFamily(
        "enclave_egress_rules", "Rules on the proxy's allowlist.", egress.rule_count
    )


def _enclave(enclave: EnclaveStatus, backend: str) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "enclave_build",
        "What runs there.",
        {
            "backend": backend,
            "version": enclave.version,
            "pcr0": enclave.pcrs.get("0", ""),
            "debug": str(enclave.debug).lower(),
        },
    )
    yield GaugeMetricFamily(
        "enclave_uptime_seconds", "Since the supervisor's start.", enclave.uptime_s
    )
    yield GaugeMetricFamily("enclave_kernels", "Kernels that run.", len(enclave.kernels))
    yield GaugeMetricFamily("enclave_vaults", "Packages that are loaded.", enclave.vaults)
    yield GaugeMetricFamily(
        "enclave_kernels_memory_bytes",
        "Memory of all kernels' processes, without vaults.",
        sum(kernel.memory_bytes or 0 for kernel in enclave.kernels),
    )
    yield GaugeMetricFamily(
        "enclave_kernels_cpu_ratio",
        "Processors that all kernels' processes keep busy, without vaults.",
        sum(kernel.cpu_percent or 0 for kernel in enclave.kernels) / 100,
    )
    counts = enclave.counts
    yield CounterMetricFamily("enclave_package_loads", "Packages that were loaded.", counts.loads)
    refusals = CounterMetricFamily(
        "enclave_package_refusals",
        "Loads of packages that were refused, by the class of the error.",
        labels=("kind",),
    )
    for kind, count in sorted(counts.refusals.items()):
        refusals.add_metric((kind,), count)
    yield refusals
    yield _releases(counts.releases)


def _releases(releases: ReleaseTimes) -> Metric:
    bounds = (*(str(bound) for bound in RELEASE_BOUNDS_S), "+Inf")
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip(bounds, releases.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family = HistogramMetricFamily(
        "enclave_kms_release_seconds",
        "Key releases, refused ones too: attestation document, KMS Decrypt, opened answer.",
    )
    family.add_metric((), buckets, releases.sum_s)
    return family
