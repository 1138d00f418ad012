"""THREATS E.5: results carry what they show, and nothing that is around it in memory."""

from typing import Any

import pytest

from enclave_kernel.session.package_failures import CallLimitError, EncryptedPackageError
from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import decode_value, encode_arguments
from tests.redteam.arena import Arena
from tests.redteam.hostile_notebook import HostileNotebook
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

_SECRET = "marked = __import__('sys').modules['marked']\nsecret = marked.CONSTANT\n"


def travels(modern: Arena, code: str) -> tuple[bytes, Any]:
    """Return all bytes that came for a result, and the value that they are."""
    channel = modern.loaded.client._channel
    arguments = encode_arguments((_SECRET + code,), {})
    channel.send(vm.Call(9_300_000, "run", arguments.header), arguments.buffers)
    payload, buffers = channel.receive()
    reply = vm.decode_vault_message(bytes(payload))
    assert isinstance(reply, vm.Result), reply
    data = b"".join([reply.value, *map(bytes, buffers)])
    return data, decode_value(reply.value, buffers)


def hidden(modern: Arena, code: str) -> Any:
    """Have `result` returned; no marker may travel with it."""
    data, value = travels(modern, code)
    assert modern.marked.found_in_bytes(data) == set()
    return value


def test_the_secret_is_there_to_travel(modern: Arena) -> None:
    """The control: returned as a result, it does arrive, and the search finds it."""
    data, value = travels(modern, "result = [secret, marked.WEIGHTS]")
    assert modern.marked.found_in_bytes(data) == {"constant", "numbers"}
    assert value[0] == modern.marked.markers["constant"].decode()


@pytest.mark.parametrize(
    "kind",
    [
        *("function", "class", "module", "generator", "code", "exception", "memoryview", "masked"),
        *("objects", "structured", "subclass", "dict", "bound", "model", "nested", "frame"),
        *("str", "path"),
    ],
)
def test_r01_what_is_no_data(notebook: HostileNotebook, kind: str) -> None:
    shown = notebook.cell(f"m.leak({kind!r})")
    assert shown.error == "EncryptedPackageError"
    assert "cannot leave the encrypted package" in shown.message and notebook.clean(shown)


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np; result = marked.WEIGHTS[0:1]",
        "import numpy as np; result = marked.WEIGHTS[:100:7][:2]",
        "import numpy as np; result = np.frombuffer((secret * 9).encode() + b'ok', 'u1')[-2:]",
        "import numpy as np; result = np.array([secret, 'ok'])[1:]",
        "import pyarrow as pa; result = pa.array([secret] * 50 + ['ok'])[50:]",
        "import pyarrow as pa; result = pa.table({'a': [secret] * 50 + ['ok']}).slice(50)",
        "import pyarrow as pa; result = pa.array([[secret], ['ok']])[1:]",
        "import pandas as pd; result = pd.DataFrame({'a': [secret, 'ok']}).iloc[1:]",
        "import pandas as pd; result = pd.Series([secret, 'ok'], dtype='string').iloc[1:]",
        "result = memoryview((secret + 'ok').encode())[-2:].tobytes()",
    ],
)
def test_r02_views_without_their_base(modern: Arena, code: str) -> None:
    assert hidden(modern, code) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import pandas as pd; result = pd.Series([secret, 'ok'], dtype='category').iloc[1:]",
        "import pandas as pd\nresult = pd.DataFrame({'a': pd.Categorical(['ok'], ['ok', secret])})",
        "import pandas as pd\n"
        "result = pd.DataFrame({'a': [1]}, index=pd.CategoricalIndex(['ok'], ['ok', secret]))",
        "import pyarrow as pa; result = pa.array([secret, 'ok']).dictionary_encode()[1:]",
        "import pandas as pd\n"
        "i = pd.MultiIndex.from_tuples([('ok', 1), (secret, 2)])\n"
        "result = pd.DataFrame({'a': [1, 2]}, index=i).iloc[:1]",
    ],
)
def test_r03_unused_categories(modern: Arena, code: str) -> None:
    assert hidden(modern, code) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np, pandas as pd\n"
        "a = pd.array(marked.WEIGHTS.view('i8')[100:104].copy(), dtype='Int64')\n"
        "a._mask[:] = True\nresult = pd.Series(a)",
        "import pyarrow as pa\n"
        "b = pa.py_buffer(marked.WEIGHTS[100:104].tobytes())\n"
        "result = pa.Array.from_buffers(pa.float64(), 4, [pa.py_buffer(b'\\0'), b])",
        "import pyarrow as pa\n"
        "a = pa.array([secret, 'ok'])\n"
        "result = pa.Array.from_buffers(a.type, 2, [pa.py_buffer(b'\\2'), *a.buffers()[1:]])",
    ],
)
def test_r04_what_is_under_a_null(modern: Arena, code: str) -> None:
    assert hidden(modern, code) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import pandas as pd; result = pd.DataFrame({'a': [1]}); result.attrs['x'] = secret",
        "import pandas as pd; result = pd.Series([1]); result.attrs['x'] = secret",
        "import pyarrow as pa\n"
        "result = pa.table({'a': [1]}).replace_schema_metadata({'x': secret})",
        "import pyarrow as pa\n"
        "field = pa.field('a', pa.int64(), metadata={'x': secret})\n"
        "result = pa.table([[1]], schema=pa.schema([field]))",
        "from PIL import Image; result = Image.new('L', (2, 2)); result.info['x'] = secret",
    ],
)
def test_r05_metadata(modern: Arena, code: str) -> None:
    assert hidden(modern, code) is not None


