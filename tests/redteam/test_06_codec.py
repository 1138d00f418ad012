"""THREATS E.6: bytes that are no values, handed to a real vault, and to a real notebook.

That the codec itself holds is shown by tests/protocol and fuzzed by tests/fuzz; here the bytes
come where an attacker can put them, and the vault lives on.
"""

import os
import random
import struct
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest

from enclave_kernel.session.package_failures import VaultDiedError
from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import encode_arguments
from tests.redteam.arena import Arena

_PACK = msgspec.msgpack.encode


def sent(modern: Arena, header: bytes, buffers: tuple[bytes, ...] = ()) -> Any:
    """Send these bytes as a call's arguments; return the vault's reply."""
    channel = modern.loaded.client._channel
    views = tuple(memoryview(buffer) for buffer in buffers)
    channel.send(vm.Call(9_400_000, "predict", header), views)
    return vm.decode_vault_message(channel.receive()[0])


def refused(modern: Arena, node: Any, buffers: tuple[bytes, ...] = ()) -> None:
    """Send this as the one argument of a call; it must be refused, and nothing else happen."""
    reply = sent(modern, _PACK([[node], [], []]), buffers)
    assert isinstance(reply, vm.Refused) and reply.kind == "ValueRefusedError", reply
    assert modern.vault.package.predict([1.0])[0] == 2.0


def array(dtype: Any = "f8", shape: Any = (1,), data: Any = bytes(8)) -> list[Any]:
    return [11, data, dtype, shape]


def test_the_well_formed_ones_pass(modern: Arena) -> None:
    """The control: the same nodes without a fault are values."""
    assert isinstance(sent(modern, _PACK([[array()], [], []])), vm.Result)
    by_buffer = _PACK([[array(data=0, shape=(1024,))], [], []])
    assert isinstance(sent(modern, by_buffer, (bytes(8192),)), vm.Result)


@pytest.mark.parametrize(
    "dtype",
    [
        *("O", "|O", "|O8", "object", "f8,O", "V8", "(2,)f8", "f16", "g", "G", "U0", "S0", "U-1"),
        *("U9999999", "M8[x]", "M8[99999999ns]", "=f8", ">f8", "<f8\0", "f8 ", "", "c8,c8", "int"),
        *(["f8"], {"names": ["a"]}, None, 8, b"f8", [["a", "O"]]),
    ],
    ids=str,
)
def test_d01_element_types(modern: Arena, dtype: Any) -> None:
    refused(modern, array(dtype))


@pytest.mark.parametrize(
    "shape",
    [
        *((-1,), (2**39, 2**39), (2**32, 2**32), (0, 2**62), (2**63,), (1.0,), (True,), ("1",)),
        *((1,) * 65, (2,), (None,), 1, "1", ((1,),), (0, 0, 2**40)),
    ],
    ids=lambda shape: str(shape)[:30],
)
def test_d03_shapes(modern: Arena, shape: Any) -> None:
    refused(modern, array(shape=shape))


@pytest.mark.parametrize("index", [1, -1, 2**63, 2**31, 0.0, True, None, "0", [0]], ids=str)
def test_d04_buffers_that_are_not_there(modern: Arena, index: Any) -> None:
    refused(modern, array(data=index, shape=(1024,)), (bytes(8192),))


def test_d04_buffers_used_twice_or_never(modern: Arena) -> None:
    one = array(data=0, shape=(1024,))
    refused(modern, [1, [one, one]], (bytes(8192),))
    refused(modern, 1, (bytes(8192),))
    refused(modern, array(data=0, shape=(1023,)), (bytes(8192),))


@pytest.mark.parametrize("order", ["C", "F"])
def test_d05_every_layout_arrives_as_its_elements(modern: Arena, order: Any) -> None:
    base = np.arange(24.0).reshape(2, 3, 4, order=order)
    layouts = [
        *(base, base[::-1], base[:, ::2], base.T, np.broadcast_to(base[0], (5, 3, 4))),
        *(base.astype(">f8"), np.array(3.0), np.zeros((0, 4)), base[..., 1:2], base.astype("f2")),
    ]
    for given in layouts:
        back = modern.vault.package.predict(given)
        assert np.array_equal(back, given * 2) and back.flags.c_contiguous
        assert back.dtype.isnative


def nested(depth: int) -> bytes:
    return b"\x92\x01\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "body",
    [
        *(
            nested(30),
            nested(300),
            nested(60_000),
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
        ),
        *(b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1"),
        *(
            b"\xd6\xff\x00\x00\x00\x01",
            b"\x81\xa1a\x01",
            b"\x82\xa1a\x01\xa1a\x02",
            b"\xa2\xff\xfe",
        ),
        *(b"\xc0\xc0", b"", b"\x94\x01", b"\xa3\xed\xa0\x80", b"\x92\x01\xc0"),
    ],
    ids=lambda body: body[:6].hex(),
)
def test_d06_msgpack_bombs(modern: Arena, body: bytes) -> None:
    reply = sent(modern, b"\x93\x91" + body + b"\x90\x90")
    assert isinstance(reply, vm.Refused) and reply.kind == "ValueRefusedError"
    assert modern.vault.package.predict([1.0])[0] == 2.0


