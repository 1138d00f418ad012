"""`enclave run` beside `enclave sync`, and when gateway, enclave or both are not there, or die."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_sync import phase, syncing
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.package_owner import PUBLISHER, PackageOwner, open_folder, publisher_fingerprint
from tests.support.run_desk import Desk, until

_FILES = {
    "enclave.toml": """
[package]
name = "app"
version = "1"
[scripts]
double = { file = "double.py" }
sleep = { file = "sleep.py" }
""",
    "double.py": """
import sys
value = int(open(sys.argv[1]).read())
open(sys.argv[3] + "/doubled.txt", "w").write(str(2 * value))
""",
    "sleep.py": "import time; print('asleep', flush=True); time.sleep(60)",
}


def _desk(home: EnclaveHome, folder: Path) -> Desk:
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    desk = Desk(home, folder, owner, owner.new_key(status["pcrs"]["0"]))
    desk.encrypt("application", _FILES)
    return desk


@pytest.fixture(scope="module")
def desk(enclave: EnclaveHome) -> Iterator[Desk]:
    with open_folder() as folder:
        yield _desk(enclave, folder)


def test_beside_a_mirror(desk: Desk, tmp_path: Path) -> None:
    """The workspace is the mirrored folder, from wherever the command is typed."""
    project = desk.folder / "project"
    (project / "data").mkdir(parents=True)
    (project / "data" / "a.txt").write_text("21")
    file = str(desk.folder / "application.encrypted")
    arguments = ("-s", "double.py", "-a", "/data/a.txt -o /output/")
    try:
        with syncing(desk.home, project):
            done = desk.run(*arguments, file=file, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert (project / "output" / "doubled.txt").read_text() == "42"
            assert list(tmp_path.iterdir()) == []
            inside = desk.run(*arguments, "-o", str(project / "other"), file=file, cwd=tmp_path)
            assert inside.returncode == 0, inside.stderr
            with kernel(cwd=str(project)) as (_, client):
                look = "import glob; print(sorted(glob.glob('**/*.txt', recursive=True)))"
                expected = "['data/a.txt', 'other/doubled.txt', 'output/doubled.txt']\n"
                assert wait_until(lambda: run_code(client, look) == expected)
                # What a cell wrote is what the next run reads.
                run_code(client, "open('data/a.txt', 'w').write('50')")
            assert desk.run(*arguments, file=file, cwd=tmp_path).returncode == 0
            assert (project / "output" / "doubled.txt").read_text() == "100"
            elsewhere = desk.run(*arguments, "-w", str(tmp_path), file=file, cwd=project)
            assert elsewhere.returncode == 125 and str(tmp_path) in elsewhere.stderr
            # The mirror was not disturbed.
            assert phase(desk.home) == "live"
            (project / "late.txt").write_text("late")
            with kernel(cwd=str(project)) as (_, client):
                assert wait_until(lambda: run_code(client, "open('late.txt').read()") == "")
        assert not list(project.rglob(".enclave-*"))
    finally:
        (desk.home.runtime / "sync.json").unlink(missing_ok=True)


def test_two_runs_into_one_folder(desk: Desk) -> None:
    (desk.folder / "n.txt").write_text("4")
    processes = [desk.start("-s", "double.py", "-a", "/n.txt -o /both") for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert (desk.folder / "both" / "doubled.txt").read_text() == "8"
    assert desk.is_clean()


def test_deaths_and_starts(own_home: EnclaveHome) -> None:
    """Gateway and enclave are killed in turn while a script runs; then a run starts an enclave."""
    own_home.run("up").check_returncode()
    own_home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
    with open_folder() as folder:
        desk = _desk(own_home, folder)
        for victim, expected in (("gateway", "gateway is gone"), ("supervisor", "is gone")):
            process = desk.start("-s", "sleep.py")
            until(process, "asleep\n")
            pid = own_home.status()["pids"][victim]
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            if victim == "gateway":
                # As systemd would.
                own_home.run("up").check_returncode()
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 125, errors
            assert expected in errors and len(errors.splitlines()) == 1, errors
            assert time.monotonic() - began < 20
            own_home.run("up").check_returncode()
            assert wait_until(lambda: desk.kernels() == 0)
        own_home.run("down").check_returncode()
        done = desk.run("-s", "double.py", environ={"ENCLAVE_BACKEND": "elsewhere"})
        assert done.returncode == 125
        assert done.stderr.endswith("type: enclave up --backend elsewhere\n")
        # The local one is started, as for a notebook.
        (folder / "n.txt").write_text("4")
        done = desk.run("-s", "double.py", "-a", "/n.txt -o /output")
        assert done.returncode == 0, done.stderr
        assert (folder / "output" / "doubled.txt").read_text() == "8"
        assert own_home.status()["state"] == "up" and desk.is_clean()
