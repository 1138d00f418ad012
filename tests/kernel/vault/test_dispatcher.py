"""Calls into a real vault: what passes, what is refused, what an error shows."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enclave_kernel.call_channel import CallChannel
from enclave_kernel.session.package_failures import CallLimitError, EncryptedPackageError
from enclave_kernel.session.package_loading import LoadedPackage
from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import ValueRefusedError, decode_value, encode_arguments
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed, spy_package


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path_factory.mktemp("spy"))


@pytest.fixture
def spy(loaded: LoadedPackage) -> Any:
    return loaded.proxy


class Wire:
    """A notebook that writes its own frames."""

    def __init__(self, loaded: LoadedPackage) -> None:
        self.channel: CallChannel = loaded.client._channel
        self._number = 1_000_000

    def ask(self, make: Any, buffers: tuple[memoryview, ...] = ()) -> Any:
        self._number += 1
        self.channel.send(make(self._number), buffers)
        payload, contents = self.channel.receive()
        reply = vm.decode_vault_message(payload)
        if isinstance(reply, vm.Result):
            return decode_value(reply.value, contents, resolve=lambda handle: handle)
        return reply


@pytest.fixture
def wire(loaded: LoadedPackage) -> Wire:
    return Wire(loaded)


NO_ARGUMENTS = encode_arguments((), {}).header


def test_values_come_back(spy: Any) -> None:
    assert spy.echo([1, {"a": (None, b"x")}]) == [1, {"a": (None, b"x")}]
    assert spy.empty() is None
    assert spy.opts(1, d=4) == [1, 2, 3, 4]
    assert spy.opts(1, b=0, c=None, d=4) == [1, 0, None, 4]


def test_a_hundred_mebibytes_cross_both_ways(spy: Any) -> None:
    array = np.arange(100 * 1024 * 1024 // 8, dtype=np.int64).reshape(1024, -1)
    back = spy.echo(array)
    assert back.shape == array.shape and np.array_equal(back, array)
    back[0, 0] = 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda spy: spy.opts(), r"opts\(\) missing a required argument: 'a'"),
        (lambda spy: spy.opts(1), r"opts\(\) missing a required( keyword-only)? argument: 'd'"),
        (lambda spy: spy.opts(1, 2, 3, d=4), r"opts\(\) too many positional arguments"),
        (lambda spy: spy.opts(1, d=4, e=5), r"opts\(\) got an unexpected keyword argument 'e'"),
        (lambda spy: spy.opts(1, a=1, d=4), r"opts\(\) multiple values for argument 'a'"),
        (lambda spy: spy.empty(1), r"empty\(\) too many positional arguments"),
        (lambda spy: spy.Box(1, 2), r"Box\(\) too many positional arguments"),
        (lambda spy: spy.Box().get(1), r"get\(\) too many positional arguments"),
    ],
)
def test_arguments_are_bound_to_the_declared_signature(spy: Any, call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(spy)


def test_names_outside_the_tables_are_refused(wire: Wire) -> None:
    (handle, _) = wire.ask(lambda n: vm.Construct(n, "Box", NO_ARGUMENTS))
    for name in ("undeclared", "SECRET", "__dict__", "run.__globals__", "Box", "spy:SECRET", "os"):
        for make in (
            lambda n, name=name: vm.Call(n, name, NO_ARGUMENTS),
            lambda n, name=name: vm.CallMethod(n, handle, name, NO_ARGUMENTS),
            lambda n, name=name: vm.GetAttribute(n, handle, name),
        ):
            reply = wire.ask(make)
            assert isinstance(reply, vm.Refused) and reply.kind == "AttributeError"
            assert CANARY not in reply.message
    for name in ("run", "Private", "object", "Box.twin"):
        reply = wire.ask(lambda n, name=name: vm.Construct(n, name, NO_ARGUMENTS))
        assert isinstance(reply, vm.Refused)
    # A method is no attribute, and an attribute no method.
    assert isinstance(wire.ask(lambda n: vm.GetAttribute(n, handle, "get")), vm.Refused)
    assert isinstance(wire.ask(lambda n: vm.CallMethod(n, handle, "content", b"")), vm.Refused)


def test_handles_are_random_and_end_with_their_release(wire: Wire) -> None:
    (handle, class_name) = wire.ask(lambda n: vm.Construct(n, "Box", NO_ARGUMENTS))
    assert class_name == "Box" and handle > 2**40
    for guess in (0, 1, handle ^ 1, 2**60, 2**62 - 1):
        reply = wire.ask(lambda n, guess=guess: vm.CallMethod(n, guess, "get", NO_ARGUMENTS))
        assert isinstance(reply, vm.Refused) and reply.kind == "ReferenceError"
    wire.channel.send(vm.Release((handle, handle, 17)))
    reply = wire.ask(lambda n: vm.CallMethod(n, handle, "get", NO_ARGUMENTS))
    assert isinstance(reply, vm.Refused) and reply.kind == "ReferenceError"


def test_handles_are_refused_as_arguments(spy: Any, wire: Wire) -> None:
    with pytest.raises(ValueRefusedError, match=r"argument 'value': a value of type spy\.Box"):
        spy.echo(spy.Box())
    (handle, _) = wire.ask(lambda n: vm.Construct(n, "Box", NO_ARGUMENTS))
    forged = msgspec.msgpack.encode([[[13, handle, "Box"]], [], []])
    reply = wire.ask(lambda n: vm.Call(n, "echo", forged))
    assert isinstance(reply, vm.Refused) and reply.kind == "ValueRefusedError"


def test_objects_come_by_reference_only_where_declared(spy: Any) -> None:
    box = spy.make(3)
    assert type(box) is spy.Box and box.get() == bytes(3)
    assert type(box.twin()) is spy.Box
    assert box.content == bytes(3)
    # A subclass is another class, and an object elsewhere than at a declared place is no data.
    for code in ("import spy; result = spy.Box()", "import spy; result = [spy.Box()]"):
        with pytest.raises(EncryptedPackageError, match="cannot leave the encrypted package"):
            spy.run(code)
    with pytest.raises(EncryptedPackageError, match="cannot leave"):
        spy.wrong()
    assert spy.nothing() is None
    with pytest.raises(TypeError, match="come only from"):
        spy.Sealed()


@pytest.mark.parametrize(
    "code",
    [
        "result = lambda: 0",
        "result = type('Secret', (), {})",
        "import os; result = os",
        "result = (x for x in ())",
        "result = ValueError('x')",
        "import numpy; result = numpy.array([object()])",
        "import numpy; result = numpy.ma.array([1], mask=[1])",
        "result = type('D', (dict,), {})()",
        "result = (lambda: 0).__code__",
    ],
)
def test_results_that_are_no_data_stay_and_are_not_described(spy: Any, code: str) -> None:
    with pytest.raises(EncryptedPackageError) as caught:
        spy.run(code)
    assert "cannot leave the encrypted package" in str(caught.value)
    assert "Secret" not in str(caught.value) and "lambda" not in str(caught.value)


def test_shown_errors_keep_their_message_and_nothing_else(spy: Any) -> None:
    with pytest.raises(ValueError, match=r"^too small$") as caught:
        spy.fail("ValueError", "too small")
    assert caught.value.__cause__ is None and caught.value.args == ("too small",)
    with pytest.raises(KeyError, match="column"):
        spy.fail("KeyError", "column")
    with pytest.raises(ValueError, match=r"^$"):
        spy.fail("ValueError")
    with pytest.raises(ValueError, match=r"^ \[2J bell $"):
        spy.fail("ValueError", "\x1b[2J bell\x07")
    with pytest.raises(ValueError, match=r"^x{500}$"):
        spy.fail("ValueError", "x" * 5000)


@pytest.mark.parametrize(
    ("kind", "args", "shown"),
    [
        ("RuntimeError", (CANARY,), "RuntimeError"),
        ("Private", (CANARY,), "ValueError"),
        ("ValueError", (CANARY, 2), "ValueError"),
        ("ValueError", ([CANARY],), "ValueError"),
        ("UnicodeDecodeError", ("utf-8", CANARY.encode(), 0, 1, CANARY), "UnicodeDecodeError"),
        ("SystemExit", (CANARY,), "SystemExit"),
        ("GeneratorExit", (CANARY,), "GeneratorExit"),
        ("StopIteration", (CANARY,), "StopIteration"),
        ("BaseException", (CANARY,), "BaseException"),
        ("MemoryError", (), "MemoryError"),
        ("SyntaxError", (CANARY,), "SyntaxError"),
    ],
)
def test_other_errors_show_a_type_and_an_incident(
    spy: Any, kind: str, args: tuple[object, ...], shown: str
) -> None:
    with pytest.raises(EncryptedPackageError) as caught:
        spy.fail(kind, *args)
    text = str(caught.value)
    assert text.startswith(f"{shown} in <encrypted spy 1.0> [incident ")
    assert CANARY not in repr(vars(caught.value)) + text
    assert caught.value.incident is not None and len(caught.value.incident) == 16
    assert spy.echo(1) == 1


def test_deep_recursion_and_a_forked_child_leave_the_vault_whole(spy: Any) -> None:
    with pytest.raises(EncryptedPackageError, match="RecursionError"):
        spy.run("def f():\n    return f()\nf()")
    # The child comes back through the dispatcher, and must not answer.
    assert spy.run("import os; result = os.fork()") > 0
    code = "import threading\nt = threading.Thread(target=lambda: 1)\nt.start(); t.join(); result=2"
    assert spy.run(code) == 2


def test_a_broken_protocol_ends_the_vault(tmp_path: Path) -> None:
    with VaultLink() as link:
        loaded = load_sealed(link, spy_package(), tmp_path)
        Wire(loaded).channel._sock.sendall(b"\xff" * 64)
        assert loaded.client._channel._sock.recv(1) == b""
        loaded.client.close()


MANIFEST = """
[package]
name = "limited"
version = "1"
module = "limited"
[exports]
functions = { f = "f(n)" }
[policy]
"""


@pytest.mark.parametrize(
    ("policy", "sizes", "message"),
    [
        ("max_calls = 2", [1, 1, 1], "allows 2 calls"),
        ("calls_per_minute = 1", [1, 1], "1 calls a minute: try again in"),
        ("max_result_bytes = 100", [50, 200], "owner allows 100"),
        ('expires = "2020-01-01T00:00:00Z"', [1], "expired at 2020"),
    ],
)
def test_the_owners_limits_hold(
    tmp_path: Path, policy: str, sizes: list[int], message: str
) -> None:
    source = "def f(n):\n    return bytes(n)\n"
    with VaultLink() as link:
        package = seal_package({"limited.py": source}, MANIFEST + policy)
        limited: Any = load_sealed(link, package, tmp_path).proxy
        for size in sizes[:-1]:
            assert limited.f(size) == bytes(size)
        with pytest.raises(CallLimitError, match=message):
            limited.f(sizes[-1])


@pytest.mark.parametrize(("now", "allowed"), [("2019-12-31", True), ("2020-01-01", False)])
def test_expiry_goes_by_the_time_that_the_supervisor_gave(
    tmp_path: Path, now: str, allowed: bool
) -> None:
    """The vault's own clock says neither of these."""
    manifest = MANIFEST + 'expires = "2020-01-01T00:00:00Z"'
    with VaultLink() as link:
        link.now_ms = int(datetime.fromisoformat(f"{now}T00:00:00Z").timestamp() * 1000)
        package = seal_package({"limited.py": "def f(n):\n    return bytes(n)\n"}, manifest)
        limited: Any = load_sealed(link, package, tmp_path).proxy
        if allowed:
            assert limited.f(1) == b"\0"
        else:
            with pytest.raises(CallLimitError, match="expired at 2020"):
                limited.f(1)


