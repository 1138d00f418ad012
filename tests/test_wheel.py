"""The wheel holds what the tree holds: setup.cfg lists every package and subpackage by hand."""

import configparser
import zipfile

import pytest

from tests.support.project_wheel import DOMAINS, ROOT, build_wheel


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


def test_every_module_and_data_file_is_in_the_wheel(names: frozenset[str]) -> None:
    tree = {
        path.relative_to(ROOT / domain).as_posix()
        for domain in DOMAINS
        for path in (ROOT / domain / f"enclave_{domain}").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packaged = {name for name in names if name.startswith("enclave_") and ".d" not in name}
    assert packaged == tree


def test_kernelspec_is_in_the_wheel(names: frozenset[str]) -> None:
    data = {name.rpartition("/")[2] for name in names if "share/jupyter/kernels/enclave/" in name}
    assert data == {path.name for path in (ROOT / "kernelspec" / "enclave").iterdir()}


def test_licence_is_in_the_wheel(names: frozenset[str]) -> None:
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_every_command_has_its_module(names: frozenset[str]) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].strip().splitlines()
    modules = {line.partition("=")[2].partition(":")[0].strip() for line in scripts}
    assert {f"{module.replace('.', '/')}.py" for module in modules} <= names
