"""THREATS E.20: what Python and the loader take from the environment and from folders."""

import subprocess
import sys

import pytest

from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook

_LOADER = {
    "LD_PRELOAD": "/nowhere/evil.so",
    "LD_AUDIT": "/nowhere/evil.so",
    "LD_LIBRARY_PATH": "/nowhere",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "GCONV_PATH": "/nowhere",
    "MALLOC_TRACE": "/nowhere/trace",
    "LD_DEBUG": "all",
}
_PYTHON = {
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere/start.py",
    "PYTHONINSPECT": "1",
    "PYTHONBREAKPOINT": "os.abort",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONPERFSUPPORT": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "error",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONHOME": "/nowhere",
}
_LIBRARIES = {
    "TORCH_LOGS": "all",
    "TORCH_COMPILE_DEBUG": "1",
    "NUMBA_CACHE_DIR": "/tmp/numba",  # noqa: S108 (a bait)
    "XLA_FLAGS": "--xla_dump_to=/tmp/xla",
    "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
}
_AMAZON = {
    "SSL_CERT_FILE": "/nowhere",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "bait",
    "OPENSSL_CONF": "/nowhere",
}
_EXPECTED = {"PATH", "LANG", "ORT_DISABLE_TELEMETRY", "HOME", "TMPDIR", "LC_CTYPE"}


@needs_root
@pytest.mark.parametrize(
    "bait", [_LOADER, _PYTHON, _LIBRARIES, _AMAZON], ids=["b01", "b02", "b05", "b08"]
)
def test_b01_b02_b05_b08_the_environment_of_a_supervisor(
    modern: Arena, monkeypatch: pytest.MonkeyPatch, bait: dict[str, str]
) -> None:
    """Set where vaults are started from: a vault's environment is made of nothing."""
    look = "import os; result = dict(os.environ)"
    for name, value in bait.items():
        monkeypatch.setenv(name, value)
    # The control: another child of ours has them all.
    child = [sys.executable, "-E", "-c", "import os; print(*os.environ)"]
    if bait not in (_LOADER, _PYTHON):
        seen = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
        assert set(bait) <= set(seen)
    with modern.another_vault() as place:
        environ = place.package.run(look)
        assert not set(bait) & set(environ)
        assert set(environ) <= _EXPECTED
        flags = "import sys; result = [sys.flags.isolated, sys.flags.no_site]"
        assert place.package.run(flags) == [1, 1]


def test_b03_nothing_of_site(notebook: HostileNotebook) -> None:
    modules = notebook.value("m.run('import sys; result = sorted(sys.modules)')")
    assert not {"site", "sitecustomize", "usercustomize"} & set(modules)
    path = notebook.value("m.run('import sys; result = sys.path')")
    assert "" not in path and "." not in path and str(notebook.folder) not in path


def test_b04_what_the_user_installs(notebook: HostileNotebook) -> None:
    """A poisoned numpy on the user's own path is the user's; a vault has the image's."""
    evil = notebook.folder / "site" / "numpy"
    evil.mkdir(parents=True)
    (evil / "__init__.py").write_text("raise RuntimeError('evil')\n")
    load = "%load_encrypted marked.encrypted as fresh"
    notebook.cell(f"import sys; sys.path.insert(0, {str(evil.parent)!r})")
    try:
        assert not notebook.cell(load).error
        where = notebook.value("fresh.run('import numpy; result = numpy.__file__')")
        assert str(notebook.folder) not in where
        assert notebook.value("fresh.predict([1.0]).tolist()") == [2.0]
    finally:
        notebook.cell("sys.path.pop(0)\n%unload_encrypted fresh")


def test_b06_b07_hooks_and_tampering_in_the_users_process(notebook: HostileNotebook) -> None:
    code = """
import ctypes, sys
seen = []
sys.setprofile(lambda frame, event, arg: seen.append((frame.f_code.co_name, repr(arg)[:200])))
try:
    m.predict([1.0]); m.best().bias
    try:
        m.fail("runtime")
    except Exception as error:
        seen.append(repr(error))
finally:
    sys.setprofile(None)
print(len(seen) > 10, repr(seen)[:100_000])
sys.modules["enclave_protocol.value_codec"].decode_value = None
"""
    shown = notebook.cell(code)
    assert shown.text.startswith("True") and notebook.clean(shown)
    assert notebook.value("m.predict([1.0]).tolist()") == [2.0]


@needs_root
def test_b08_a_supervisor_takes_nothing_from_its_environment(modern: Arena) -> None:
    """tests/kernel/test_kms.py shows that key release does not; here, what notebooks inherit."""
    with modern.another_notebook() as place:
        environ = place.run(attacks.inherited_state)["environ"]
    assert not {name for name in environ if name.startswith(("AWS_", "SSL_", "LD_"))}