def test_a_package_expires_while_it_is_loaded(tmp_path: Path) -> None:
    manifest = MANIFEST + 'expires = "2020-01-01T00:00:00Z"'
    with VaultLink() as link:
        end = datetime.fromisoformat("2020-01-01T00:00:00Z").timestamp()
        link.now_ms = int((end - 8) * 1000)
        package = seal_package({"limited.py": "def f(n):\n    return bytes(n)\n"}, manifest)
        limited: Any = load_sealed(link, package, tmp_path).proxy
        assert limited.f(1) == b"\0"
        began = time.monotonic()
        with pytest.raises(CallLimitError, match="expired at 2020"):
            while time.monotonic() < began + 30:
                limited.f(1)
                time.sleep(0.2)


BOXES_MANIFEST = """
[package]
name = "boxes"
version = "1"
module = "boxes"
[exports]
functions = { make = "make(how)" }
classes = { Box = { init = "Box()", methods = ["get()", "inside(how)"], attributes = ["size"] } }
[exports.returns]
make = "Box"
"Box.inside" = "Box"
[policy]
"""
BOXES_SOURCE = """
class Box:
    size = 1

    def get(self):
        return 1

    def inside(self, how):
        return make(how, self)


def make(how, box=None):
    box = box or Box()
    return {
        "itself": box, "list": [box], "tuple": (box,), "dict": {"a": box}, "deep": [[(box,)]],
    }[how]
"""


