"""ipykernel's own tests, run black-box against kernel `enclave`.

They are taken from the source distribution of the installed version at test time and start kernel
`python3`; a kernelspec of ours under that name, first on JUPYTER_PATH, puts kernel `enclave` there.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.enclave_home import EnclaveHome

# What ipykernel itself skips on this system, whatever the kernel is. Nothing else may be skipped.
_SKIP_REASONS = {
    "Currently don't capture during test as pytest does its own capturing",
    "Requires trio",
    "Stalls on linux",
    "only run on Windows",
    "test only on windows",
}

# They hand the kernel a file of the test's by its path. As root the enclave walls a kernel off, and
# it sees no folder of the machine's but the notebook's own.
_SHARE_FILES = ("test_sys_path_profile_dir", "test_save_history")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked source distribution."""
    directory = tmp_path_factory.mktemp("ipykernel")
    name = f"ipykernel-{version('ipykernel')}"
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "ipykernel"]
    subprocess.run(
        [sys.executable, *download, "--dest", str(directory), name.replace("-", "==")],
        check=True,
        timeout=300,
    )
    # tarfile has no extraction filter in the Python of Debian 12; tar refuses to leave the folder.
    subprocess.run(["tar", "-xzf", f"{name}.tar.gz"], cwd=directory, check=True)
    return directory / name


@pytest.fixture
def shadowed(enclave: EnclaveHome, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which kernel `python3` is kernel `enclave`."""
    shutil.copytree(
        enclave.root / "share" / "kernels" / "enclave", tmp_path / "kernels" / "python3"
    )
    environ = enclave.environ | {"JUPYTER_PATH": str(tmp_path)}
    # One test names the default profile; the stock kernel would have made it.
    subprocess.run(
        [sys.executable, "-m", "IPython", "profile", "create"],
        env=environ,
        check=True,
        capture_output=True,
    )
    return environ


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("module", "at_least"),
    [
        ("test_message_spec", 24),
        ("test_async", 2),
        ("test_kernel", 25),
        ("test_subshells", 20),
        ("test_debugger", 10),
    ],
)
def test_module(
    suite: Path, shadowed: dict[str, str], tmp_path: Path, module: str, at_least: int
) -> None:
    report = tmp_path / "report.xml"
    options = ["addopts=", "log_cli=false", "asyncio_default_fixture_loop_scope=function"]
    command = [sys.executable, "-m", "pytest", f"tests/{module}.py", "-q", "-p", "no:cacheprovider"]
    if os.geteuid() == 0:
        command += ["-k", " and ".join(f"not {name}" for name in _SHARE_FILES)]
    found = subprocess.run(
        [*command, f"--junitxml={report}", *(f"--override-ini={option}" for option in options)],
        cwd=suite,
        env=shadowed | {"PYTHONPATH": os.fspath(suite)},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-6000:]
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 (our own file)
    skipped = {case.get("name"): case.find("skipped") for case in cases}
    passed = [name for name, skip in skipped.items() if skip is None]
    assert len(passed) >= at_least
    for name, skip in skipped.items():
        assert skip is None or skip.get("message") in _SKIP_REASONS, (name, skip)
