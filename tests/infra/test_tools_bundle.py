"""The bundle of wheels that machines in AWS install from."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from enclave_infra.tools_bundle import BundleError, main, write_bundle

_NAMES = (
    "numpy-2.3.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "python_dateutil-2.9.0.post0-py2.py3-none-any.whl",
    "Jinja2-3.1.6-1-py3-none-any.whl",
)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name in _NAMES:
        (directory / name).write_bytes(name.encode() * 1000)
    return directory


def test_every_wheel_with_its_hash(wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "tools.zip"
    digest = write_bundle(wheels, output)
    with zipfile.ZipFile(output) as bundle:
        assert set(bundle.namelist()) == {"requirements.txt", *_NAMES}
        requirements = bundle.read("requirements.txt")
        assert hashlib.sha256(requirements).hexdigest() == digest
        hashes = {name: hashlib.sha256(bundle.read(name)).hexdigest() for name in _NAMES}
    assert requirements.decode().splitlines() == [
        f"jinja2==3.1.6 --hash=sha256:{hashes[_NAMES[2]]}",
        f"numpy==2.3.1 --hash=sha256:{hashes[_NAMES[0]]}",
        f"python-dateutil==2.9.0.post0 --hash=sha256:{hashes[_NAMES[1]]}",
    ]


def test_the_same_wheels_give_the_same_file(wheels: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    write_bundle(wheels, first)
    for name in reversed(_NAMES):  # other times and another order in the directory
        data = (wheels / name).read_bytes()
        (wheels / name).unlink()
        (wheels / name).write_bytes(data)
    write_bundle(wheels, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numpy-2.3.1.tar.gz", "is no wheel"),
        ("notes.txt", "is no wheel"),
        ("numpy-2.3.1 --hash=x-py3-none-any.whl", "is no wheel"),
        ("NumPy-2.2.0-cp311-cp311-linux_x86_64.whl", "one distribution"),
    ],
)
def test_what_is_refused(wheels: Path, tmp_path: Path, name: str, message: str) -> None:
    (wheels / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=message):
        write_bundle(wheels, tmp_path / "tools.zip")
    assert not list(tmp_path.glob("*tools.zip*"))


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(BundleError, match="has no wheels"):
        write_bundle(tmp_path / "wheels", tmp_path / "tools.zip")


def test_a_failed_bundle_leaves_the_one_before(wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "tools.zip"
    write_bundle(wheels, output)
    before = output.read_bytes()
    (wheels / "notes.txt").write_bytes(b"x")
    assert main([str(wheels), str(output)]) == 1
    assert output.read_bytes() == before


def test_command(wheels: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "enclave_infra.tools_bundle"]
    output = tmp_path / "tools.zip"
    done = subprocess.run([*command, str(wheels), str(output)], capture_output=True, text=True)
    with zipfile.ZipFile(output) as bundle:
        digest = hashlib.sha256(bundle.read("requirements.txt")).hexdigest()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{digest}\n", "")
    done = subprocess.run([*command, str(tmp_path / "none"), "x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
    assert "Example:" in help_text
