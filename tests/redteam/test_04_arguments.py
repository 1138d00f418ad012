"""THREATS E.4: what a user hands to a package. Only data enters a vault; code stays outside."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave_encryption.lint.package_lint import lint_package
from enclave_encryption.package_plan import plan_package
from enclave_kernel.session.package_failures import CallbackError, EncryptedPackageError
from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import ValueRefusedError, encode_arguments
from tests.redteam.arena import Arena
from tests.redteam.hostile_notebook import HostileNotebook
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

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


@pytest.fixture
def spies(notebook: HostileNotebook) -> None:
    shown = notebook.cell(_SPIES)
    assert not shown.error, shown.text


@pytest.mark.usefixtures("spies")
@pytest.mark.parametrize(
    "expression", ["lambda x: x", "len", "print", "__import__('functools').partial(spy)", "spy"]
)
def test_c01_functions(notebook: HostileNotebook, expression: str) -> None:
    refused(notebook, expression)
    refused(notebook, f"[1, {{'a': ({expression},)}}]")


@pytest.mark.usefixtures("spies")
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


@pytest.mark.usefixtures("spies")
@pytest.mark.parametrize(
    "base",
    ["dict", "str", "int", "float", "list", "tuple", "bytes", "set", "bytearray", "complex"],
)
def test_c03_subclasses_that_lie(notebook: HostileNotebook, base: str) -> None:
    lies = "dict.fromkeys(['__getitem__', '__iter__', '__len__', '__eq__', '__hash__'], spy)"
    refused(notebook, f"type('Lie', ({base},), {lies})()")
    assert notebook.value("ran") == []


@pytest.mark.usefixtures("spies")
def test_c03_arrays_that_lie(notebook: HostileNotebook) -> None:
    notebook.cell("class Lie(np.ndarray): __array_finalize__ = lambda *a: None; tobytes = spy")
    refused(notebook, "np.ones(3).view(Lie)")
    refused(notebook, "np.ma.array([1, 2], mask=[0, 1])")
    refused(notebook, "np.array([spy, 1], dtype=object)")
    assert notebook.value("ran") == []


@pytest.mark.usefixtures("spies")
@pytest.mark.parametrize("base", ["DataFrame", "Series"])
def test_c04_tables_that_lie(notebook: HostileNotebook, base: str) -> None:
    notebook.cell(f"class Lie(pd.{base}): _constructor = property(spy); to_numpy = spy")
    refused(notebook, "Lie([1.0])")
    refused(notebook, "pd.Series([spy], dtype=object)")
    assert notebook.value("ran") == []


@pytest.mark.usefixtures("spies")
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


@pytest.mark.usefixtures("spies")
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


_SEARCH = """
[package]
name = "search"
version = "1"
module = "search"
[exports.functions]
best = "best(objective, how='plain')"
quiet = "quiet(objective)"
[policy]
callbacks = { objective = "(x: float, step: int)" }
"""
_SEARCH_SOURCE = """
SECRET = "{secret}"
class Model:
    weights = SECRET
def best(objective, how="plain"):
    tries = {{
        "plain": lambda: objective(1.0, 1), "text": lambda: objective(SECRET, 1),
        "weights": lambda: objective([1.0, 2.0], 1), "more": lambda: objective(1.0, 1, SECRET),
        "named": lambda: objective(1.0, 1, **{{SECRET: 1}}), "function": lambda: objective(best, 1),
        "object": lambda: objective(Model(), 1), "hidden": lambda: objective(F(1.0), 1),
        "digits": lambda: objective(1.0, I(1)), "raised": lambda: objective(1.0),
    }}
    return tries[how]()
F = type("F", (float,), {{"weights": SECRET}})
I = type(SECRET, (int,), {{}})
def quiet(objective):
    return objective(1.0, 1)