def test_d06_too_many_items(modern: Arena) -> None:
    before = _resident(modern)
    refused(modern, [1, [None] * 1_100_000])
    refused(modern, [1, [[1, [None] * 1000]] * 1100])
    assert _resident(modern) - before < 256 * 2**20


def _resident(modern: Arena) -> int:
    with open(f"/proc/{modern.payload_pid}/statm") as file:  # noqa: PTH123 (of the vault)
        return int(file.read().split()[1]) * 4096


def test_d07_random_changes(modern: Arena) -> None:
    """Well-formed arguments with a few bytes changed: a call, a refusal, or the package's error."""
    dice = random.Random(int.from_bytes(os.urandom(4)))
    examples = [
        encode_arguments(args, {})
        for args in (
            ([1, 2.5, True, None, "x", b"y", (3,), {4}, {"k": [5]}],),
            (np.arange(6.0).reshape(2, 3),),
            (pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": pd.Categorical(["u", "v"])}),),
            (pa.table({"a": [1, None], "b": [["x"], []]}),),
            (datetime.now(UTC), Decimal("1.5"), 10**30),
        )
    ]
    before = _resident(modern)
    seen = set()
    for _ in range(3000):
        example = dice.choice(examples)
        header = bytearray(example.header)
        for _ in range(dice.randint(1, 4)):
            header[dice.randrange(len(header))] = dice.randrange(256)
        reply = sent(modern, bytes(header), tuple(map(bytes, example.buffers)))
        seen.add(type(reply).__name__)
    assert "Refused" in seen and seen <= {"Refused", "Result", "Raised"}
    assert _resident(modern) - before < 128 * 2**20
    assert modern.vault.package.predict([1.0])[0] == 2.0


@pytest.mark.parametrize(
    "node", [[6, b"\x01" * 8193], [6, b""], [6, "9" * 5000], [6, 5], [17, "9" * 9000], [17, "1_0e"]]
)
def test_d08_numbers_without_end(modern: Arena, node: Any) -> None:
    refused(modern, node)


def test_d09_odd_floats_and_texts(modern: Arena) -> None:
    run = modern.vault.package.run
    echo = "result = [str(x) for x in (float('nan'), -0.0, float('inf'))]"
    assert run(echo) == ["nan", "-0.0", "inf"]
    value = run("result = {float('inf'): -0.0}")
    assert str(value) == "{inf: -0.0}"
    with pytest.raises(Exception, match="cannot leave"):
        run("result = '\\ud800'")
    refused(modern, [9, 0], (b"\xed\xa0\x80" * 2000,))


@pytest.mark.parametrize(
    "node",
    [
        [40, ["utf8", None, 1, None, [array("i8", (2,), struct.pack("=qq", 0, 2**40)), b"x"]]],
        [40, ["string", None, 2**62, None, []]],
        [40, ["extension", "x", 1, None, []]],
        [42, ["a"], [True], []],
        [42, ["a"], [True], [[]]],
        [43, [], [], [["int64", None, 1, None, [1]]]],
    ],
    ids=lambda node: str(node)[:24],
)
def test_d10_arrow_that_lies(modern: Arena, node: Any) -> None:
    refused(modern, node)


@pytest.mark.parametrize(
    "node",
    [
        *(
            [0],
            [99],
            [-1],
            [1.5],
            ["1"],
            [True],
            [[1]],
            [],
            [13, 1, "Model"],
            [5, [1], []],
            [3, [1, 1]],
        ),
        *([11], [1, 2], [4, [[1, []]]], [20, 2**40], [15, 1, 2], [31, 1], [51, "RGB", [1, 1]]),
        *([5, [[1, []]], [1]], [18, b"short"], [50, "csr"], [52, True, 1]),
    ],
    ids=lambda node: str(node)[:24],
)
def test_d11_tags_that_are_none(modern: Arena, node: Any) -> None:
    refused(modern, node)


def test_d12_replies_that_nobody_asked_for(modern: Arena) -> None:
    """A vault that was taken over sends one reply too many: the client ends it, once noticed."""
    hostile = """
import gc
from enclave_kernel.call_channel import CallChannel
from enclave_protocol.vault_messages import Result
(channel,) = [thing for thing in gc.get_objects() if type(thing) is CallChannel]
for _ in range(3):
    channel.send(Result(7, b"\\xc0"))
"""
    with modern.another_vault() as place:
        with pytest.raises(VaultDiedError):
            place.package.run(hostile)
            place.package.predict([1.0])
        with pytest.raises(VaultDiedError):
            place.package.predict([1.0])


def test_d13_many_threads(modern: Arena) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(25):
            given = np.full(3, number * 1000.0 + turn)
            if not np.array_equal(modern.vault.package.predict(given), given * 2):
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
