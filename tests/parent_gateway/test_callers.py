"""Whose kernels are whose at a gateway that a group of users shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_parent_gateway.api import (
    ChangeEgress,
    ForgetKernel,
    GatewayStatus,
    HoldSlot,
    KeepRunning,
    Launch,
    PollKernel,
    Request,
    SignalSlot,
    WaitKernel,
)
from enclave_parent_gateway.callers import Callers
from enclave_parent_gateway.egress.allowlist import parse_rule
from enclave_parent_gateway.errors import NotPermittedError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Attest, Shutdown, StatusRequest

_ANNA, _BERT = 70001, 70002
_SLOT = "0123abcd-89abcdef"
_KERNEL = f"{_SLOT}-a1b2c3"
_OWN = os.geteuid()


def _launch(slot: str = _SLOT) -> Launch:
    return Launch(slot, b"k" * 32, "hmac-sha256", "/", {})


def _allowed(callers: Callers, request: Request, uid: int) -> bool:
    try:
        callers.check(request, uid, {_KERNEL})
    except NotPermittedError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[EnclavePaths]:
    yield EnclavePaths(tmp_path, tmp_path / "state", is_shared=True)


@pytest.fixture
def callers(paths: EnclavePaths) -> Callers:
    callers = Callers(paths)
    callers.claim(_SLOT, _ANNA)
    return callers


@pytest.mark.parametrize(
    "request_",
    [
        _launch(),
        ForgetKernel(_SLOT),
        HoldSlot(_SLOT),
        PollKernel(_KERNEL),
        WaitKernel(_KERNEL),
        SignalSlot(_KERNEL, 9),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_kernel_is_its_users_own(callers: Callers, request_: Request) -> None:
    assert _allowed(callers, request_, _ANNA)
    assert not _allowed(callers, request_, _BERT)
    assert _allowed(callers, request_, 0)
    assert _allowed(callers, request_, _OWN)


@pytest.mark.parametrize(
    "request_",
    [
        KeepRunning(5.0),
        Shutdown(),
        ChangeEgress((parse_rule("example.com:443"),)),
        ChangeEgress((), ("kms",)),
    ],
    ids=lambda request: type(request).__name__,
)
def test_what_concerns_all_is_the_administrators(callers: Callers, request_: Request) -> None:
    assert not _allowed(callers, request_, _ANNA)
    assert _allowed(callers, request_, 0)
    assert _allowed(callers, request_, _OWN)


def test_what_everybody_may_ask(callers: Callers) -> None:
    for request in (
        StatusRequest(),
        Attest(b"n" * 32),
        ChangeEgress(),
        _launch("ffff0000-00000000"),
        # Dead or made up: the answer says nothing.
        PollKernel("ffff0000-00000000-aaaaaa"),
    ):
        assert _allowed(callers, request, _BERT)


def test_a_kernel_that_nobody_is_known_to_own_is_the_administrators(paths: EnclavePaths) -> None:
    assert not _allowed(Callers(paths), PollKernel(_KERNEL), _ANNA)
    assert _allowed(Callers(paths), PollKernel(_KERNEL), _OWN)


def test_owners_outlive_the_gateway(callers: Callers, paths: EnclavePaths) -> None:
    again = Callers(paths)
    assert (again.owner(_SLOT), again.owns(_ANNA, _SLOT), again.owns(_BERT, _SLOT)) == (
        *(_ANNA, True, False),
    )
    again.keep_only({"ffff0000-00000000"})
    assert Callers(paths).owner(_SLOT) == _OWN
    assert (paths.runtime / "slot_owners.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b'{"a": "b"}', b'{"\xe8": 1}', b""])
def test_damaged_owners(callers: Callers, paths: EnclavePaths, content: bytes) -> None:
    (paths.runtime / "slot_owners.json").write_bytes(content)
    assert Callers(paths).owner(_SLOT) == _OWN


def test_a_gateway_of_ones_own(tmp_path: Path) -> None:
    callers = Callers(EnclavePaths(tmp_path, tmp_path / "state"))
    assert callers.may_connect(_OWN) and callers.may_connect(0)
    assert not callers.may_connect(_ANNA)
    callers.claim(_SLOT, _OWN)
    assert not (tmp_path / "slot_owners.json").exists()


def test_a_stranger_sees_no_kernel_of_others(callers: Callers) -> None:
    status = GatewayStatus(None, (), 0.0)
    assert callers.view(status, _BERT) == status
