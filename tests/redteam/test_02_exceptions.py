"""THREATS E.2: what an exception, a traceback or a debugger shows. Adversary U; owners who err."""

from pathlib import Path

import pytest

from enclave_kernel.session.package_failures import EncryptedPackageError, VaultDiedError
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.canaries import MANIFEST
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook, Shown
from tests.redteam.places import achieved
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed

_OPAQUE = "its owner does not show more"


def failed(notebook: HostileNotebook, kind: str) -> Shown:
    shown = notebook.cell(f"m.fail({kind!r})")
    assert shown.error, shown.text
    assert notebook.clean(shown), shown.text
    return shown


def test_what_the_owner_shows_is_shown(notebook: HostileNotebook) -> None:
    """The control: a declared type with a plain message crosses."""
    shown = failed(notebook, "public")
    assert (shown.error, shown.message) == ("ValueError", "what the owner says in public")
    assert notebook.value("m.fail('')") == ""


def test_e01_arbitrary_text(notebook: HostileNotebook) -> None:
    shown = failed(notebook, "runtime")
    assert shown.error == "EncryptedPackageError"
    assert "RuntimeError in <encrypted marked 1.0> [incident " in shown.message
    assert _OPAQUE in shown.message


def test_e02_class_name_as_a_channel(notebook: HostileNotebook) -> None:
    shown = failed(notebook, "subclass")
    assert shown.error == "EncryptedPackageError" and "ValueError in " in shown.message
    assert "Exception in " in failed(notebook, "base").message


@pytest.mark.parametrize(
    "kind",
    [
        *("unicode", "json", "syntax", "key", "attribute", "args", "object", "os", "import"),
        *("name", "stop"),
    ],
)
def test_e03_attributes(notebook: HostileNotebook, kind: str) -> None:
    failed(notebook, kind)
    code = f"""
try:
    m.fail({kind!r})
except BaseException as error:
    for name in dir(error):
        print(name, repr(getattr(error, name, None)))
    print(error.args, vars(error), repr(error))
"""
    shown = notebook.cell(code)
    assert "args" in shown.text and notebook.clean(shown), shown.text


@pytest.mark.parametrize("kind", ["cause", "context", "note", "group"])
def test_e04_causes_notes_groups(notebook: HostileNotebook, kind: str) -> None:
    failed(notebook, kind)
    expression = f"""
try:
    m.fail({kind!r})
except BaseException as error:
    kept = (error.__cause__, error.__context__, getattr(error, "__notes__", None),
            getattr(error, "exceptions", None))
"""
    notebook.cell(expression)
    assert notebook.value("kept") == (None, None, None, None)


def test_e05_frames_and_locals(notebook: HostileNotebook) -> None:
    for mode in ("Verbose", "Context", "Plain", "Minimal"):
        notebook.cell(f"%xmode {mode}")
        failed(notebook, "runtime")
        assert notebook.clean(notebook.cell("%tb"))
    notebook.cell("%xmode Context")
    code = """
import sys, traceback
try:
    m.fail("runtime")
except Exception as error:
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append((trace.tb_frame.f_code.co_filename, repr(trace.tb_frame.f_locals)))
        trace = trace.tb_next
    print(frames[-1][0])
    print(repr(traceback.TracebackException.from_exception(error, capture_locals=True)))
    print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
"""
    shown = notebook.cell(code)
    assert shown.text.splitlines()[0] == "<encrypted marked 1.0>"
    assert notebook.clean(shown), shown.text


def test_e06_no_remote_traceback(notebook: HostileNotebook) -> None:
    shown = failed(notebook, "runtime")
    assert "RemoteTraceback" not in shown.text and "dispatcher.py" not in shown.text
    modules = notebook.value("sorted(__import__('sys').modules)")
    assert not {"multiprocessing.managers", "rpyc", "Pyro5", "dill", "cloudpickle"} & set(modules)


@pytest.mark.parametrize("how", ["warning", "unraisable", "thread"])
def test_e07_warnings_show_no_line(notebook: HostileNotebook, how: str) -> None:
    shown = notebook.cell(f"m.noisy({how!r})")
    assert shown.text == "" and not shown.error


