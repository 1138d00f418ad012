"""Functions of the user's, from the vault's side, with a notebook that misbehaves."""

import inspect
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.session.package_loading import LoadedPackage
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.callbacks import CallbackError, Callbacks
from enclave_kernel.vault.exports import ArgumentsError, Export
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.refusals import RefusedError
from enclave_protocol import vault_messages as vm
from enclave_protocol.manifest import Policy
from enclave_protocol.value_codec import decode_value, encode_arguments, encode_value
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

EXPORT = Export(
    "tune(objective, start, *, steps=3, **rest)",
    returns="value",
    actual=inspect.signature(lambda objective, start, *, steps=3, **rest: None),
)
SCHEMAS = {"objective": "(x: ndarray, step: int)", "other": "()"}


class Ends:
    """Both ends of a vault's socket, in this process."""

    def __init__(self, timeout_s: float) -> None:
        ours, theirs = socket.socketpair()
        self.vault, self.notebook = CallChannel(ours), CallChannel(theirs)
        policy = Policy(callbacks=SCHEMAS)
        output = CallOutput(self.vault.send, "none")
        self.callbacks = Callbacks(self.vault, output, PackageRunner(), policy, timeout_s=timeout_s)

    def function(self) -> Any:
        args = [None, 1]
        self.callbacks.place(("objective",), 7, EXPORT, args, {})
        self.callbacks.begin(7)
        return args[0]


@pytest.fixture
def patient() -> Iterator[Ends]:
    ends = Ends(60.0)
    yield ends
    ends.vault.close()
    ends.notebook.close()


@pytest.fixture
def hasty() -> Iterator[Ends]:
    ends = Ends(0.05)
    yield ends
    ends.vault.close()
    ends.notebook.close()


def test_one_question_and_its_answer(patient: Ends) -> None:
    function = patient.function()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(function, step=np.int64(3), x=np.zeros(2))
        payload, contents = patient.notebook.receive()
        question = vm.decode_vault_message(payload)
        assert isinstance(question, vm.CallBack)
        assert (question.request_id, question.parameter) == (7, "objective")
        x, step = decode_value(question.arguments, contents)
        assert x.tolist() == [0, 0] and (type(step), step) == (int, 3)
        answer = encode_value([1, 2])
        patient.notebook.send(vm.CallbackReturned(question.number, answer.header))
        assert asked.result(30) == [1, 2]
    patient.callbacks.end()
    with pytest.raises(CallbackError, match="has ended"):
        function(np.zeros(1), 1)


def test_one_that_takes_too_long_fails_its_call(hasty: Ends) -> None:
    function = hasty.function()
    with pytest.raises(CallbackError, match="did not return within 0 s"):
        function(np.zeros(1), 1)
    # The notebook is busy with the first: it cannot hear of another.
    with pytest.raises(CallbackError, match="'objective' did not return in time"):
        function(np.zeros(1), 2)
    with pytest.raises(RefusedError, match="passed as 'objective' did not return") as caught:
        hasty.callbacks.end()
    assert caught.value.kind == "CallbackTimeoutError"
    question = vm.decode_vault_message(hasty.notebook.receive()[0])
    assert isinstance(question, vm.CallBack)
    # Its answer comes at last: once, and is nobody's.
    late = vm.CallbackFailed(question.number, interrupted=False)
    assert not hasty.callbacks.is_late(vm.CallbackFailed(question.number + 1, interrupted=False))
    assert not hasty.callbacks.is_late(vm.Release(()))
    assert hasty.callbacks.is_late(late)
    assert not hasty.callbacks.is_late(late)
    hasty.callbacks.begin(8)
    hasty.callbacks.end()


def test_the_end_waits_for_a_thread_that_asks(patient: Ends) -> None:
    function = patient.function()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(function, np.zeros(1), 1)
        question = vm.decode_vault_message(patient.notebook.receive()[0])
        assert isinstance(question, vm.CallBack)
        ended = pool.submit(patient.callbacks.end)
        with pytest.raises(TimeoutError):
            ended.result(0.2)
        patient.notebook.send(vm.CallbackFailed(question.number, interrupted=False))
        with pytest.raises(CallbackError, match="raised an exception"):
            asked.result(30)
        ended.result(30)


@pytest.mark.parametrize(
    ("names", "args", "kwargs"),
    [
        (("start",), [1, None], {}),
        (("objective",), [1, 2], {}),
        (("objective",), [], {}),
        (("objective",), [], {"objective": 0}),
        (("objective", "objective"), [None], {}),
        (("other",), [1, 2], {"other": None}),
        (("nothing",), [None], {}),
        (("steps",), [1, 2], {"steps": None}),
    ],
)
def test_functions_come_only_where_they_are_declared_and_announced(
    patient: Ends, names: tuple[str, ...], args: list[Any], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentsError, match=r"argument '\w+' (cannot be|was announced)"):
        patient.callbacks.place(names, 7, EXPORT, args, kwargs)


MANIFEST = """
[package]
name = "tuner"
version = "1"
module = "tuner"
[exports]
functions = { tune = "tune(objective)" }
[policy]
callbacks = { objective = "(x: int)" }
"""
SOURCE = """
def tune(objective):
    try:
        return objective(1)
    except BaseException:
        return "caught"
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, seal_package({"tuner.py": SOURCE}, MANIFEST), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        lambda number: vm.CallbackReturned(number + 1, encode_value(1).header),
        lambda number: vm.CallbackFailed(number - 1, interrupted=True),
        lambda number: vm.Call(9, "tune", encode_arguments((1,), {}).header),
        lambda number: vm.NextItems(9, 9),
        lambda number: vm.BodyEnd(),
    ],
)
def test_an_answer_that_is_none_ends_the_vault(loaded: LoadedPackage, answer: Any) -> None:
    channel = loaded.client._channel
    channel.send(vm.Call(1, "tune", encode_arguments((None,), {}).header, ("objective",)))
    question = vm.decode_vault_message(channel.receive()[0])
    assert isinstance(question, vm.CallBack)
    channel.send(answer(question.number))
    with pytest.raises(ChannelClosedError):
        channel.receive()


def test_an_answer_that_nobody_asked_for_ends_the_vault(loaded: LoadedPackage) -> None:
    channel = loaded.client._channel
    channel.send(vm.CallbackFailed(0, interrupted=False))
    with pytest.raises(ChannelClosedError):
        channel.receive()


def test_bytes_that_are_no_value_are_the_packages_error(loaded: LoadedPackage) -> None:
    channel = loaded.client._channel
    channel.send(vm.Call(1, "tune", encode_arguments((None,), {}).header, ("objective",)))
    question = vm.decode_vault_message(channel.receive()[0])
    assert isinstance(question, vm.CallBack)
    channel.send(vm.CallbackReturned(question.number, b"\xc1"))
    reply = vm.decode_vault_message(channel.receive()[0])
    assert isinstance(reply, vm.Result)
    assert decode_value(reply.value, ()) == "caught"


def test_a_notebook_that_closes_meanwhile(loaded: LoadedPackage) -> None:
    channel = loaded.client._channel
    channel.send(vm.Call(1, "tune", encode_arguments((None,), {}).header, ("objective",)))
    channel.receive()
    channel.close()
    # The link's end waits for the vault, which ends with nobody to answer.
