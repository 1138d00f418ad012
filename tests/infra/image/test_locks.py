import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from enclave_infra.image.debian_lock import check_packages, read_lock, write_lock
from enclave_infra.image.debian_packages import LEFT_OUT, ROOT_PACKAGES
from enclave_infra.image.errors import ImageError, LockError, ToolError
from enclave_infra.image.lock import FLAVOURS, requirements_of, without
from enclave_infra.image.python_packages import SITE, install_packages
from tests.support.built_image import LOCKS

_DEBIAN = read_lock(LOCKS / "debian.lock")


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_committed_lock_has_all_that_an_image_needs(architecture: str) -> None:
    roots = {p.name for p in _DEBIAN if (p.architecture, p.purpose) == (architecture, "root")}
    kernels = [p.name for p in _DEBIAN if (p.architecture, p.purpose) == (architecture, "kernel")]
    assert {*ROOT_PACKAGES, *LEFT_OUT - {"mawk"}} <= roots
    assert len(kernels) == 1
    assert kernels[0].endswith(f"-cloud-{architecture}")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_python_package_has_an_exact_version_and_hashes(flavour: str) -> None:
    text = (LOCKS / f"requirements-{flavour}.lock").read_text()
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert len(entries) == text.count("==") > 40
    assert {name for name, _, _ in entries} > {"ipykernel", "boto3", "cryptography", "pip"}


def test_the_flavours_agree() -> None:
    base, more = ((LOCKS / f"requirements-{name}.lock").read_text() for name in FLAVOURS)
    assert set(re.findall(r"^\S+==\S+", base, re.M)) < set(re.findall(r"^\S+==\S+", more, re.M))
    rest = without(more, base)
    assert re.findall(r"^pandas==", rest, re.M)
    assert not re.findall(r"^numpy==", rest, re.M)


def test_round_trip(tmp_path: Path) -> None:
    write_lock(tmp_path / "x", reversed(_DEBIAN))
    assert read_lock(tmp_path / "x") == _DEBIAN
    assert (tmp_path / "x").read_bytes() == (LOCKS / "debian.lock").read_bytes()


@pytest.mark.parametrize("line", ["amd64 root libc6 2.36", "amd64 tools a-b 1 " + "0" * 64, "x"])
def test_malformed(tmp_path: Path, line: str) -> None:
    (tmp_path / "x").write_text(f"# comment\n{line}\n")
    with pytest.raises(LockError, match="x:2 is not"):
        read_lock(tmp_path / "x")


def test_other_bytes_or_packages_are_refused() -> None:
    check_packages(_DEBIAN[:5], _DEBIAN[:5])
    changed = replace(_DEBIAN[0], sha256="0" * 64)
    for fetched in ([changed, *_DEBIAN[1:5]], _DEBIAN[:6], _DEBIAN[:4]):
        with pytest.raises(LockError, match="the lock file says"):
            check_packages(fetched, _DEBIAN[:5])


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "wrong.lock"
    lock.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ToolError, match="DO NOT MATCH THE HASHES"):
        install_packages([lock], "x86_64", tmp_path / "root")


def test_a_package_without_hash_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "none.lock"
    lock.write_text("six==1.17.0\n")
    with pytest.raises(ToolError, match="hash"):
        install_packages([lock], "x86_64", tmp_path / "root")


@pytest.mark.parametrize(
    "line",
    [
        *("--no-binary six", "--index-url https://a.example/simple", "-r other.txt", "-e ."),
        *("six @ https://a.example/six.whl", "https://a.example/six.whl", "./six.whl", "six>=1"),
        *("six==1.17.0 ; python_version > '3'", "six==1.17.0 --global-option=x", "\u0435==1"),
    ],
)
def test_a_lock_file_says_nothing_else(tmp_path: Path, line: str) -> None:
    """Else pip would run code of a package's, here and now."""
    lock = tmp_path / "hostile.lock"
    lock.write_text(f"six==1.17.0 \\\n    --hash=sha256:{'0' * 64}\n{line}\n")
    with pytest.raises(ImageError, match="line 3: not an exact version"):
        install_packages([lock], "x86_64", tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_lock_is_of_what_setup_cfg_asks_for(flavour: str) -> None:
    text = (LOCKS / f"requirements-{flavour}.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.M))
    for line in requirements_of(flavour):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), line


def test_packages_of_ones_own(tmp_path: Path) -> None:
    """From a list of names to the image's folder; two versions of one are refused."""
    (tmp_path / "ours.in").write_text("tqdm  # of ours\nnumpy\n")
    command = [sys.executable, "-m", "enclave_infra.image", "lock-requirements"]
    command += [str(tmp_path / "ours.in"), "-o", str(tmp_path / "ours.lock")]
    subprocess.run(command, check=True, capture_output=True)
    text = (tmp_path / "ours.lock").read_text()
    assert re.findall(r"^([a-z0-9-]+)==", text, re.M) == ["tqdm"]
    install_packages([tmp_path / "ours.lock"], "aarch64", tmp_path / "root")
    site = tmp_path / "root" / SITE
    assert (site / "tqdm" / "__init__.py").is_file()
    assert not (site / "bin").exists()
    (record,) = site.glob("tqdm-*.dist-info/RECORD")
    assert "bin/tqdm" not in record.read_text()
    (tmp_path / "again.lock").write_text(f"tqdm==4.60.0 --hash=sha256:{'0' * 64}\n")
    files = [tmp_path / "ours.lock", tmp_path / "again.lock"]
    with pytest.raises(ToolError, match="Cannot install tqdm"):
        install_packages(files, "x86_64", tmp_path / "other")
