"""What a package needs of the image is said in one line before any of its code runs."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.package_loading import PackageLoadError
from enclave_kernel.vault.requirements import RequirementsMissingError, check_requirements
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

MANIFEST = """
[package]
name = "needs"
version = "1"
module = "needs"
requirements = [{requirements}]
[exports]
functions = {{ f = "f()" }}
[scripts]
run = {{ file = "run.py" }}
"""
FILES: dict[str, str | bytes] = {
    "needs.py": "raise RuntimeError('ran')",
    "run.py": "raise RuntimeError('ran')",
}


def test_what_is_there_is_enough() -> None:
    check_requirements([])
    check_requirements(
        ["numpy", "NumPy >= 1.0, <100", f"numpy=={version('numpy')}", "msgspec>=0.1"]
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("numpyy", "numpyy (not installed)"),
        ("numpy>=99", f"numpy>=99 (it has {version('numpy')})"),
        ("numpy=>1", "numpy=>1 (not understood)"),
        ("numpy @ https://example.com/x.whl; bad", "(not understood)"),
    ],
)
def test_what_is_missing_is_named(text: str, shown: str) -> None:
    with pytest.raises(RequirementsMissingError) as caught:
        check_requirements(["numpy", text, "also-missing"])
    message = str(caught.value)
    assert shown in message and "also-missing (not installed)" in message
    assert "\n" not in message and "numpy," not in message


def test_nothing_of_the_package_runs(tmp_path: Path) -> None:
    manifest = MANIFEST.format(requirements='"numpyy>=2"')
    with VaultLink() as link, pytest.raises(PackageLoadError, match="lacks what") as caught:
        load_sealed(link, seal_package(FILES, manifest), tmp_path)
    assert "numpyy>=2 (not installed)" in str(caught.value)
    met = MANIFEST.format(requirements='"numpy>=1"')
    files = FILES | {"needs.py": "def f():\n    return 1\n"}
    with VaultLink() as link:
        needs: Any = load_sealed(link, seal_package(files, met), tmp_path).proxy
        assert needs.f() == 1
