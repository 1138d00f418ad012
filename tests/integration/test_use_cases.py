"""The AWS sample's three use cases: who brings code, models and data; by one package and one line.

In a script a relative path means the package, an absolute one the user's own folder.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.notebook_cells import run_cell
from tests.support.package_owner import PackageOwner, open_folder, write_package

_SCRIPT = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("-m")
parser.add_argument("-d")
parser.add_argument("-o")
options = parser.parse_args()
factor = int(open(options.m).read())
total = sum(int(open(os.path.join(options.d, name)).read()) for name in os.listdir(options.d))
with open(os.path.join(options.o, "result.txt"), "w") as file:
    file.write(str(factor * total))
"""
_MANIFEST = """
[package]
name = "app"
version = "1.0"
[scripts]
classify = { file = "classify.py" }
"""


@pytest.fixture(scope="module")
def folder(enclave: EnclaveHome) -> Iterator[Path]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        package = {
            "enclave.toml": _MANIFEST,
            "classify.py": _SCRIPT,
            "model.txt": "1000",
            "data/a.txt": "1",
            "data/b.txt": "2",
        }
        with open_folder() as source:
            write_package(source / "app", package)
            key = owner.new_key(status["pcrs"]["0"])
            owner.encrypt(source / "app", key, folder / "app.encrypted")
        write_package(folder / "models", {"mine.txt": "10"})
        write_package(folder / "dataset", {"c.txt": "3", "d.txt": "4"})
        yield folder


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        pytest.param("-m model.txt -d data/", "3000", id="owner-brings-code-model-and-data"),
        pytest.param("-m model.txt -d /dataset/", "7000", id="user-brings-data"),
        pytest.param("-m /models/mine.txt -d /dataset/", "70", id="user-brings-model-and-data"),
    ],
)
def test_who_brings_what(folder: Path, arguments: str, result: str) -> None:
    output = folder / "output"
    output.mkdir(exist_ok=True)
    (output / "result.txt").unlink(missing_ok=True)
    with kernel(cwd=str(folder)) as (_, client):
        cell = run_cell(
            client, f"%run_encrypted app.encrypted classify {arguments} -o /output/", 60
        )
    assert cell.error is None
    assert (output / "result.txt").read_text() == result
