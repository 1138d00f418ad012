"""`enclave status` as people read it."""

from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_parent_gateway.status_report import KernelReport, StatusReport
from enclave_parent_gateway.sync.sync_state import SyncState
from enclave_protocol.enclave_usage import VaultInfo
from enclave_protocol.plain_text import plain_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from enclave_parent_gateway.api import EgressStatus

__all__ = ["print_report", "show_bytes", "show_duration"]

_SHOWN_RULES = 6
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_NOT_SEEN = "-"
_STEPS = (
    "Of a vault only steps are shown, seen twice a minute: memory and processors are no more than "
    "that."
)


def show_bytes(size: float) -> str:
    """Return a size in the unit that leaves one to four digits."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"


def show_duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {name}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def print_report(console: "Console", report: StatusReport) -> None:
    """Print the report; every text in it that comes from elsewhere is made plain."""
    if report.state == "down":
        console.print("No enclave is up. Type: enclave up")
        return
    if report.state == "untrusted":
        refusal = plain_text(report.refusal or "")
        console.print(f"The enclave is not trusted: {refusal}", style="bold red", markup=False)
        return
    if report.state == "broken":
        alive = ", ".join(report.pids or ()) or "nothing"
        console.print(
            f"The enclave does not answer ({alive} of it runs). See: enclave logs; then type: "
            "enclave up",
            style="bold red",
        )
        return
    _print_enclave(console, report)
    kernels = report.kernels or ()
    if not kernels:
        console.print("kernels     none")
        return
    console.print(_kernel_table(kernels))
    if any(kernel.vaults for kernel in kernels):
        console.print(_STEPS, style="dim")
    listed = sum(len(kernel.vaults) for kernel in kernels)
    if report.vault_count is not UNSET and report.vault_count > listed:
        console.print(f"{report.vault_count - listed} more vaults are not listed.")


def _print_enclave(console: "Console", report: StatusReport) -> None:
    uptime = show_duration(report.uptime_s or 0.0)
    console.print(f"The enclave is up: backend {report.backend}, {uptime}.")
    if report.warning:
        console.print(report.warning, style="bold red")
    rows = [
        *_pcr_rows(report),
        ("isolation", ", ".join(report.isolation or ()) or "none"),
        ("KMS", report.kms_endpoint_url or "AWS"),
        ("packages", _counts_text(report)),
        ("proxy", _proxy_text(report.proxy or None)),
        ("workspace", _mirror_text(report.sync or None)),
    ]
    for name, text in rows:
        console.print(f"{name:<11} {plain_text(text, limit=None)}", markup=False)


def _pcr_rows(report: StatusReport) -> list[tuple[str, str]]:
    """Return PCR0, and every other one that is expected, each with whether it is as expected."""
    pcrs, expected = report.pcrs or {}, report.expected_pcrs or {}
    rows = []
    for index in ("0", *(each for each in sorted(expected, key=int) if each != "0")):
        value = pcrs.get(index, "unknown")
        wanted = expected.get(index, ())
        if value in wanted:
            word = "as expected" if len(wanted) == 1 else f"one of the {len(wanted)} expected"
        else:
            word = f"NOT EXPECTED: {' or '.join(wanted) or 'nothing is'}"
        rows.append((f"PCR{index}", f"{value} ({word})"))
    return rows


def _counts_text(report: StatusReport) -> str:
    counts = report.counts or None
    if counts is None:
        return "unknown"
    refused = sum(counts.refusals.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.refusals.items()))
    return f"{counts.loads} loaded, {refused} refused" + (f": {kinds}" if kinds else "")


def _proxy_text(proxy: "EgressStatus | None") -> str:
    if proxy is None:
        return "unknown"
    shown = ", ".join(proxy.rules[:_SHOWN_RULES]) or "nothing"
    more = proxy.rule_count - min(_SHOWN_RULES, len(proxy.rules))
    allowed = f"{shown} and {more} more" if more > 0 else shown
    if proxy.problem:
        allowed = f"nothing ({proxy.problem})"
    return (
        f"allows {allowed}; {proxy.connections} connections open, {proxy.allowed} made, "
        f"{proxy.denied} denied, {proxy.failed} failed; {show_bytes(proxy.bytes_out)} out, "
        f"{show_bytes(proxy.bytes_in)} in"
    )


def _mirror_text(mirror: SyncState | None) -> str:
    if mirror is None:
        return "not mirrored; type: enclave sync -d DIR"
    problems = f", {mirror.problems} not brought" if mirror.problems else ""
    return (
        f"{mirror.directory}: {mirror.phase}, {mirror.entries} files and folders, "
        f"{mirror.brought} changes brought{problems}; {show_bytes(mirror.bytes_to_enclave)} in, "
        f"{show_bytes(mirror.bytes_from_enclave)} out"
    )


def _kernel_table(kernels: tuple[KernelReport, ...]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("kernel, its packages", overflow="fold")
    table.add_column("walls")
    for heading in ("up", "memory", "CPU", "to kernel", "from kernel", "clients"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kernel in kernels:
        sent = sum(each.bytes_to_kernel for each in kernel.channels.values())
        received = sum(each.bytes_from_kernel for each in kernel.channels.values())
        table.add_row(
            kernel.kernel_id,
            _walls(kernel.walled),
            show_duration(kernel.uptime_s),
            _NOT_SEEN if kernel.memory_bytes is None else show_bytes(kernel.memory_bytes),
            _NOT_SEEN if kernel.cpu_percent is None else f"{kernel.cpu_percent} %",
            show_bytes(sent),
            show_bytes(received),
            str(kernel.connections),
        )
        for vault in kernel.vaults:
            table.add_row(*_vault_row(vault))
    return table


def _walls(walled: bool) -> str:
    return "stand" if walled else "[bold red]none[/]"


def _vault_row(vault: VaultInfo) -> tuple[str, ...]:
    from rich.markup import escape

    name = escape(plain_text(f"{vault.package} {vault.version}"))
    return (
        f"  {name}",
        _walls(vault.walled),
        show_duration(vault.uptime_s),
        _NOT_SEEN if vault.memory_bytes is None else f"≤ {show_bytes(vault.memory_bytes)}",
        _NOT_SEEN if vault.cpu_percent is None else f"≤ {vault.cpu_percent} %",
        "",
        "",
        "",
    )
