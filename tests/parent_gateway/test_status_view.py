"""`enclave status` on reports of every kind; of a whole enclave: test_observability."""

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from enclave_parent_gateway.api import EgressStatus
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_parent_gateway.status_report import ChannelReport, KernelReport, StatusReport
from enclave_parent_gateway.status_view import print_report, show_bytes, show_duration
from enclave_parent_gateway.sync.sync_state import SyncState
from enclave_protocol.enclave_usage import EnclaveCounts, VaultInfo

_PCR0 = "ab" * 48
_KERNEL = KernelReport(
    "aa-bb", 7, 75.0, 300 * 2**20, 120, 3.0, 5, {"shell": ChannelReport(2048, 4096)}, True, ()
)
_UP = StatusReport(
    state="up",
    runtime_dir="/r",
    backend="local",
    confidential=False,
    warning="NOT CONFIDENTIAL (local backend)",
    kms_endpoint_url=None,
    expected_pcrs={"0": (_PCR0,)},
    proxy=EgressStatus(("kms",), 1, None, 1, 2, 3, 4, 5000, 6),
    sync=None,
    debug=False,
    pcrs={"0": _PCR0, "8": "00" * 48},
    uptime_s=3700.0,
    isolation=("vault: no capabilities",),
    kernels=(),
    vault_count=0,
    counts=EnclaveCounts(3, {"KeyReleaseDeniedError": 2}),
)


def _shown(**changes: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, width=160, highlight=False, soft_wrap=True)
    print_report(console, msgspec.structs.replace(_UP, **changes))
    return file.getvalue()


def test_an_enclave_without_kernels() -> None:
    assert _shown().splitlines() == [
        "The enclave is up: backend local, 1 h 1 min.",
        "NOT CONFIDENTIAL (local backend)",
        f"PCR0        {_PCR0} (as expected)",
        "isolation   vault: no capabilities",
        "KMS         AWS",
        "packages    3 loaded, 2 refused: 2 KeyReleaseDeniedError",
        "proxy       allows kms; 1 connections open, 2 made, 3 denied, 4 failed; "
        "4.9 KiB out, 6 B in",
        "workspace   not mirrored; type: enclave sync -d DIR",
        "kernels     none",
    ]


def test_kernels_and_their_vaults() -> None:
    vaults = (
        VaultInfo("scorer", "1.2", True, 65, 128 * 2**20, 50),
        VaultInfo("young", "1", False, 1),
    )
    shown = _shown(kernels=(msgspec.structs.replace(_KERNEL, vaults=vaults),), vault_count=3)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "aa-bb stand 1 min 15 s 300 MiB 120 % 2.0 KiB 4.0 KiB 5" in lines
    assert "scorer 1.2 stand 1 min 5 s ≤ 128 MiB ≤ 50 %" in lines
    assert "young 1 none 1 s - -" in lines
    assert "1 more vaults are not listed." in shown and "only steps" in shown


@pytest.mark.parametrize(
    ("expected", "word"),
    [
        ({"0": (_PCR0, "cd" * 48)}, "(one of the 2 expected)"),
        ({"0": ("cd" * 48,)}, f"(NOT EXPECTED: {'cd' * 48})"),
        ({}, "(NOT EXPECTED: nothing is)"),
    ],
)
def test_another_pcr0_than_expected(expected: dict[str, tuple[str, ...]], word: str) -> None:
    assert f"PCR0        {_PCR0} {word}\n" in _shown(expected_pcrs=expected)


def test_every_pcr_that_is_expected_is_compared() -> None:
    shown = _shown(expected_pcrs={"0": (_PCR0,), "8": ("cd" * 48,)})
    assert f"PCR8        {'00' * 48} (NOT EXPECTED: {'cd' * 48})\n" in shown


def test_the_mirror() -> None:
    mirror = SyncState("/d[1]", ProcessIdentity(1, 2), "live", 3, 4, 5, 2048, 6)
    expected = (
        "/d[1]: live, 3 files and folders, 4 changes brought, 5 not brought; 2.0 KiB in, 6 B out"
    )
    assert f"workspace   {expected}\n" in _shown(sync=mirror)


def test_debug_mode_is_not_confidential() -> None:
    warning = "DEBUG MODE, NOT CONFIDENTIAL"
    assert warning in _shown(warning=warning)


def test_what_a_label_says_is_plain_text() -> None:
    vault = VaultInfo("[red]\x1b[2J", "1\n2", True, 1)
    shown = _shown(
        kernels=(msgspec.structs.replace(_KERNEL, vaults=(vault,)),),
        proxy=EgressStatus(("[bold]evil[/]\x1b[1m",), 8),
    )
    assert "\x1b" not in shown
    assert "[red] [2J 1 2" in shown
    assert "allows [bold]evil[/] [1m and 7 more" in shown


def test_no_enclave_and_one_that_is_none() -> None:
    assert _shown(state="down") == "No enclave is up. Type: enclave up\n"
    broken = _shown(state="broken", pids={"gateway": 1})
    assert broken.startswith("The enclave does not answer (gateway of it runs). ")
    assert _shown(state="untrusted", refusal="PCR0 \x1b[1m").splitlines() == [
        "The enclave is not trusted: PCR0  [1m"
    ]


def test_numbers() -> None:
    sizes = (0, 1023, 1024, 10240, 2**20 * 1.5, 2**50)
    assert [show_bytes(size) for size in sizes] == [
        *("0 B", "1023 B", "1.0 KiB", "10 KiB", "1.5 MiB", "1024 TiB")
    ]
    durations = (0.4, 61, 3599, 3600, 90_000)
    assert [show_duration(s) for s in durations] == [
        *("0 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "1 d 1 h")
    ]
