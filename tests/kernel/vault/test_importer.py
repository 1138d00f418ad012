"""Importing from memory in a real vault: unmodified packages work, sources are nowhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.package_loading import PackageLoadError
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed, spy_package

MANIFEST = """
[package]
name = "app"
version = "2.0"
module = "{module}"
[exports]
functions = {{ probe = "probe()" }}
"""


def app(files: Mapping[str, str | bytes], module: str = "app") -> SealedPackage:
    return seal_package(files, MANIFEST.format(module=module))


def probe(files: Mapping[str, str | bytes], folder: Path, module: str = "app") -> Any:
    with VaultLink() as link:
        proxy: Any = load_sealed(link, app(files, module), folder).proxy
        return proxy.probe()


def test_packages_modules_and_relative_imports_work(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "app/__init__.py": "from .core import probe\nfrom . import deep\n",
        "app/core.py": "from app.deep.leaf import VALUE\nimport plain\nfrom space.part import X\n"
        "def probe():\n    from .lazy import late\n    return [VALUE, plain.P, X, late]\n",
        "app/deep/__init__.py": "",
        "app/deep/leaf.py": "from ..other import VALUE\n",
        "app/other.py": "# -*- coding: latin-1 -*-\nVALUE = '\xe9'\n".encode("latin-1"),
        "app/lazy.py": "late = __name__\n",
        "plain.py": "P = 1\n",
        "space/part.py": "X = 'namespace'\n",
    }
    assert probe(files, tmp_path) == ["\xe9", 1, "namespace", "app.lazy"]


def test_data_files_are_found_in_every_usual_way(tmp_path: Path) -> None:
    source = """
import importlib.resources, os, pkgutil
from pathlib import Path
def probe():
    here = Path(__file__).resolve().parent
    return [
        (here / "model" / "w.bin").read_bytes(),
        open(os.path.join(os.path.dirname(__file__), "top.txt")).read(),
        importlib.resources.files("app").joinpath("model/w.bin").read_bytes(),
        importlib.resources.read_text("app", "top.txt"),
        pkgutil.get_data("app", "model/w.bin"),
        __spec__.loader.get_data(str(here / "top.txt")),
        (here / "empty").read_bytes(),
        sorted(m.name for m in pkgutil.walk_packages([str(here)], "app.")),
        oct((here / "top.txt").stat().st_mode & 0o777), oct(here.stat().st_mode & 0o777),
    ]
"""
    files: dict[str, str | bytes] = {
        "app/__init__.py": source,
        "app/empty": b"",
        "app/model/w.bin": b"\x00\x01" * 20_000,
        "app/sub/__init__.py": "",
        "app/sub/leaf.py": "",
        "app/top.txt": "text",
    }
    weights = b"\x00\x01" * 20_000
    assert probe(files, tmp_path) == [
        weights,
        "text",
        weights,
        "text",
        weights,
        b"text",
        b"",
        ["app.sub", "app.sub.leaf"],
        "0o600",
        "0o700",
    ]


def test_the_source_is_in_no_file_and_no_tool_finds_it(tmp_path: Path) -> None:
    code = f"""
import inspect, linecache, os, sys, traceback, warnings
import spy
result = dict(
    file_exists=os.path.exists(spy.__file__),
    code_file=spy.echo.__code__.co_filename,
    loader=spy.__loader__.get_source("spy"),
    lines=linecache.getlines(spy.__file__) + linecache.getlines(spy.echo.__code__.co_filename),
    bytecode=sys.dont_write_bytecode,
)
for name, thing in (("module", spy), ("function", spy.echo), ("class", spy.Box)):
    try:
        result[name] = inspect.getsource(thing)
    except (OSError, TypeError):
        result[name] = None
try:
    spy.fail("RuntimeError")
except RuntimeError:
    result["traceback"] = traceback.format_exc()
found = []
for folder, _, names in os.walk(os.path.dirname(os.path.dirname(spy.__file__))):
    for name in names:
        found.append(name)
        if b"{CANARY[:6]}" + b"{CANARY[6:]}" in open(os.path.join(folder, name), "rb").read():
            found.append("LEAK")
result["files"] = found
"""
    with VaultLink() as link:
        spy: Any = load_sealed(link, spy_package(), tmp_path).proxy
        seen = spy.run(code)
    traceback = seen.pop("traceback")
    assert "<encrypted spy 1.0>" in traceback and "raise (" not in traceback
    assert seen == {
        "file_exists": False,
        "code_file": "<encrypted spy 1.0>",
        "loader": None,
        "lines": [],
        "bytecode": True,
        "module": None,
        "function": None,
        "class": None,
        "files": ["model.bin"],
    }


@pytest.mark.parametrize(
    "path",
    [
        "json.py",
        "json/__init__.py",
        "encodings/x.py",
        "numpy/__init__.py",
        "msgspec.py",
        "enclave_kernel/vault/budget.py",
        "sys.py",
    ],
)
def test_a_module_that_would_shadow_another_is_refused(tmp_path: Path, path: str) -> None:
    files = {"app.py": "def probe():\n    return 1\n", path: "raise SystemExit\n"}
    name = path.removesuffix(".py").split("/")[0]
    with pytest.raises(PackageLoadError, match=f"module '{name}' has the name of one"):
        probe(files, tmp_path)


def test_folders_that_only_look_like_modules_are_accepted(tmp_path: Path) -> None:
    files = {
        "__main__.py": "raise SystemExit\n",
        "app.py": "def probe():\n    return 1\n",
        "json/data.txt": "no module",
        "my-script.py": "raise SystemExit\n",
    }
    assert probe(files, tmp_path) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"app.py": f"raise RuntimeError('{CANARY}')\n"}, "failed while it was imported"),
        ({"app.py": f"def {CANARY} broken\n"}, "failed while it was imported"),
        ({"app.py": f"import sys\nsys.exit('{CANARY}')\n"}, "failed while it was imported"),
        ({"other.py": ""}, "failed while it was imported"),
        ({"app.py": ""}, "exports the function probe, which does not exist"),
        ({"app.py": "probe = 3\n"}, "exports the function probe, which does not exist"),
    ],
)
def test_a_package_that_does_not_import_says_so_and_no_more(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(PackageLoadError, match=message) as caught:
        probe(files, tmp_path)
    assert CANARY not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/package.encrypted: ")


def test_output_of_a_package_goes_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = """
import logging, os, sys, warnings
print("loud"); sys.stderr.write("loud"); os.write(1, b"loud"); os.write(2, b"loud")
warnings.warn("loud"); logging.error("loud"); os.write(1, b"loud")
def probe():
    print("loud"); os.write(2, b"loud")
    try:
        breakpoint()
    except RuntimeError:
        return sys.stdin.read()
"""
    assert probe({"app.py": source}, tmp_path) == ""
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