@needs_root
def test_e08_crash_dumps(modern: Arena) -> None:
    with modern.another_vault() as place:
        assert place.package.noisy("faulthandler") is None
        code = (
            "import faulthandler; faulthandler.enable(file=2); import ctypes; ctypes.string_at(8)"
        )
        with pytest.raises(VaultDiedError, match="SIGSEGV") as death:
            place.package.run(code)
        assert not modern.marked.found_in_bytes(str(death.value))
    with modern.another_vault() as place, pytest.raises(VaultDiedError, match="SIGABRT"):
        place.package.run("import os; os.abort()")
    cores = [path for path in Path("/tmp").glob("core*") if path.is_file()]  # noqa: S108
    assert cores == []


@pytest.mark.parametrize("kind", ["exit", "generator", "base", "recursion", "memory"])
def test_e09_exits_and_exhaustion(notebook: HostileNotebook, kind: str) -> None:
    shown = failed(notebook, kind)
    assert shown.error == "EncryptedPackageError" and _OPAQUE in shown.message
    assert notebook.value("m.fail('')") == ""


def test_e09_a_keyboard_interrupt_of_the_packages(notebook: HostileNotebook) -> None:
    assert failed(notebook, "keyboard").error == "KeyboardInterrupt"
    assert notebook.value("m.fail('')") == ""


@pytest.mark.parametrize("how", ["thread", "unraisable", "asyncio", "displayhook"])
def test_e10_hooks(notebook: HostileNotebook, how: str) -> None:
    shown = notebook.cell(f"m.noisy({how!r})")
    assert shown.text == "" and not shown.error
    log = notebook.home.run("logs").stdout
    assert not notebook.marked.found_in_bytes(log)


def test_e11_breakpoint(notebook: HostileNotebook) -> None:
    shown = failed(notebook, "breakpoint")
    assert _OPAQUE in shown.message and "pdb" not in shown.text.lower()
    assert notebook.value("m.fail('')") == ""


@needs_root
def test_e12_attaching_a_debugger(modern: Arena) -> None:
    """From a process of the vault's own user, without the walls around a notebook."""
    with modern.victim() as victim:
        assert achieved(modern.plain(victim.uid).run(attacks.ptrace, victim.pid)) == {"seize"}
    lines = Path(f"/proc/{modern.payload_pid}/status").read_text().splitlines()
    uid = int(next(line for line in lines if line.startswith("Uid:")).split()[1])
    outcome = modern.plain(uid).run(attacks.ptrace, modern.payload_pid)
    assert set(outcome.values()) == {"EPERM"}


def test_e13_messages_hold_what_the_owner_declared(notebook: HostileNotebook) -> None:
    """A message is cut, and is one line, whatever the owner put into it."""
    code = """
for text in ("x" * 5000, "a\\n\\x1b[31mb\\u202e", ""):
    try:
        m.run(f"raise ValueError({text!r})")
    except ValueError as error:
        print(len(str(error)), str(error).isprintable())
"""
    assert notebook.cell(code).text.split() == ["500", "True", "9", "True", "0", "True"]


@pytest.mark.parametrize(
    "line", ["raise RuntimeError(SECRET)", "raise SystemExit(SECRET)", "import {}", "def {}(:"]
)
def test_e15_errors_while_loading(modern: Arena, tmp_path: Path, line: str) -> None:
    secret = modern.marked.markers["message"].decode()
    source = f"SECRET = {secret!r}\nimport sys\nsys.stderr.write(SECRET)\n{line.format(secret)}"
    with VaultLink() as link, pytest.raises(Exception, match="incident") as failure:
        load_sealed(link, seal_package({"marked/__init__.py": source}, MANIFEST), tmp_path)
    assert not modern.marked.found_in_bytes(str(failure.value))
    assert failure.value.__cause__ is None


def test_e16_a_reply_that_does_not_decode(modern: Arena) -> None:
    """Code that took the vault over answers with bytes of its own: the client raises one error."""
    hostile = """
import gc, os, socket
from enclave_kernel.call_channel import CallChannel
(channel,) = [thing for thing in gc.get_objects() if type(thing) is CallChannel]
channel._sock.sendall((5).to_bytes(4, "big") + bytes(4) + b"\\xc1junk")
"""
    with modern.another_vault() as place:
        with pytest.raises((VaultDiedError, EncryptedPackageError)) as failure:
            place.package.run(hostile)
        assert failure.value.__cause__ is None
