"""THREATS E.16: the workspace's mirror, attacked from the enclave and from the parent."""

import os
import socket
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.errors import ProtocolError
from enclave_protocol.workspace.messages import (
    Batch,
    Begin,
    Digest,
    Entry,
    FromParent,
    Listing,
    MakeFolder,
    Move,
    Put,
    Read,
    Refused,
    Remove,
    Results,
    Scan,
    SetMeta,
    Sign,
    decode_from_enclave,
)
from enclave_protocol.workspace.names import NameRefusedError, check_rel, is_reserved
from enclave_protocol.workspace.scan import scan
from enclave_protocol.workspace.small_files import SmallFiles
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.tree import Tree, TreeError
from tests.kernel.workspace.test_workspace_streams import confirming, put, workspace
from tests.redteam import kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.places import achieved
from tests.support.enclave_home import run_code
from tests.support.hostile_workspace import (
    Forbidden,
    HostileEnclave,
    bring,
    everything,
    file_entry,
)
from tests.support.workspace_pair import WorkspacePair, serve_workspace

OUTSIDE = ["../../.ssh/authorized_keys", "/etc/cron.d/x", "a/../../x", "..", ".", "", "a//b", "/"]
OUTSIDE += ["a/./b", "a/", "../outside/canary", "a/..", "x\0y", "x\ny", ".enclave-sync/1-1"]
ODD = [
    "a\u202etxt.exe",
    "zero\u200bwidth",
    "a\\b",
    "dot.",
    "space ",
    "tab\tname",
    "\x7f",
    "\x1b[2J",
]
ODD += [
    unicodedata.normalize("NFD", "é"),
    "\u2024\u2024",
    "a\uff0fb",
    "\u2028",
    "\ufeffbom",
    "e\u0301",
]
RUNS = [".bashrc", ".ssh/authorized_keys", ".git/hooks/pre-commit", ".jupyter/custom.js"]
RUNS += [".ipython/profile_default/startup/x.py", ".vscode/tasks.json", "conftest.py", ".envrc"]
RUNS += ["\uff0essh/config", ".SSH/config", "a/.Git/hooks/x", "deep/.ipython/x", "CONFTEST.PY"]
RUNS += ["__pycache__/m.cpython-311.pyc", "m.pyc", "x.pth", "sitecustomize.py", "git~1/hooks/x"]
RUNS += ["jupyter_server_config.py", "jupyter_notebook_config.json", "ipython_config.py", ".env"]
RUNS += [".bashrc::$DATA", ".enclaveignore", "usercustomize.cpython-311-x86_64-linux-gnu.so"]
RUNS += [".pylintrc", ".eslintrc.cjs", ".bashrc.d/x.sh", ".wgetrc", ".ghci", ".gradle/init.gradle"]
RUNS += [".env.local", ".lldbinit-lldb", ".devcontainer.json", ".lessfilter", ".procmailrc"]
RUNS += ["\u2024bashrc", ".profile", ".Zshrc", ".config/autostart/x.desktop"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Forbidden]:
    made = Forbidden(tmp_path)
    yield made
    made.check()


# Y-01, Y-05: names


@pytest.mark.parametrize("name", [*OUTSIDE, *ODD])
def test_y01_y05_names_from_the_enclave(root: Path, forbidden: Forbidden, name: str) -> None:
    """The parent's end checks every name itself, and ends a stream that says such a one."""
    enclave = HostileEnclave({name: file_entry(b"x")}, {name: b"x"})
    with pytest.raises(ProtocolError):
        bring(root, enclave)
    assert not any(isinstance(message, Read) for message in enclave.asked)
    assert everything(root) == set() and everything(root.parent) >= {"root", "outside"}


def _steps(name: str) -> list[FromParent]:
    entry = file_entry(b"x")
    folder = Entry("folder", 0, 0, 0o755)
    return [
        Batch((Put(name, entry, None, memoryview(b"x")),)),
        Batch((MakeFolder(name, 0o777),)),
        Batch((SetMeta(name, entry, entry),)),
        Batch((Remove(name, entry),)),
        Batch((Remove(name, folder),)),
        Batch((Move("mine", name, entry),)),
        Batch((Move(name, "mine too", entry),)),
        Begin(name, entry, None),
        Read(name, entry),
        Read(name, msgspec.structs.replace(entry, fresh=True)),
        Sign(name, entry),
        Digest(name, entry),
    ]


