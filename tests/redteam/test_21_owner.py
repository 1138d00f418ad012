"""THREATS E.21: an owner who is after the user's data. Adversary K, in a vault."""

import builtins
import secrets
import socket
from pathlib import Path

import pytest

from enclave_kernel.session.package_failures import VaultDiedError
from tests.redteam import attacks, kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import achieved
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

pytestmark = needs_root


def test_w01_sockets(arena: Arena) -> None:
    families = [1, 2, 10, 16, 17, 38, 40]
    control = arena.plain().run(kernel_attacks.wide_arguments, families)
    assert achieved(control) >= {"1 1", "2 1", "2 2 high", "16 3", "17 3", "40 1", "40 1 high"}
    assert set(arena.vault.run(kernel_attacks.wide_arguments, families).values()) == {"EPERM"}


def test_w02_datagrams(arena: Arena) -> None:
    name = f"redteam-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        outside.bind(f"\0{name}")
        outside.setblocking(False)
        assert achieved(arena.plain(1_980_006).run(attacks.datagrams, name))
        while True:
            try:
                outside.recv(100)
            except BlockingIOError:
                break
        assert achieved(arena.vault.run(attacks.datagrams, name)) == set()
        with pytest.raises(BlockingIOError):
            outside.recv(100)


def test_w03_t09_programs(arena: Arena) -> None:
    """Without exec, nothing becomes dumpable again (T-09)."""
    control = arena.plain(1_980_006).run(kernel_attacks.start_programs)
    assert achieved(control) >= {"execve", "subprocess", "memfd"}
    outcome = arena.vault.run(kernel_attacks.start_programs)
    assert set(outcome.values()) == {"EPERM"}


def test_w04_privileges(arena: Arena) -> None:
    control = arena.plain().run(kernel_attacks.regain)
    assert achieved(control) >= {"setuid", "setgid", "unshare", "dumpable", "filter", "seccomp"}
    outcome = arena.vault.run(kernel_attacks.regain)
    assert achieved(outcome) == set()
    assert set(outcome.values()) == {"EPERM"}


def test_w05_the_enclave(arena: Arena) -> None:
    paths = ["/etc/shadow", "/etc/passwd", "/sys", "/root", "/home", "/var", "/run", "/opt", "/srv"]
    paths += ["/dev/nsm", "/dev/vsock", "/dev/tty", "/dev/ptmx", "/bin", "/boot", "/mnt"]
    present = {path for path in paths if Path(path).exists()}
    control = arena.plain().run(kernel_attacks.files_out_there, paths)
    assert achieved(control) == present and len(present) > 8
    assert achieved(arena.vault.run(kernel_attacks.files_out_there, paths)) == set()
    assert arena.vault.run(attacks.children) <= 2
    assert arena.plain().run(attacks.children) > 3


def test_w06_killing_others(arena: Arena) -> None:
    with arena.another_vault() as place, arena.victim() as victim:
        place.run(attacks.kill_all)
        code = "import os\ntry:\n    os.kill(1, 9)\nexcept OSError: pass\nresult = os.getpid()"
        assert place.package.run(code) == 2
        assert victim.signals() == 0
    assert arena.vault.package.predict([1.0])[0] == 2.0


def test_w07_data_kept_for_later(notebook: HostileNotebook) -> None:
    """What one vault hides, the next one of the same package does not find."""
    marker = f"kept{secrets.token_hex(8)}"
    hide = f"""
import os, tempfile
for folder in ("/tmp", "/dev/shm", os.environ["HOME"]):
    open(f"{{folder}}/{marker}", "w").write("{marker}")
os.memfd_create("{marker}")
if os.fork() == 0:
    os.setsid()
    import time
    while True:
        time.sleep(60)
"""
    find = f"""
import os
result = []
for place, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if name not in ("usr", "lib", "lib64", "proc")]
    result += [name for name in files if "{marker}" in name]
"""
    try:
        notebook.cell("%load_encrypted marked.encrypted as fresh")
        assert not notebook.cell(f"fresh.run({hide!r})").error
        assert len(notebook.value(f"fresh.run({find!r})")) >= 3
        notebook.cell("%load_encrypted marked.encrypted as fresh")
        assert notebook.value(f"fresh.run({find!r})") == []
        assert notebook.value(f"m.run({find!r})") == []
    finally:
        notebook.cell("%unload_encrypted fresh")


