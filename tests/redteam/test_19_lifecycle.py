"""THREATS E.19: what vaults share with each other, and what they leave behind. Nothing."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from enclave_kernel.session.package_failures import VaultDiedError
from tests.redteam.arena import Arena, sealed_marked
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import NotebookPlace
from tests.support.enclave_home import kernel, run_code, wait_until
from tests.support.supervisor_process import supervisor_process
from tests.support.vault_link import VaultLink, payload_pid, processes_of, spawn_vault
from tests.support.vault_packages import load_sealed

pytestmark = needs_root

_DICE = """
import ctypes, random, secrets, sys, uuid
import numpy as np
libc = ctypes.CDLL(None)
result = [hash("a"), random.random(), float(np.random.random()), secrets.token_hex(8),
          uuid.uuid4().hex, id(object()), ctypes.cast(libc.getpid, ctypes.c_void_p).value]
"""


def descendants(pid: int) -> set[int]:
    """Return all processes below this one, by our numbers."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(") ")[2].split()[1]
            )
        except OSError:
            continue
    found, before = {pid}, set[int]()
    while found != before:
        before = set(found)
        found |= {child for child, parent in parents.items() if parent in before}
    return found - {pid}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_t01_two_notebooks_one_package(notebook: HostileNotebook) -> None:
    load = "%load_encrypted marked.encrypted as m"
    marker = "import builtins; builtins.left = 'here'; open('left', 'w').write('x')"
    notebook.cell(f"m.run({marker!r})")
    with kernel(cwd=str(notebook.folder)) as (_, client):
        run_code(client, load)
        look = "import builtins, os; result = [hasattr(builtins, 'left'), os.path.exists('left')]"
        assert run_code(client, f"print(m.run({look!r}))").strip() == "[False, False]"
        other = int(run_code(client, "print(m.vault_number())"))
    assert other != notebook.value("m.vault_number()")


def test_t02_a_daemon_of_a_package(modern: Arena, tmp_path: Path) -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(60)
    os._exit(0)
os.wait()
"""
    with VaultLink() as link:
        loaded = load_sealed(link, modern.sealed, tmp_path)
        ((vault_id, vault),) = link.vaults.items()
        before = processes_of(vault.pid)
        proxy = loaded.proxy
        proxy.run(daemon)
        after = processes_of(vault.pid)
        assert len(after) > len(before)
        link.unload(vault_id)
        assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in after), 30)


def test_t03_the_supervisor_is_killed() -> None:
    """Notebooks and vaults have their ends tied to it: with it, all of them are gone."""
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as supervisor,
        supervisor.control() as control,
    ):
        request = supervisor.launch_request()
        control.request(request)
        with supervisor.client(request) as client:
            assert run_code(client, "import os; os.fork() or os.setsid() or os.fork(); print(1)")
        assert wait_until(lambda: any((supervisor.runtime_dir / "v").iterdir()), 30)
        started = descendants(supervisor.pid)
        # Zygote, init and kernel of a notebook, what it forked, and the three of a spare vault.
        assert len(started) >= 8
        os.kill(supervisor.pid, signal.SIGKILL)
        assert wait_until(lambda: not any(map(lives, started)), 30)


def test_t04_t07_nothing_is_left_and_nothing_is_alike(modern: Arena) -> None:
    """One after the other, and side by side: other files, names, numbers and addresses."""
    seen = []
    for _ in range(3):
        with modern.another_vault() as place:
            left = place.package.run(
                "import os; result = os.listdir('/tmp') + os.listdir('/dev/shm')"
            )
            assert left == []
            place.package.run("open('/tmp/left', 'w'); open('/dev/shm/left', 'w')")
            seen.append(place.package.run(_DICE))
    seen.append(modern.vault.package.run(_DICE))
    for column in zip(*seen, strict=True):
        assert len(set(column)) == len(column), column


def test_t05_memory_of_an_earlier_package(modern: Arena, tmp_path: Path) -> None:
    """A vault made while another one is loaded holds nothing of the other's package."""
    sealed, marked = sealed_marked()
    with VaultLink() as link:
        load_sealed(link, sealed, tmp_path)
        (vault,) = link.vaults.values()
        pid = payload_pid(vault.pid)
        assert marked.found_in_process(pid) == marked.in_vault
        assert modern.marked.found_in_process(pid) == set()
        assert marked.found_in_process(modern.payload_pid) == set()