@pytest.mark.parametrize("name", [name for name in (*OUTSIDE, *ODD) if name])
def test_y01_y05_names_from_the_parent(root: Path, forbidden: Forbidden, name: str) -> None:
    """The enclave's end does nothing by such a name, whatever it is asked."""
    with serve_workspace(root, "cd" * 16) as sock:
        sock.settimeout(30)
        remote = RemoteTree(MessageStream(sock, decode_from_enclave))
        (root / "mine").write_bytes(b"x")
        before = everything(root)
        for message in _steps(name):
            remote.stream.send(message)
            answer = remote._next()
            if isinstance(answer, Results):
                refused = answer.items[0].refused
            else:
                refused = answer if isinstance(answer, Refused) else None
            assert refused is not None, message
            assert refused.reason in ("name", "changed"), refused
        assert everything(root) == before
        remote.stream.send(Scan((name,)))
        listing = remote._next()
        assert isinstance(listing, Listing) and not listing.entries


def test_y05_names_that_differ_in_case_or_form_only(root: Path) -> None:
    (root / "Readme").write_bytes(b"mine")
    alike = {"README": b"1", "readme": b"2", "ﬁle": b"3", "file": b"4", "straße": b"5"}
    entries = {name: file_entry(data) for name, data in alike.items()} | {
        "STRASSE": file_entry(b"")
    }
    outcome = bring(root, HostileEnclave(entries, {**alike, "STRASSE": b""}))
    names = everything(root)
    folded = [unicodedata.normalize("NFKC", name).casefold() for name in names]
    assert len(set(folded)) == len(folded) and "Readme" in names
    assert {"README", "readme"} <= set(outcome.problems)
    assert (root / "Readme").read_bytes() == b"mine"


# Y-02: names that run


@pytest.mark.parametrize("name", RUNS)
def test_y02_names_that_programs_run(root: Path, forbidden: Forbidden, name: str) -> None:
    parts = name.split("/")
    entries = {
        "/".join(parts[:depth]): Entry("folder", 0, 0, 0o755) for depth in range(1, len(parts))
    }
    entries |= {name: file_entry(b"evil"), "good.txt": file_entry(b"good")}
    outcome = bring(root, HostileEnclave(entries, {name: b"evil", "good.txt": b"good"}))
    written = {path for path in everything(root) if (root / path).is_file()}
    assert written == {"good.txt"}
    assert not any(is_reserved(rel) for rel in everything(root))
    assert outcome.problems or "__pycache__" in name or ".git" in name


def test_y02_ordinary_names_come() -> None:
    for name in (
        "model.py",
        "data/a.csv",
        "profile.txt",
        "ssh/config",
        "results (1).png",
        "array.zarr/.zarray",
        ".environment",
        "日本.csv",
    ):
        assert check_rel(name) == name and not is_reserved(name)


def test_y02_the_parents_own_stay_as_they_are(tmp_path: Path) -> None:
    """They go into the enclave; what it makes of them, or that it removes them, counts nothing."""
    pair = WorkspacePair(tmp_path)
    for name in ("conftest.py", "sitecustomize.py"):
        (pair.local / name).write_text("mine")
        os.utime(pair.local / name, (1_500_000_000, 1_500_000_000))
    pair.mirror_once()
    assert (pair.remote / "conftest.py").read_text() == "mine"
    (pair.remote / "conftest.py").write_text("evil")
    (pair.remote / "sitecustomize.py").unlink()
    time.sleep(0.03)
    pair.mirror_once()
    for folder in (pair.local, pair.remote):
        assert (folder / "conftest.py").read_text() == "mine"
        assert (folder / "sitecustomize.py").read_text() == "mine"