def boxes_package(policy: str = "") -> SealedPackage:
    return seal_package({"boxes.py": BOXES_SOURCE}, BOXES_MANIFEST + policy)


def test_objects_inside_a_declared_result_are_refused(tmp_path: Path) -> None:
    """By reference comes the result itself; what a list holds was never declared (R-10)."""
    with VaultLink() as link:
        boxes: Any = load_sealed(link, boxes_package(), tmp_path).proxy
        box = boxes.make("itself")
        assert type(box) is boxes.Box and type(box.inside("itself")) is boxes.Box
        for how in ("list", "tuple", "dict", "deep"):
            for call in (boxes.make, box.inside):
                with pytest.raises(EncryptedPackageError, match="cannot leave the encrypted"):
                    call(how)
        assert box.get() == 1


def test_every_kind_of_request_counts(tmp_path: Path) -> None:
    with VaultLink() as link:
        boxes: Any = load_sealed(link, boxes_package("max_calls = 4"), tmp_path).proxy
        box = boxes.Box()
        assert (box.size, boxes.make("itself").__class__, box.get()) == (1, boxes.Box, 1)
        for request in (lambda: box.size, box.get, boxes.Box, lambda: boxes.make("itself")):
            with pytest.raises(CallLimitError, match="allows 4 calls"):
                request()


def test_attributes_alone_use_the_calls_up(tmp_path: Path) -> None:
    with VaultLink() as link:
        boxes: Any = load_sealed(link, boxes_package("max_calls = 3"), tmp_path).proxy
        box = boxes.Box()
        assert (box.size, box.size) == (1, 1)
        with pytest.raises(CallLimitError, match="allows 3 calls"):
            box.size  # noqa: B018 (the access is the test)
