"""The shape of `enclave status --json`, and the page that documents it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from enclave_parent_gateway.api import ChannelTraffic, GatewayStatus, SlotStatus
from enclave_parent_gateway.enclave_state import EnclaveState
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.status_report import StatusReport, make_report, report_schema
from enclave_protocol.messages import EnclaveStatus, Failed, KernelInfo
from tests.support.vault_link import ROOT

_ENCLAVE = EnclaveStatus("0.1.0", "i-1", False, 1.26, {"0": "ab" * 48}, ("vault: x",), ())
_STATE = EnclaveState("local", 1.0, "unix:/x", measured_pcr0="ab" * 48)


@pytest.fixture
def paths(tmp_path: Path) -> EnclavePaths:
    return EnclavePaths(tmp_path / "r", tmp_path / "s")


def _json(report: StatusReport) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(report))
    return found


def _check(report: dict[str, Any]) -> None:
    jsonschema.validate(report, json.loads((ROOT / "docs" / "status.schema.json").read_bytes()))


def test_the_documented_schema_is_that_of_the_code() -> None:
    """To write it anew: see docs/observability.md, "The shape of status --json"."""
    assert (ROOT / "docs" / "status.schema.json").read_bytes() == report_schema()


def test_every_field_is_explained() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    parts: dict[str, Any] = json.loads(report_schema())["$defs"]
    names = {name for part in parts.values() for name in part["properties"]}
    assert {"state", "memory_bytes", "denied", "refusals"} < names
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_without_an_enclave(paths: EnclavePaths) -> None:
    report = _json(make_report(paths, None, None))
    assert report == {"state": "down", "runtime_dir": str(paths.runtime)}
    _check(report)


def test_one_that_does_not_answer(paths: EnclavePaths) -> None:
    for found in (None, GatewayStatus(None, (), 0.0)):
        report = _json(make_report(paths, _STATE, found))
        assert report["state"] == "broken" and "pcrs" not in report and report["refusal"] is None
        assert ("proxy" in report) == (found is not None)
        _check(report)


def test_one_that_is_not_trusted(paths: EnclavePaths) -> None:
    found = GatewayStatus(None, (), 0.0, Failed("PcrMismatchError", "PCR0 is another"))
    report = _json(make_report(paths, _STATE, found))
    assert (report["state"], report["refusal"]) == ("untrusted", "PCR0 is another")
    _check(report)


def test_a_kernel_with_its_channels(paths: EnclavePaths) -> None:
    kernels = tuple(KernelInfo(name, 7, 1.0, ()) for name in ("aa-bb", "cc-dd"))
    enclave = msgspec.structs.replace(_ENCLAVE, kernels=kernels)
    slot = SlotStatus("aa", "aa-bb", None, 5, (ChannelTraffic("shell", 1, 2),))
    report = _json(make_report(paths, _STATE, GatewayStatus(enclave, (slot,), 300.0)))
    mine, other = report["kernels"]
    assert mine["channels"] == {"shell": {"bytes_to_kernel": 1, "bytes_from_kernel": 2}}
    assert (mine["connections"], other["connections"], other["channels"]) == (5, 0, {})
    assert report["uptime_s"] == 1.3 and report["expected_pcrs"] == {"0": ["ab" * 48]}
    _check(report)


def test_no_pcr0_is_expected(paths: EnclavePaths) -> None:
    state = msgspec.structs.replace(_STATE, measured_pcr0=None)
    report = _json(make_report(paths, state, GatewayStatus(_ENCLAVE, (), 300.0)))
    assert report["expected_pcrs"] == {}


@pytest.mark.parametrize(
    "change", [{"state": "fine"}, {"pids": {"gateway": "7"}}, {"uptime_s": "1"}, {"kernels": [{}]}]
)
def test_the_schema_refuses_what_is_no_report(paths: EnclavePaths, change: dict[str, Any]) -> None:
    report = _json(make_report(paths, _STATE, GatewayStatus(_ENCLAVE, (), 300.0)))
    _check(report)
    with pytest.raises(jsonschema.ValidationError):
        _check(report | change)