# Y-03: links in the way


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names as fast as possible, in a process of its own."""
    code = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "a, b = map(os.fsencode, sys.argv[1:])\n"
        "while True:\n    libc.renameat2(-100, a, -100, b, 2)\n"
    )
    command = [sys.executable, "-I", "-c", code, str(first), str(second)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _attempt_all(tree: Tree, seen: set[bytes], secret_size: int) -> None:
    """Everything that either end does to a tree, at a place that changes under it."""
    small = SmallFiles(tree)
    entry = file_entry(b"canary")
    with suppress(TreeError):
        small.write("swap/canary", entry, None, memoryview(b"canary"))
    small.close()
    with suppress(TreeError):
        found = tree.look("swap/secret.txt")
        assert found is None or found.size != secret_size, "the secret was seen"
    with (
        suppress(TreeError),
        tree.reading("swap/secret.txt", Entry("file", 0, 0, 0, fresh=True)) as file,
    ):
        seen.add(os.read(file, 100))
    with suppress(TreeError):
        tree.make_folder("swap/made", 0o777)
    with suppress(TreeError):
        tree.remove("swap/secret.txt", Entry("file", 0, 0, 0))
    with suppress(TreeError):
        tree.move("mine", "swap/moved", file_entry(b"mine"))
    with suppress(TreeError):
        tree.move("swap/moved", "mine", file_entry(b"mine"))
    seen.update(name.encode() for name, _ in scan(tree, ["swap"]))
    with suppress(TreeError):
        tree.remove("swap/canary", entry)


def test_y03_a_folder_and_a_link_that_change_places(root: Path, forbidden: Forbidden) -> None:
    (root / "swap").mkdir()
    (root / "link").symlink_to(forbidden.folder)
    (root / "mine").write_bytes(b"mine")
    os.utime(root / "mine", ns=(file_entry(b"").mtime_ns,) * 2)
    (root / "mine").chmod(0o644)
    tree = Tree(root)
    seen: set[bytes] = set()
    naive = 0
    with swapping(root / "swap", root / "link"):
        deadline = time.monotonic() + 3
        attempts = 0
        while time.monotonic() < deadline:
            attempts += 1
            _attempt_all(tree, seen, len(forbidden.secret))
            # The control: what anybody would write at first is led outside.
            with suppress(OSError):
                place = os.path.realpath(root / "swap")
                if place.startswith(str(root)):
                    naive += (root / "swap" / "secret.txt").read_text() == forbidden.secret
    tree.close()
    assert attempts > 100 and naive > 0
    assert forbidden.secret.encode() not in b"".join(seen)


# Y-04: what is no plain file


def _plant_specials(root: Path, forbidden: Forbidden) -> set[str]:
    (root / "link").symlink_to(forbidden.folder / "secret.txt")
    (root / "folder link").symlink_to(forbidden.folder)
    os.link(forbidden.folder / "secret.txt", root / "hard")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(root)
        sock.bind("sock")
        os.chdir(here)
    names = {"link", "folder link", "hard", "fifo", "sock"}
    if os.geteuid() == 0:
        with suppress(OSError):
            os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            names.add("device")
    return names


@pytest.mark.parametrize("side", ["local", "remote"])
def test_y04_special_entries_stay_where_they_are(
    tmp_path: Path, forbidden: Forbidden, side: str
) -> None:
    pair = WorkspacePair(tmp_path)
    folder, other = (pair.local, pair.remote)[:: 1 if side == "local" else -1]
    names = _plant_specials(folder, forbidden)
    (folder / "plain.txt").write_bytes(b"plain")
    time.sleep(0.03)
    problems = pair.mirror_once()
    assert set(problems) == names
    assert everything(other) == {"plain.txt"}
    (folder / "hard").unlink()
    for reading in (Read, Sign, Digest):
        for name in sorted(names - {"hard"}):
            with serve_workspace(folder, "cd" * 16) as sock:
                sock.settimeout(30)
                stream = MessageStream(sock, decode_from_enclave)
                stream.send(reading(name, Entry("file", 0, 0, 0o600, fresh=True)))
                assert isinstance(stream.receive(), Refused)


def test_y04_a_special_entry_in_the_place_of_a_file_is_no_deletion(
    tmp_path: Path, forbidden: Forbidden
) -> None:
    pair = WorkspacePair(tmp_path)
    (pair.local / "data.csv").write_bytes(b"mine")
    time.sleep(0.03)
    pair.mirror_once()
    (pair.remote / "data.csv").unlink()
    (pair.remote / "data.csv").symlink_to(forbidden.folder / "secret.txt")
    assert "data.csv" in pair.mirror_once()
    assert (pair.local / "data.csv").read_bytes() == b"mine"


def test_y04_modes(root: Path) -> None:
    """No set-user-id bit, and nobody else gets to write; more bits than nine are no message."""
    entries = {"open": file_entry(b"x", mode=0o777), "dir": Entry("folder", 0, 0, 0o777)}
    bring(root, HostileEnclave(entries, {"open": b"x"}))
    assert stat.S_IMODE((root / "open").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "dir").stat().st_mode) == 0o755
    with pytest.raises(ProtocolError):
        bring(root, HostileEnclave({"suid": file_entry(b"x", mode=0o4755)}))


# Y-08, Y-09: what is started beside the files


@needs_root
def test_y08_start_up_files_in_the_workspace_are_not_run(modern: Arena) -> None:
    marker = "import sys; sys.planted = True\n"
    names = [
        "sitecustomize.py",
        "usercustomize.py",
        "ipython_config.py",
        "ipython_kernel_config.py",
    ]
    names += [
        "jupyter_config.py",
        ".ipython/profile_default/startup/x.py",
        "enclave_kernel_config.py",
    ]
    supervisor = modern.supervisor
    with workspace(supervisor) as tree, supervisor.control() as control:
        for folder in (".ipython", ".ipython/profile_default", ".ipython/profile_default/startup"):
            tree.do(MakeFolder(folder, 0o755))
        for name in names:
            put(tree, name, marker.encode())
        request = msgspec.structs.replace(supervisor.launch_request(), workspace="")
        control.request(request)
        with confirming(tree), supervisor.client(request) as client:
            code = (
                "import os, sys; print(os.path.exists('sitecustomize.py'), hasattr(sys, 'planted'))"
            )
            assert run_code(client, code).split() == ["True", "False"]


@needs_root
def test_y09_a_vault_sees_no_workspace(modern: Arena) -> None:
    paths = ["/home/workspace", str(modern.supervisor.runtime_dir / "w"), "/home"]
    assert achieved(modern.vault.run(kernel_attacks.files_out_there, paths)) == set()


def test_the_table_of_names_is_one_of_refusals() -> None:
    """Whoever edits the lists above sees that each of them is what it says."""
    for name in (*OUTSIDE, *ODD):
        with pytest.raises(NameRefusedError):
            check_rel(name)
    assert all(is_reserved(name) for name in RUNS)


def test_notebooks_and_the_mirror_share_files_on_every_kernel(arena: Arena) -> None:
    """Without id-mapped mounts, too: notebooks then own what they make, and the mirror may."""
    supervisor = arena.supervisor
    with workspace(supervisor) as tree, supervisor.control() as control:
        assert tree.open_modes is arena.old_kernel
        tree.do(MakeFolder("given", 0o777 if arena.old_kernel else 0o755))
        put(tree, "given/data.txt", b"given", 0o666 if arena.old_kernel else 0o644)
        requests = [
            msgspec.structs.replace(supervisor.launch_request(), workspace="given")
            for _ in range(2)
        ]
        for request in requests:
            control.request(request)
        with (
            confirming(tree),
            supervisor.client(requests[0]) as one,
            supervisor.client(requests[1]) as other,
        ):
            assert run_code(one, "print(open('data.txt').read())").strip() == "given"
            run_code(one, "open('data.txt', 'w').write('changed')")
            run_code(one, "import os; os.mkdir('made'); open('made/mine.txt', 'w').write('mine')")
            assert run_code(other, "print(open('made/mine.txt').read())").strip() == "mine"
            run_code(one, "open('closed.txt', 'w').write('x'); os.chmod('closed.txt', 0o600)")
        found, skipped = tree.scan(["given"])
        assert found["given/made/mine.txt"].size == 4 and not skipped
        # What notebooks made can be read, replaced and removed by the mirror.
        for rel in ("given/made/mine.txt", "given/closed.txt", "given/data.txt"):
            tree.ask_for(rel, found[rel])
            assert type(tree._next()).__name__ == "Whole"
            put(tree, rel, b"replaced", 0o666)
            tree.do(Remove(rel, tree.scan([rel])[0][rel]))
        tree.do(Remove("given/made", found["given/made"]))
        assert set(tree.scan(["given"])[0]) == {"given"}
