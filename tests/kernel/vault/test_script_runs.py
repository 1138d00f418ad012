"""Scripts of a package in real vaults: how they end. What a user types is in test_run_encrypted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_kernel.session.script_run import ScriptFailedError, ScriptResult, run_script
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink

_MANIFEST = "[package]\nname = 'app'\nversion = '1'\n[scripts]\nrun = { file = 'run.py' }\n"


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENCLAVE_WORKSPACE", str(tmp_path))
    return tmp_path


def _run(link: VaultLink, workspace: Path, code: str) -> ScriptResult:
    package = seal_package({"run.py": code}, _MANIFEST)
    link.add(package)
    file = package.write(workspace / "app.encrypted")
    return run_script(str(file), "run", ("/output",), (), link, lambda _stage, _share: None)


def test_an_open_thread_pool_ends(link: VaultLink, workspace: Path) -> None:
    code = (
        "import sys, threading, time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(2)\npool.submit(len, '').result()\n"
        "def late():\n    time.sleep(0.2)\n"
        "    open(sys.argv[1] + '/late', 'w').write('waited for')\n"
        "threading.Thread(target=late).start()\n"
    )
    assert _run(link, workspace, code).written == ("output/late",)


@pytest.mark.parametrize(("code", "exit_code"), [("exit(3)", 3), ("quit(4)", 4)])
def test_exit_without_an_import(
    link: VaultLink, workspace: Path, code: str, exit_code: int
) -> None:
    with pytest.raises(ScriptFailedError) as caught:
        _run(link, workspace, f"open('/dev/null').close()\n{code}")
    assert caught.value.exit_code == exit_code


def test_exit_in_the_end(link: VaultLink, workspace: Path) -> None:
    assert _run(link, workspace, "help('if')\nexit()").written == ()
