"""THREATS E.8: files and paths, through functions that open what they are told to."""

import os
import secrets
import stat
import tempfile
from pathlib import Path

import pytest

from tests.redteam import attacks, kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import NotebookPlace, achieved
from tests.support.enclave_home import wait_until
from tests.support.vault_link import ROOT

pytestmark = needs_root


def test_f01_paths_that_lead_to_secrets(modern: Arena) -> None:
    control = modern.plain().run(attacks.own_memory)
    assert {"/proc/self/mem", "/proc/self/environ"} <= achieved(control)
    assert achieved(modern.vault.run(attacks.own_memory)) == set()
    paths = ["/etc/shadow", "/etc/passwd", "/dev/nsm", "/root", "/proc/1/root/etc", "marked.py"]
    paths += ["/marked", "marked/__init__.py", str(ROOT / "setup.cfg")]
    control = modern.plain().run(kernel_attacks.files_out_there, paths)
    assert {"/etc/shadow", "/root", str(ROOT / "setup.cfg")} <= achieved(control)
    assert achieved(modern.vault.run(kernel_attacks.files_out_there, paths)) == set()


def test_f01_the_source_is_in_no_file_of_the_vaults(modern: Arena) -> None:
    """Everything below the vault's root, read as root from outside; its data files are the control.

    The package's own folder holds data: nothing of the source may be anywhere.
    """
    root = Path(f"/proc/{modern.payload_pid}/root")
    places = [
        entry for entry in root.iterdir() if entry.name not in ("proc", "lib", "usr", "lib64")
    ]
    places = [entry for entry in places if entry.is_dir() and not entry.is_symlink()]
    found = set()
    for place in places:
        if place.name.startswith("vault-") or place.name in ("tmp", "dev", "etc"):
            found |= modern.marked.found_in_files([place])
    assert found == {"weights", "numbers", "file_name"}


def test_f02_command_line_and_environment(modern: Arena) -> None:
    code = """
result = [open(f"/proc/self/{name}", "rb").read() for name in ("cmdline", "comm", "cgroup")]
"""
    command, *_ = modern.vault.package.run(code)
    assert command.split(b"\0")[1:3] == [b"-I", b"-S"]
    assert b"vault-" not in command and not modern.marked.found_in_bytes(command)