def test_t06_kernels_draw_their_own_numbers(modern: Arena) -> None:
    dice = _DICE.replace("result = ", "print(").replace("value]", "value])")
    seen = []
    for _ in range(2):
        with modern.another_notebook() as place:
            seen.append(run_code(place.client, dice).strip("[]\n").split(", "))
    # Forked from one warm interpreter (B.11): the hash seed and the library's address are its own.
    for number in (1, 2, 3, 4):
        assert seen[0][number] != seen[1][number]


def test_t07_a_notebook_is_no_map_of_a_vault(modern: Arena, user: NotebookPlace) -> None:
    dice = _DICE.replace("result = ", "print(").replace("value]", "value])")
    seen = run_code(user.client, dice).strip("[]\n").split(", ")
    assert int(seen[-1]) != modern.vault.package.run(_DICE)[-1]
    assert int(seen[0]) != modern.vault.package.run(_DICE)[0]


def test_t08_an_empty_vault_holds_nothing(modern: Arena) -> None:
    """Before its walls stand it has no key: it gets one when it has said that they do."""
    runtime = modern.folder / "t08"
    runtime.mkdir(mode=0o711)
    vault = modern.spawner.do(spawn_vault, runtime)
    try:
        assert "system call allow-list" in vault.walls
        assert modern.marked.found_in_process(payload_pid(vault.pid)) == set()
    finally:
        vault.kill()
        vault.wait()
        vault.session_socket.close()


def test_t10_the_key_does_not_linger(modern: Arena, notebook: HostileNotebook) -> None:
    assert "key" not in modern.marked.found_in_process(modern.payload_pid)
    pids = notebook.home.status()["pids"]
    for pid in (notebook.vault_pid, notebook.pid, pids["supervisor"], pids["gateway"]):
        assert notebook.marked.found_in_process(pid) <= notebook.marked.in_vault


def test_t11_what_a_user_sets_before_loading(notebook: HostileNotebook) -> None:
    code = """
import os, resource
os.environ.update(TZ="Pacific/Kiritimati", LC_ALL="tr_TR.UTF-8", PYTHONHASHSEED="0", LANG="tr_TR")
os.environ.update(PYTHONPATH=os.getcwd(), LD_PRELOAD="/x.so", OMP_NUM_THREADS="1")
resource.setrlimit(resource.RLIMIT_NOFILE, (900, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.umask(0)
%load_encrypted marked.encrypted as fresh
"""
    look = """
import os, resource, time
mask = os.umask(0o77); os.umask(mask)
names = ("TZ", "LC_ALL", "PYTHONHASHSEED", "PYTHONPATH", "LD_PRELOAD", "OMP_NUM_THREADS")
result = [[os.environ.get(name) for name in names], time.tzname[0], mask,
          resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
"""
    names = "TZ LC_ALL PYTHONHASHSEED PYTHONPATH LD_PRELOAD OMP_NUM_THREADS LANG"
    try:
        shown = notebook.cell(code)
        assert not shown.error, shown.text
        environ, zone, mask, files = notebook.value(f"fresh.run({look!r})")
        assert environ == [None] * 6 and (zone, mask, files) == ("UTC", 0o77, 4096)
    finally:
        notebook.cell(f"for name in {names.split()!r}: os.environ.pop(name, None)")
        notebook.cell("resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 65536)); os.umask(0o22)")
        notebook.cell("%unload_encrypted fresh")


def test_t12_what_a_crash_tells(modern: Arena) -> None:
    """The same for every input that crashes it: no oracle. That it is slowed down is X-08."""
    told = set()
    for address in (8, 4096, 2**40):
        with modern.another_vault() as place, pytest.raises(VaultDiedError) as death:
            place.package.run(f"import ctypes; ctypes.string_at({address})")
        told.add(str(death.value))
    (text,) = told
    assert "SIGSEGV" in text and not modern.marked.found_in_bytes(text)


def test_after_unloading_nothing_answers(notebook: HostileNotebook) -> None:
    notebook.cell("%load_encrypted marked.encrypted as fresh\nkept = fresh.best()")
    notebook.cell("%unload_encrypted fresh")
    shown = notebook.cell("kept.predict([1.0])")
    assert shown.error == "VaultDiedError" and notebook.clean(shown)
