"""Scripts of a package in real vaults: how they end. What a user types is in test_run_encrypted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import FileKey
from enclave_kernel.session.package_loading import open_encrypted, send_body
from enclave_kernel.session.script_client import ScriptClient
from enclave_kernel.session.script_run import ScriptFailedError, ScriptResult, run_script
from enclave_protocol.script_messages import RunScript, ScriptReply, decode_script_reply
from enclave_protocol.vault_messages import LoadFailed
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


def test_inputs_right_behind_a_signed_body(link: VaultLink, workspace: Path) -> None:
    """The body's last piece may still be hashed when they come."""
    files: dict[str, str | bytes] = {
        "run.py": "import sys\nprint(len(open(sys.argv[1]).read()))",
        "weights.bin": bytes(2**22),
    }
    manifest = _MANIFEST.replace("[scripts]", "publisher = 'ACME'\n[scripts]")
    policy = "[policy]\nworkspace = 'read'\noutput = 'text'\n"
    publisher = FileKey(Ed25519PrivateKey.generate())
    package = seal_package(files, manifest + policy, publisher=publisher)
    link.add(package)
    file = package.write(workspace / "app.encrypted")
    (workspace / "input").write_bytes(b"x" * 2**24)
    for _ in range(3):
        result = run_script(str(file), "run", ("/input",), (), link, lambda _stage, _share: None)
        assert result.written == ()


def _forged_run(link: VaultLink, workspace: Path, outputs: tuple[str, ...]) -> ScriptReply:
    """Send what our own client never would, and return the vault's first answer."""
    files = {"run.py": "", "names/CANARY.bin": "CANARY"}
    package = seal_package(files, f"{_MANIFEST}[policy]\nmax_result_bytes = 3\n")
    link.add(package)
    with open_encrypted(str(package.write(workspace / "app.encrypted"))) as opened:
        client = opened.start(link, ScriptClient, lambda _stage, _share: None)
        try:
            send_body(opened.stream, client, lambda _stage, _share: None)
            client._channel.send(RunScript(1, "run", (), ("output",), outputs))
            return decode_script_reply(client._channel.receive()[0])
        finally:
            client.close()


@pytest.mark.parametrize("outputs", [("../package",), ("..",), ("output/../../package",), ("/",)])
def test_outputs_are_not_collected_beside_the_workspace(
    link: VaultLink, workspace: Path, outputs: tuple[str, ...]
) -> None:
    reply = _forged_run(link, workspace, ("output", *outputs))
    # Neither names of the package's files nor their sizes.
    expected = "an output folder is none of the workspace's folders"
    assert reply == LoadFailed("VaultMessageError", expected)


@pytest.mark.parametrize("folder", ["/output/latest", "/output/latest/names"])
def test_outputs_are_not_collected_through_a_link(
    link: VaultLink, workspace: Path, folder: str
) -> None:
    code = (
        "import os, sys\nfolder = sys.argv[1]\n"
        "for name in ('/latest/names', '/latest'):\n    os.path.isdir(folder + name) and "
        "os.rmdir(folder + name)\n"
        "os.symlink(os.getcwd(), folder + '/latest')\n"
        "assert os.path.exists(folder + '/latest/names/CANARY.bin')\n"
        "open(folder + '/own', 'w').close()\n"
    )
    package = seal_package({"run.py": code, "names/CANARY.bin": "CANARY"}, _MANIFEST)
    link.add(package)
    file = package.write(workspace / "app.encrypted")
    result = run_script(
        str(file), "run", ("/output",), (folder,), link, lambda _stage, _share: None
    )
    assert result.written == ("output/own",)
