"""Values through a real vault: the same back, nothing hidden with them, large ones sealed."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from enclave_kernel import call_channel
from enclave_kernel.call_channel import CallChannel
from enclave_kernel.session.package_loading import LoadedPackage
from enclave_protocol.value_codec import ValueRefusedError, encode_arguments
from enclave_protocol.vault_messages import Call, Result, decode_vault_message
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed, spy_package

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")
image_module = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path_factory.mktemp("package"))


@pytest.fixture
def spy(loaded: LoadedPackage) -> Any:
    return loaded.proxy


def raw_result(loaded: LoadedPackage, code: str) -> bytes:
    """Return all the bytes that come back when the package runs `code`."""
    channel: CallChannel = loaded.client._channel
    arguments = encode_arguments((code,), {})
    channel.send(Call(1_000_000, "run", arguments.header), arguments.buffers)
    payload, buffers = channel.receive()
    reply = decode_vault_message(payload)
    assert isinstance(reply, Result)
    return b"".join([reply.value, *map(bytes, buffers)])


def test_plain_values_come_back(spy: Any) -> None:
    values = [
        *(slice(1, None, 2), range(5, 0, -1), Decimal("1.50"), UUID(int=7)),
        datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        *(np.datetime64("2026-01-01", "D"), np.str_("x")),
    ]
    back = spy.echo(values)
    assert back == values and list(map(type, back)) == list(map(type, values))


def test_library_values_come_back(spy: Any) -> None:
    frame = pd.DataFrame(
        {"a": [1, 2], "s": ["x", None], "c": pd.Categorical(["q", "r"])},
        index=pd.date_range("2026", periods=2, tz="Asia/Tokyo"),
    )
    pd.testing.assert_frame_equal(frame, spy.echo(frame))
    table = pa.table({"a": [1, None], "b": [["x"], None]})
    assert spy.echo(table).equals(table)
    matrix = sparse.csr_matrix(np.eye(3))
    assert (spy.echo(matrix).toarray() == np.eye(3)).all()
    image = image_module.new("RGB", (4, 3), (1, 2, 3))
    assert spy.echo(image).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "code",
    [
        "import pyarrow as pa; result = pa.array(['a', SECRET])[:1]",
        "import pyarrow as pa; result = pa.array(['a', SECRET]).dictionary_encode()[:1]",
        "import pandas as pd; result = pd.Series(['a', SECRET], dtype='category')[:1]",
        "import pandas as pd; result = pd.DataFrame({'a': [1]}); result.attrs['x'] = SECRET",
        "import numpy as np; result = np.array(['a', SECRET])[:1].astype('U1')",
    ],
)
def test_a_result_brings_nothing_hidden(loaded: LoadedPackage, code: str) -> None:
    hidden = raw_result(loaded, f"SECRET = {CANARY!r}\n{code}")
    assert CANARY.encode() not in hidden
    # The same look at a result that has it, or the test could not fail.
    assert CANARY.encode() in raw_result(loaded, f"result = [{CANARY!r}]")


MEMFD = "memfd:enclave-call"
MAPPED = f"result = {MEMFD!r} in open('/proc/self/maps').read()"
SEAL_EARLY = "import enclave_kernel.call_channel as c; c.SEALED_BYTES = {}"


@pytest.mark.parametrize("sealed", [False, True])
def test_large_arrays_come_back_writable_and_are_the_receivers_own(
    spy: Any, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    array = np.arange(2**20, dtype=np.int64)
    usual = call_channel.SEALED_BYTES
    if sealed:
        monkeypatch.setattr(call_channel, "SEALED_BYTES", array.nbytes)
        spy.run(SEAL_EARLY.format(array.nbytes))
    try:
        box = spy.Box(array)
        assert spy.run(MAPPED) is sealed
        back = box.get()
    finally:
        spy.run(SEAL_EARLY.format(usual))
    assert (MEMFD in Path("/proc/self/maps").read_text()) is sealed
    assert (back == array).all()
    back[0] = 7
    assert array[0] == 0 and back[0] == 7


def test_other_values_are_refused_by_name(spy: Any) -> None:
    with pytest.raises(ValueRefusedError, match=r"argument 'value', column 'b': a column of obj"):
        spy.echo(pd.DataFrame({"a": [1], "b": [object()]}))
    assert spy.echo(1) == 1
