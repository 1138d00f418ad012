"""One full day of an enclave, compressed: nothing promised is lost, nothing is left over."""

import json
import os
import signal
import stat
from contextlib import ExitStack
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.integration.test_sync import phase, syncing
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.package_owner import PUBLISHER, PackageOwner, open_folder, publisher_fingerprint
from tests.support.run_desk import Desk

_NOTEBOOKS = 10
_FILES = {
    "enclave.toml": """
[package]
name = "app"
version = "1"
module = "app"
[exports]
functions = { double = "double(value)" }
[scripts]
report = { file = "report.py", output = "text" }
""",
    "app.py": "def double(value):\n    return 2 * value\n",
    "report.py": """
import pathlib, sys
total = sum(int(path.read_text()) for path in pathlib.Path(sys.argv[1]).iterdir())
pathlib.Path(sys.argv[3], "total.txt").write_text(str(total))
print(total)
""",
}


def test_one_day(own_home: EnclaveHome, tmp_path: Path) -> None:
    own_home.variables["TMPDIR"] = str(tmp_path)
    with open_folder() as folder:
        project = folder / "project"
        (project / "results").mkdir(parents=True)
        own_home.run("up").check_returncode()
        assert own_home.run("up").returncode == 0
        own_home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
        desk = _encrypt(own_home, folder, project)
        with syncing(own_home, project):
            _morning(own_home, desk, project)
            _evening(own_home, desk, project)
        own_home.run("down").check_returncode()
        assert own_home.run("down").returncode == 0
        results = {path.name for path in (project / "results").iterdir()}
        assert results == {f"{number}.txt" for number in range(_NOTEBOOKS)} | {"late.txt"}
        assert (project / "output" / "total.txt").read_text() == "100"
        assert not list(project.rglob(".enclave-*"))
    _check_nothing_is_left(own_home, tmp_path)


def _encrypt(home: EnclaveHome, folder: Path, project: Path) -> Desk:
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    desk = Desk(home, folder, owner, owner.new_key(status["pcrs"]["0"]))
    desk.encrypt("application", _FILES)
    (folder / "application.encrypted").rename(project / "application.encrypted")
    return desk


def _report(desk: Desk, project: Path) -> str:
    done = desk.run(
        *("-s", "report.py", "-a", "/results/ -o /output/"),
        file=str(project / "application.encrypted"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _morning(home: EnclaveHome, desk: Desk, project: Path) -> None:
    """Ten notebooks with a package, runs between them, the gateway killed twice."""
    with ExitStack() as stack:
        managers: list[KernelManager] = []
        clients: list[BlockingKernelClient] = []
        for number in range(_NOTEBOOKS):
            manager, client = stack.enter_context(kernel(cwd=str(project / "results")))
            managers.append(manager)
            clients.append(client)
            run_code(client, "%load_encrypted ../application.encrypted")
            said = run_code(client, f"mine = app.double({number}); print(mine)")
            assert said == f"{2 * number}\n"
            run_code(client, f"open('{number}.txt', 'w').write(str(mine))")
            assert (project / "results" / f"{number}.txt").read_text() == str(2 * number)
        assert _report(desk, project) == "90"
        for rule in ("pypi", "s3", "a.example:443"):
            home.run("proxy", "allow", rule).check_returncode()
            _kill(home, "gateway")
            home.run("up").check_returncode()
            assert wait_until(lambda: phase(home) == "live", 30), phase(home)
            if rule == "s3":
                break
        # The kernels, what is in them, and the packages' vaults went on.
        for number, client in enumerate(clients):
            client.wait_for_ready(timeout=30)
            assert run_code(client, "print(mine, app.double(mine))") == (
                f"{2 * number} {4 * number}\n"
            )
        home.run("proxy", "deny", "s3").check_returncode()
        rules = json.loads(home.run("proxy", "list", "--json").stdout)["rules"]
        assert [rule["text"] for rule in rules] == ["kms", "pypi"]
        assert len(home.status()["kernels"]) == _NOTEBOOKS
        _kill(home, "supervisor")
        # This gateway did not start them and has no keys of theirs: Jupyter says they are dead.
        assert wait_until(lambda: not any(manager.is_alive() for manager in managers), 10)


def _evening(home: EnclaveHome, desk: Desk, project: Path) -> None:
    """The next enclave: another boot, the same folder, rules and publishers."""
    home.run("up").check_returncode()
    assert wait_until(lambda: phase(home) == "live", 30), phase(home)
    with kernel(cwd=str(project / "results")) as (_, client):
        assert "NameError" in run_code(client, "mine")
        run_code(client, "open('late.txt', 'w').write('10')")
        assert run_code(client, "import os; print(len(os.listdir()))") == f"{_NOTEBOOKS + 1}\n"
        assert "pypi" in home.run("proxy", "list").stdout
    # The local KMS is of the enclave's boot: what its owner encrypts for the new one opens there.
    (project / "application.encrypted").unlink()
    desk = _encrypt(home, desk.folder, project)
    assert _report(desk, project) == "100"
    assert wait_until(lambda: home.status()["kernels"] == [])


def _kill(home: EnclaveHome, name: str) -> None:
    os.kill(home.status()["pids"][name], signal.SIGKILL)


def _check_nothing_is_left(home: EnclaveHome, temporary: Path) -> None:
    assert home.processes() == {}
    assert str(home.root) not in Path("/proc/self/mountinfo").read_text()
    assert str(home.root) not in Path("/proc/net/unix").read_text()
    left = [path for path in home.root.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert left == []
    assert list(temporary.iterdir()) == []