@pytest.mark.parametrize(
    "value",
    [
        "'<img src=https://evil.example/x.png>'",
        "'![x](https://evil.example/x.png)'",
        "'\\x1b]8;;https://evil.example\\x07here\\x1b]8;;\\x07'",
        "{'text/html': '<script>', 'image/svg+xml': '<svg/>'}",
        "'$$\\\\href{https://evil.example}{x}$$'",
    ],
)
def test_w08_j10_through_the_browser(notebook: HostileNotebook, value: str) -> None:
    """J-10, O-03: shown, it is text in quotes; nothing that a browser would fetch."""
    shown = notebook.cell(f"m.run({f'result = {value}'!r})")
    assert shown.mime_types == {"text/plain"}
    assert shown.text[0] in "'\"{" and "\x1b" not in shown.text
    methods = "{'_repr_html_': lambda self: '<img>', '_ipython_display_': print}"
    hidden = f"result = type('D', (), {methods})()"
    assert notebook.cell(f"m.run({hidden!r})").error == "EncryptedPackageError"


@pytest.mark.parametrize(
    "frame",
    [
        *(b"\xff" * 8, b"\0" * 8, b"\0\0\0\1\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0"),
        *(b"\0\0\0\1\0\0\0\0\xc1", b"\0\0\0\3\0\0\0\0\x92\x17\x01", b"\0\0\0\0\x80\0\0\1"),
        b"\0\0\0\1\0\0\0\1" + b"\xff" * 8 + b"\xc0",
    ],
    ids=lambda frame: frame[:12].hex(),
)
def test_w10_frames_for_the_client(modern: Arena, frame: bytes) -> None:
    """Whatever a vault that was taken over answers: one error, no memory, and the vault ends."""
    hostile = f"""
import gc
from enclave_kernel.call_channel import CallChannel
(channel,) = [thing for thing in gc.get_objects() if type(thing) is CallChannel]
channel._sock.sendall({frame!r})
import os
os._exit(0)
"""
    with modern.another_vault() as place:
        with pytest.raises(VaultDiedError):
            place.package.run(hostile)
        with pytest.raises(VaultDiedError):
            place.package.predict([1.0])


_SHADOWS = """
[package]
name = "shadows"
version = "1"
module = "shadows"
[exports.functions]
open = "open(path)"
print = "print(x)"
pd = "pd()"
get_ipython = "get_ipython()"
"""


def test_w11_names_that_the_user_has(tmp_path: Path) -> None:
    """Exports are attributes of one object: nothing is put among the user's names."""
    before = open, print, dict(vars(builtins))
    heads = ("open(path)", "print(x)", "pd()", "get_ipython()")
    source = "\n".join(f"def {head}:\n    return {head!r}" for head in heads)
    with VaultLink() as link:
        shadows = load_sealed(link, seal_package({"shadows.py": source}, _SHADOWS), tmp_path).proxy
        assert shadows.open("x") == "open(path)"
        now = dict(vars(builtins))
        assert (open, print, now) == before


@pytest.mark.parametrize("name", ["open", "print", "In", "Out", "get_ipython", "exit", "_"])
def test_w11_names_to_load_under(notebook: HostileNotebook, name: str) -> None:
    shown = notebook.cell(f"%load_encrypted marked.encrypted as {name}")
    assert shown.error == "NameNotBindableError", shown.text
    assert notebook.value(f"type({name}).__name__") != notebook.value("type(m).__name__")


def test_w11_a_name_that_its_owner_chose(notebook: HostileNotebook) -> None:
    """The label's name is bound where nothing of the user's has it, and only there."""
    load = "%load_encrypted marked.encrypted"
    notebook.cell("marked = 'mine'")
    try:
        shown = notebook.cell(load)
        assert shown.error == "NameNotBindableError" and "something of yours" in shown.message
        assert notebook.value("marked") == "mine"
        notebook.cell("del marked")
        for _ in range(2):  # again, over the one that was loaded
            assert notebook.cell(load).error == ""
            assert notebook.value("marked.predict([1.0]).tolist()") == [2.0]
    finally:
        notebook.cell("%unload_encrypted marked")


def test_w13_the_machine_is_the_same_afterwards(arena: Arena) -> None:
    """Section 12 from a vault is in test_12_resources.py; here, that a vault is one of many."""
    with arena.another_vault() as place:
        place.run(kernel_attacks.open_many, 5000)
        place.run(kernel_attacks.fork_many, 50)
    assert arena.vault.package.predict([1.0])[0] == 2.0