def test_f03_y09_files_of_other_people(modern: Arena, user: NotebookPlace) -> None:
    with tempfile.TemporaryDirectory(prefix="redteam-other-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "data.csv"
        path.write_text("theirs")
        path.chmod(0o644)
        paths = [folder, str(path), f"/proc/self/root{path}", f"/proc/1/root{path}"]
        control = modern.plain(1_980_003).run(kernel_attacks.files_out_there, paths)
        assert str(path) in achieved(control)
        for place in (modern.vault, user):
            assert achieved(place.run(kernel_attacks.files_out_there, paths)) == set()


def test_f04_what_a_package_writes(notebook: HostileNotebook) -> None:
    name = f"written-{secrets.token_hex(4)}"
    for folder in ("/tmp", "/dev/shm", "."):  # noqa: S108 (of the vault)
        shown = notebook.cell(f"m.run(\"open('{folder}/{name}', 'w').write('x')\")")
        assert not shown.error, shown.text
        assert notebook.value(f"os.path.exists('{folder}/{name}')") is False
        assert not Path(folder, name).exists()


def _writable(pid: int | str) -> set[str]:
    """Return the file systems, by device number, that a process may write to."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {line.split()[2] for line in lines if "rw" in line.split()[5].split(",")}


def test_f05_nothing_to_swap_under_anybody(notebook: HostileNotebook) -> None:
    """A notebook and its vault share no file system that either may write to: no race is left."""
    ours, vault = _writable("self"), _writable(notebook.vault_pid)
    user = _writable(notebook.pid)
    device = notebook.folder.stat().st_dev
    assert f"{os.major(device)}:{os.minor(device)}" in ours
    assert vault and user
    # /proc is a new one in each: it has device numbers, too.
    assert vault & user == set() and vault & ours == set()


def test_f06_no_files_in_place_of_a_package(notebook: HostileNotebook) -> None:
    os.mkfifo(notebook.folder / "fifo.encrypted")
    (notebook.folder / "folder.encrypted").mkdir()
    (notebook.folder / "zero.encrypted").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "zero"):
        shown = notebook.cell(f"%load_encrypted {name}.encrypted")
        assert shown.error == "PackageFileError", shown.text


def test_f07_nothing_decrypted_is_in_a_file(notebook: HostileNotebook) -> None:
    marked = notebook.marked
    planted = notebook.folder / "planted.txt"
    planted.write_bytes(marked.markers["blob"])
    places = [notebook.folder, notebook.home.root, Path("/dev/shm"), Path("/var/tmp")]  # noqa: S108
    places += [path for path in Path("/tmp").iterdir() if path.name[:9] != "pytest-of"]  # noqa: S108
    assert marked.found_in_files(places, changed_after=notebook.started) == {"blob"}
    planted.unlink()
    assert marked.found_in_files(places, changed_after=notebook.started) == set()
    # The encrypted file is among what was searched.
    assert (notebook.folder / "marked.encrypted").stat().st_size > 1000


def test_f08_names_that_can_be_guessed(modern: Arena) -> None:
    """Vaults' folders have 128 random bits in their names, below a folder that nobody can list."""
    runtime = modern.supervisor.runtime_dir
    assert wait_until(lambda: any((runtime / "v").iterdir()), 30)
    folders = [path for path in (runtime / "v").iterdir() if path.is_dir()]
    for path in folders:
        assert len(path.name) == len("vault-") + 32
        assert stat.S_IMODE(path.parent.stat().st_mode) in (0o700, 0o711)
        assert path.parent.stat().st_uid == 0
    assert stat.S_IMODE((runtime / "k").stat().st_mode) == 0o700


def test_f09_code_that_a_vault_imports(modern: Arena, user: NotebookPlace) -> None:
    code = """
import json, os, sys, numpy
result = []
for module in (os, json, numpy):
    path = module.__file__
    for target in (path, os.path.dirname(path) + "/planted.pth", path[:-2] + "so"):
        try:
            open(target, "a").close()
            result.append(target)
        except OSError:
            pass
"""
    assert modern.vault.package.run(code) == []
    for name in ("numpy", "msgspec", "enclave_kernel", "os"):
        outcome = user.run(attacks.plant_beside, name)
        assert outcome and achieved(outcome) == set(), outcome
    assert achieved(modern.plain().run(attacks.plant_beside, "os"))


def test_f10_core_files(modern: Arena, user: NotebookPlace) -> None:
    for place in (modern.vault, user):
        assert place.run(kernel_attacks.is_tainted) is False
    limits = Path(f"/proc/{modern.payload_pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]


@pytest.mark.parametrize("name", ["json", "numpy", "sitecustomize", "codecs"])
def test_b03_modules_of_the_users(notebook: HostileNotebook, name: str) -> None:
    """THREATS B-03: what lies in the user's folder is imported by the user's kernel only."""
    path = notebook.folder / f"{name}.py"
    path.write_text("raise RuntimeError('planted')\n")
    try:
        shown = notebook.cell("%load_encrypted marked.encrypted as fresh")
        assert not shown.error, shown.text
        code = (
            "import json, numpy, codecs; result = [json.__file__, numpy.__file__, codecs.__file__]"
        )
        files = notebook.value(f"fresh.run({code!r})")
        assert not any(str(notebook.folder) in file for file in files)
        assert notebook.value("fresh.predict([1.0]).tolist()") == [2.0]
    finally:
        path.unlink()
        notebook.cell("%unload_encrypted fresh")