@pytest.mark.parametrize(
    "code",
    [
        "np.zeros(3, dtype=[('a', 'i1'), ('b', 'f8')])",
        "np.zeros(3, dtype=np.dtype([('a', 'i1'), ('b', 'f8')], align=True))",
        "np.zeros(3, dtype='V16')",
        "np.zeros(3, dtype=np.longdouble)",
        "np.zeros(3, dtype=np.clongdouble)",
    ],
)
def test_r06_padding(modern: Arena, code: str) -> None:
    """Elements with padding, which would carry what was in the heap before, are refused."""
    with pytest.raises(EncryptedPackageError, match="cannot leave"):
        modern.vault.package.run(f"import numpy as np; result = {code}")


def test_r08_oversized_results(modern: Arena) -> None:
    code = "import numpy as np; result = np.broadcast_to(np.float64(0), (2**{},))"
    for power in (33, 40, 59):
        with pytest.raises(EncryptedPackageError, match="cannot leave"):
            modern.vault.package.run(code.format(power))
    assert modern.vault.package.run(code.format(4)).tolist() == [0.0] * 16


_LIMITED = """
[package]
name = "limited"
version = "1"
module = "limited"
[exports.functions]
many = "many(count)"
[policy]
max_result_bytes = 1000
"""


def test_r08_the_owners_own_limit(tmp_path: Any) -> None:
    with VaultLink() as link:
        source = "def many(count):\n    return b'x' * count\n"
        limited: Any = load_sealed(
            link, seal_package({"limited.py": source}, _LIMITED), tmp_path
        ).proxy
        assert len(limited.many(900)) == 900
        with pytest.raises(CallLimitError, match="1000"):
            limited.many(1100)


def test_r09_a_flood_of_objects(modern: Arena) -> None:
    with modern.another_vault() as place:
        channel = place.package._client._channel
        model = place.package.Model()
        kept = 1
        while kept < 70_000:
            channel.send(
                vm.CallMethod(kept, model._handle, "clone", encode_arguments((), {}).header)
            )
            reply = vm.decode_vault_message(channel.receive()[0])
            if isinstance(reply, vm.Refused):
                break
            kept += 1
        assert kept <= 65_536
        assert place.package.predict([1.0])[0] == 2.0


@pytest.mark.parametrize("kind", ["model", "nested"])
def test_r10_objects_where_none_is_declared(notebook: HostileNotebook, kind: str) -> None:
    shown = notebook.cell(f"m.leak({kind!r})")
    assert shown.error == "EncryptedPackageError" and notebook.clean(shown)


def test_r10_an_object_of_another_class(modern: Arena) -> None:
    """best() is declared to return a Model: a subclass, and a class of one name, are others."""
    with modern.another_vault() as place:
        for body in ("marked.Other()", "type('Model', (marked.Model,), {})()", "marked"):
            code = f"import marked\nmarked.best.__code__ = (lambda: {body}).__code__\n"
            place.package.run(f"{code}marked.best.__globals__['marked'] = marked")
            with pytest.raises(EncryptedPackageError, match="cannot leave"):
                place.package.best()
