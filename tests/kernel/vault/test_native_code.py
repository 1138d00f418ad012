"""Compiled code in a package: only where the policy says so, and only from the package's folder."""

import _ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from enclave_encryption.errors import SourceTreeError
from enclave_encryption.package_plan import plan_package
from enclave_kernel.session.package_loading import PackageLoadError
from enclave_protocol.compiled_code import is_compiled_head, is_compiled_name
from tests.support.package_owner import write_package
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

MANIFEST = """
[package]
name = "fast"
version = "1"
module = "fast"
[exports]
functions = {{ answer = "answer()", elsewhere = "elsewhere()", folder = "folder()" }}
[policy]
native = {native}
"""
SOURCE = """
import ctypes, os, shutil, pathlib
HERE = pathlib.Path(__file__).parent

def answer():
    from fast import _speed
    return _speed.answer()

def elsewhere():
    copy = pathlib.Path(os.environ["TMPDIR"]) / "copy.so"
    shutil.copy(HERE / "library.bin", copy)
    try:
        ctypes.CDLL(str(copy))
        return "loaded"
    except OSError as error:
        return "refused"

def folder():
    ctypes.CDLL(str(HERE / "library.bin"))
    return "loaded"
"""
EXTENSION = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *args) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_speed", 0, -1, methods};
PyMODINIT_FUNC PyInit__speed(void) { return PyModule_Create(&module); }
"""
LIBRARY = Path(_ctypes.__file__).read_bytes()
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.mark.parametrize(
    ("files", "offender"),
    [
        ({"fast/lib.so": b"x"}, "fast/lib.so"),
        ({"fast/LIB.SO.1.2": b"x"}, "fast/LIB.SO.1.2"),
        ({"fast/a.pyd": b"x"}, "fast/a.pyd"),
        ({"data/weights.bin": LIBRARY}, "data/weights.bin"),
    ],
)
def test_undeclared_it_is_refused_twice(
    tmp_path: Path, files: dict[str, str | bytes], offender: str
) -> None:
    files = {"fast/__init__.py": SOURCE, **files}
    manifest = MANIFEST.format(native="false")
    source = write_package(tmp_path / "source", {"enclave.toml": manifest, **files})
    with pytest.raises(SourceTreeError, match="native = true") as caught:
        plan_package(source)
    assert caught.value.problems[0].startswith(f"{offender}: is compiled code")
    with VaultLink() as link, pytest.raises(PackageLoadError, match="native = true") as refused:
        load_sealed(link, seal_package(files, manifest), tmp_path)
    # The vault names no file of the owner's.
    assert offender not in str(refused.value)


def test_a_program_has_to_be_one(tmp_path: Path) -> None:
    manifest = MANIFEST.format(native="true") + (
        '[scripts]\nlibrary = { file = "library.so" }\nshell = { file = "bin/run" }\n'
        'tool = { file = "bin/tool" }\n'
    )
    files: dict[str, str | bytes] = {
        "enclave.toml": manifest,
        "fast/__init__.py": SOURCE,
        "library.so": LIBRARY,
        "bin/run": "#!/bin/sh\n",
        "bin/tool": Path(sys.executable).read_bytes(),
    }
    source = write_package(tmp_path / "source", files)
    with pytest.raises(SourceTreeError) as caught:
        plan_package(source)
    assert sorted(caught.value.problems) == [
        "bin/run: is a script for another program, and a vault starts none",
        "library.so: is a shared library: link it as a program",
    ]


def test_names_and_heads() -> None:
    for name in ("a.so", "b/libx.so.6", "A.PYD", "x.dylib", "x.dll", f"_speed{SUFFIX}"):
        assert is_compiled_name(name)
    for name in ("a.so.txt", "so", "also", "a.py", "x.so/readme", "model.onnx"):
        assert not is_compiled_name(name)
    assert is_compiled_head(LIBRARY[:4]) and not is_compiled_head(b"\x7fEL")


def test_declared_it_runs_from_the_packages_folder_only(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    include = Path(sysconfig.get_path("include"))
    files: dict[str, str | bytes] = {"fast/__init__.py": SOURCE, "fast/library.bin": LIBRARY}
    can_build = compiler is not None and (include / "Python.h").exists()
    if compiler is not None and can_build:
        (tmp_path / "speed.c").write_text(EXTENSION)
        built = tmp_path / "speed.so"
        command = [compiler, "-shared", "-fPIC", f"-I{include}", str(tmp_path / "speed.c")]
        subprocess.run([*command, "-o", str(built)], check=True)
        files[f"fast/_speed{SUFFIX}"] = built.read_bytes()
    source = {"enclave.toml": MANIFEST.format(native="true"), **files}
    plan_package(write_package(tmp_path / "source", source))
    with VaultLink() as link:
        package = seal_package(files, MANIFEST.format(native="true"))
        fast: Any = load_sealed(link, package, tmp_path).proxy
        assert fast.folder() == "loaded"
        if os.geteuid() == 0:
            assert fast.elsewhere() == "refused"
        if can_build:
            assert fast.answer() == 42
