"""What `enclave status --json` prints: values, put together from files and the gateway's word.

The shape is an interface: docs/status.schema.json is made from it, docs/observability.md explains
it. A field that is not known in a state is left out.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from enclave_parent_gateway.api import EgressStatus, GatewayStatus, SlotStatus
from enclave_parent_gateway.confidentiality import confidentiality_warning
from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.expected_pcrs import expected_pcrs
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.sync.sync_state import SyncState, read_sync_state
from enclave_protocol.enclave_usage import EnclaveCounts, VaultInfo
from enclave_protocol.messages import EnclaveStatus, KernelInfo

__all__ = ["ChannelReport", "KernelReport", "StatusReport", "make_report", "report_schema"]


class ChannelReport(msgspec.Struct, frozen=True):
    """Bytes on one Jupyter channel of a notebook's kernel, over its restarts."""

    bytes_to_kernel: int
    bytes_from_kernel: int


class KernelReport(msgspec.Struct, frozen=True):
    """One kernel; what of it and of its vaults is rounded is said in docs/observability.md.

    `memory_bytes`, `cpu_percent` (of one processor) and `cpu_s` are its process and what that
    started, without vaults; null before the first look, within 5 s. `connections` are those of
    Jupyter clients; `walled`: it found its walls standing.
    """

    kernel_id: str
    pid: int
    uptime_s: float
    memory_bytes: int | None
    cpu_percent: int | None
    cpu_s: float | None
    connections: int
    channels: dict[str, ChannelReport]
    walled: bool
    vaults: tuple[VaultInfo, ...]


class StatusReport(msgspec.Struct, frozen=True):
    """The enclave of one runtime directory.

    `state`: `down`: none is up; `broken`: one is, and does not answer; `untrusted`: what answers
    did not prove that it is the enclave expected, `refusal` says why; `up`.
    """

    state: Literal["down", "broken", "untrusted", "up"]
    runtime_dir: str
    refusal: str | UnsetType | None = UNSET
    backend: str | UnsetType = UNSET
    confidential: bool | UnsetType = UNSET
    warning: str | UnsetType | None = UNSET
    kms_endpoint_url: str | UnsetType | None = UNSET
    pids: dict[str, int] | UnsetType = UNSET
    idle_timeout_s: float | UnsetType | None = UNSET
    expected_pcrs: dict[str, tuple[str, ...]] | UnsetType = UNSET
    proxy: EgressStatus | UnsetType = UNSET
    sync: SyncState | UnsetType | None = UNSET
    version: str | UnsetType = UNSET
    debug: bool | UnsetType = UNSET
    pcrs: dict[str, str] | UnsetType = UNSET
    uptime_s: float | UnsetType = UNSET
    isolation: tuple[str, ...] | UnsetType = UNSET
    kernels: tuple[KernelReport, ...] | UnsetType = UNSET
    vault_count: int | UnsetType = UNSET
    counts: EnclaveCounts | UnsetType = UNSET


def make_report(
    paths: EnclavePaths, state: EnclaveState | None, found: GatewayStatus | None
) -> StatusReport:
    """Return the report.

    Args:
        paths: Of the enclave.
        state: What the state file says runs; None: nothing.
        found: The gateway's word; None: it does not answer.

    Raises:
        GatewayError: The mirror's file, or the backend, is of another version.
    """
    if state is None:
        return StatusReport("down", str(paths.runtime))
    enclave = found.enclave if found else None
    refusal = found.refusal if found else None
    report = StatusReport(
        state="up" if enclave else "untrusted" if refusal else "broken",
        runtime_dir=str(paths.runtime),
        refusal=refusal.message if refusal else None,
        backend=state.backend,
        confidential=confidentiality_warning(state) is None,
        warning=confidentiality_warning(state),
        kms_endpoint_url=state.kms_endpoint_url,
        pids={name: each.pid for name, each in state.processes.items() if each.is_running()},
        idle_timeout_s=found.idle_timeout_s if found else None,
        expected_pcrs=_expected(paths, state),
        sync=_mirror(paths),
        proxy=found.egress if found else UNSET,
    )
    if found is None or enclave is None:
        return report
    return msgspec.structs.replace(report, **_of_enclave(enclave, found.slots))


def _of_enclave(enclave: EnclaveStatus, slots: tuple[SlotStatus, ...]) -> dict[str, object]:
    by_kernel = {slot.kernel_id: slot for slot in slots}
    kernels = tuple(_kernel(kernel, by_kernel.get(kernel.kernel_id)) for kernel in enclave.kernels)
    return {
        "version": enclave.version,
        "debug": enclave.debug,
        "pcrs": enclave.pcrs,
        "uptime_s": round(enclave.uptime_s, 1),
        "isolation": enclave.isolation,
        "kernels": kernels,
        "vault_count": enclave.vaults,
        "counts": enclave.counts,
    }


def _kernel(kernel: KernelInfo, slot: SlotStatus | None) -> KernelReport:
    traffic = slot.traffic if slot else ()
    return KernelReport(
        kernel_id=kernel.kernel_id,
        pid=kernel.pid,
        uptime_s=kernel.uptime_s,
        memory_bytes=kernel.memory_bytes,
        cpu_percent=kernel.cpu_percent,
        cpu_s=kernel.cpu_s,
        connections=slot.connections if slot else 0,
        channels={
            each.channel: ChannelReport(each.bytes_to_kernel, each.bytes_from_kernel)
            for each in traffic
        },
        walled=kernel.walled,
        vaults=kernel.vaults,
    )


def _expected(paths: EnclavePaths, state: EnclaveState) -> dict[str, tuple[str, ...]]:
    """Return the expected PCRs by index; none where there are none, which nothing fulfils."""
    try:
        found = expected_pcrs(paths, state.measured_pcr0)
    except GatewayError:
        return {}
    return {
        str(index): tuple(sorted(value.hex() for value in values))
        for index, values in sorted(found.items())
    }


def _mirror(paths: EnclavePaths) -> SyncState | None:
    mirror = read_sync_state(paths.sync_file)
    if mirror is not None and not mirror.is_running:
        return msgspec.structs.replace(mirror, phase="ended")
    return mirror


def report_schema() -> bytes:
    """Return docs/status.schema.json: the report as JSON Schema (2020-12)."""
    schema = msgspec.json.schema(StatusReport)
    text = msgspec.json.encode(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, order="sorted"
    )
    return msgspec.json.format(text) + b"\n"