"""


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A package that calls its user's function, and the secret that it would like to tell."""
    secret = f"cnry{secrets.token_hex(8)}"
    sealed = seal_package({"search.py": _SEARCH_SOURCE.format(secret=secret)}, _SEARCH)
    with VaultLink() as link:
        yield load_sealed(link, sealed, tmp_path_factory.mktemp("search")).proxy, secret


@pytest.mark.parametrize(
    "how", ["text", "weights", "more", "named", "object", "function", "hidden", "digits", "raised"]
)
def test_c05_functions_hear_what_was_declared(search: tuple[Any, str], how: str) -> None:
    """The user's function is an ear in the user's process: a float and an int, and nothing else."""
    package, secret = search
    heard: list[Any] = []
    assert package.best(lambda x, step: heard.append((x, step))) is None
    assert heard == [(1.0, 1)]
    with pytest.raises(EncryptedPackageError) as failure:
        package.best(lambda *args, **named: heard.append((args, named)), how)
    assert heard == [(1.0, 1)] and secret not in str(failure.value)


def test_c05_off_unless_declared(search: tuple[Any, str], notebook: HostileNotebook) -> None:
    package, _ = search
    with pytest.raises(ValueRefusedError, match="argument 'how'"):
        package.best(lambda x, step: 1, lambda: 1)
    assert notebook.cell("m.predict(lambda x: x)").error == "ValueRefusedError"


def test_c06_functions_that_are_hostile(search: tuple[Any, str]) -> None:
    """One that raises, one that returns what is no data or too much, one that comes back in."""
    package, _ = search

    def raises(x: float, step: int) -> None:
        raise KeyError("mine")

    def deep(x: float, step: int) -> Any:
        value: Any = []
        for _ in range(5000):
            value = [value]
        return value

    with pytest.raises(KeyError, match="mine"):
        package.best(raises)
    answers: list[Any] = [deep, lambda x, step: print, lambda x, step: [[]] * 2_000_000]
    for answer in answers:
        with pytest.raises(ValueRefusedError):
            package.best(answer)
    with pytest.raises(CallbackError, match="cannot be used in it"):
        package.best(lambda x, step: package.best(lambda x, step: 1))
    # Not in the package's way afterwards. One that never returns: tests/kernel/vault/.
    assert package.best(lambda x, step: 3) == 3


_CARELESS = """
import io, pickle
import joblib, numpy as np, pandas as pd, torch
TABLE = pd.DataFrame({"a": [1]})
def c08_query(x):
    return TABLE.query(x)
def c08_eval(x):
    return eval(x)
def c08_pandas(x):
    return pd.eval(x)
def c08_format(x):
    return x.format(TABLE)
def c08_getattr(x):
    return getattr(np, x)()
def c08_open(x):
    return open(x).read()
def d02_numpy(x):
    return np.load(io.BytesIO(x), allow_pickle=True)
def d02_pickle(x):
    return pickle.loads(x)
def d02_joblib(x):
    return joblib.load(io.BytesIO(x))
def d02_torch(x):
    return torch.load(io.BytesIO(x), weights_only=False)
def fine(x):
    return np.asarray(x).sum()
"""


def test_c08_d02_what_an_owner_must_not_do_with_it(tmp_path: Path) -> None:
    """Nothing in a vault can help whose exported code evaluates or unpickles: its owner is told."""
    names = [line[4:].partition("(")[0] for line in _CARELESS.splitlines() if line[:4] == "def "]
    functions = ", ".join(f'{name} = "{name}(x)"' for name in names)
    (tmp_path / "careless.py").write_text(_CARELESS)
    (tmp_path / "enclave.toml").write_text(
        '[package]\nname = "careless"\nmodule = "careless"\n[exports]\n'
        f"functions = {{ {functions} }}\n"
    )
    plan = plan_package(tmp_path)
    found = lint_package(plan.manifest, plan.manifest_text, plan.code).findings
    lines = _CARELESS.splitlines()
    told = {lines[finding.line - 2][4:].partition("(")[0] for finding in found}
    assert told == set(names) - {"fine"}
