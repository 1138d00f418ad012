"""THREATS E.4: what a user hands to a package. Only data enters a vault; code stays outside."""

from typing import Any

import msgspec
import pytest

from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import encode_arguments
from tests.redteam.arena import Arena
from tests.redteam.hostile_notebook import HostileNotebook

_SPIES = """
import os, pandas as pd
ran = []
def spy(*args, **kwargs):
    ran.append(os.getpid())
    raise RuntimeError("ran")
"""


def refused(notebook: HostileNotebook, expression: str) -> str:
    """Hand this to a function; it must be refused, naming the argument, before anything runs."""
    shown = notebook.cell(f"ran.clear()\nm.predict({expression})")
    assert shown.error == "ValueRefusedError", shown.text
    assert "argument 'x'" in shown.message
    return shown.message


@pytest.fixture(autouse=True)
def spies(notebook: HostileNotebook) -> None:
    shown = notebook.cell(_SPIES)
    assert not shown.error, shown.text


@pytest.mark.parametrize(
    "expression", ["lambda x: x", "len", "print", "__import__('functools').partial(spy)", "spy"]
)
def test_c01_functions(notebook: HostileNotebook, expression: str) -> None:
    refused(notebook, expression)
    refused(notebook, f"[1, {{'a': ({expression},)}}]")


@pytest.mark.parametrize(
    "method",
    [
        *("__array__", "__array_interface__", "__array_function__", "__getattr__", "__iter__"),
        *("__reduce_ex__", "__getstate__", "__len__", "__index__", "__float__", "__fspath__"),
        *("__dlpack__", "__arrow_c_stream__", "__dataframe__", "__class_getitem__"),
    ],
)
def test_c02_objects_that_convert_themselves(notebook: HostileNotebook, method: str) -> None:
    refused(notebook, f"type('Spy', (), {{{method!r}: spy}})()")
    assert notebook.value("ran") == []


@pytest.mark.parametrize(
    "base",
    ["dict", "str", "int", "float", "list", "tuple", "bytes", "set", "bytearray", "complex"],
)
def test_c03_subclasses_that_lie(notebook: HostileNotebook, base: str) -> None:
    lies = "dict.fromkeys(['__getitem__', '__iter__', '__len__', '__eq__', '__hash__'], spy)"
    refused(notebook, f"type('Lie', ({base},), {lies})()")
    assert notebook.value("ran") == []


def test_c03_arrays_that_lie(notebook: HostileNotebook) -> None:
    notebook.cell("class Lie(np.ndarray): __array_finalize__ = lambda *a: None; tobytes = spy")
    refused(notebook, "np.ones(3).view(Lie)")
    refused(notebook, "np.ma.array([1, 2], mask=[0, 1])")
    refused(notebook, "np.array([spy, 1], dtype=object)")
    assert notebook.value("ran") == []


@pytest.mark.parametrize("base", ["DataFrame", "Series"])
def test_c04_tables_that_lie(notebook: HostileNotebook, base: str) -> None:
    notebook.cell(f"class Lie(pd.{base}): _constructor = property(spy); to_numpy = spy")
    refused(notebook, "Lie([1.0])")
    refused(notebook, "pd.Series([spy], dtype=object)")
    assert notebook.value("ran") == []


@pytest.mark.parametrize(
    "expression",
    [
        *("(i for i in [1])", "iter([1])", "open('/dev/null')", "__import__('io').BytesIO(b'x')"),
        *("__import__('threading').Lock()", "__import__('contextlib').nullcontext()", "os"),
        *("type", "spy.__code__", "ValueError('x')", "memoryview(b'x')", "__import__('sys')"),
    ],
)
def test_c07_iterators_files_and_the_like(notebook: HostileNotebook, expression: str) -> None:
    refused(notebook, expression)


@pytest.mark.parametrize(
    "call",
    [
        *("m.predict([1], out=1)", "m.predict([1], where=1)", "m.predict([1], callback=1)"),
        *("m.predict([1], **{'__class__': 1})", "m.predict([1], 2, 3)", "m.predict()"),
        *("m.Model(0, weights=1)", "m.best(1)", "m.Model().predict([1], a=1)"),
    ],
)
def test_c09_keywords_that_are_not_declared(notebook: HostileNotebook, call: str) -> None:
    assert notebook.cell(call).error == "TypeError"


def test_c09_a_parameter_of_the_code_that_is_not_declared(modern: Arena) -> None:
    """Model.predict has a second parameter, whose name is a secret: neither way leads there."""
    secret = f"a_{modern.marked.markers['argument_name'].decode()}"
    for args, kwargs in ((([1.0], 2), {}), (([1.0],), {secret: 2})):
        reply = _method(modern, encode_arguments(args, kwargs).header)
        assert isinstance(reply, vm.Refused) and reply.kind == "TypeError"
    assert isinstance(_method(modern, encode_arguments(([1.0],), {}).header), vm.Result)


def _method(modern: Arena, arguments: bytes) -> Any:
    model = modern.vault.package.Model()
    channel = modern.loaded.client._channel
    channel.send(vm.CallMethod(9_200_000, model._handle, "predict", arguments))
    return vm.decode_vault_message(channel.receive()[0])


def test_c10_a_handle_where_data_is_expected(notebook: HostileNotebook, modern: Arena) -> None:
    refused(notebook, "m.best()")
    refused(notebook, "[m]")
    model = modern.vault.package.Model()
    channel = modern.loaded.client._channel
    for node in ([13, model._handle, "Model"], [1, [[13, model._handle, "Model"]]]):
        forged = msgspec.msgpack.encode([[node], [], []])
        channel.send(vm.Call(9_200_001, "predict", forged))
        reply = vm.decode_vault_message(channel.receive()[0])
        assert isinstance(reply, vm.Refused) and reply.kind == "ValueRefusedError"
