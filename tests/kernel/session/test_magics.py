"""The magics in a real IPython shell, with real vaults."""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from enclave_encryption.publisher_keys import FileKey
from enclave_kernel.session.magics import EncryptedMagics
from enclave_kernel.session.supervisor_link import LoadedVault, LoadRefusedError
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import SPY_MANIFEST, SPY_SOURCE, spy_package

LINE = (
    "Loaded spy 1.0 as {}: Box, Sealed, echo, empty, fail, make, nothing, opts, run, wrong.\n"
    "NOT SIGNED: anybody can have made it.\n"
)


@pytest.fixture
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


class Shell(InteractiveShell):
    """A shell with a place for what is ipykernel's in a real one."""

    kernel: Any = None


@pytest.fixture
def shell(link: VaultLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    Shell.clear_instance()
    shell = Shell.instance(colors="nocolor")
    shell.kernel = SimpleNamespace(supervisor_link=link)
    shell.run_line_magic("load_ext", "enclave_kernel.session.magics")
    yield shell
    shell.atexit_operations()  # type: ignore[no-untyped-call]
    atexit.unregister(shell.atexit_operations)
    Shell.clear_instance()


@pytest.fixture
def package(link: VaultLink, tmp_path: Path) -> SealedPackage:
    package = spy_package()
    link.add(package)
    package.write(tmp_path / "spy.encrypted")
    return package


def run(shell: Shell, code: str) -> ExecutionResult:
    result: ExecutionResult = shell.run_cell(code)  # type: ignore[no-untyped-call]
    return result


def test_loading_binds_one_name_and_says_so_in_one_line(
    shell: Shell, package: SealedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(shell.user_ns)
    assert run(shell, "%load_encrypted spy.encrypted").success
    assert capsys.readouterr().out == LINE.format("spy")
    assert set(shell.user_ns) - before == {"spy"}
    assert run(shell, "answer = spy.echo([1, 2])").success
    assert shell.user_ns["answer"] == [1, 2]
    assert run(shell, '%load_encrypted "spy.encrypted" as other').success
    assert capsys.readouterr().out == LINE.format("other")


def test_the_table_and_unloading(
    shell: Shell, package: SealedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    run(shell, "%encrypted")
    assert "No encrypted package is loaded" in capsys.readouterr().out
    run(shell, "%load_encrypted spy.encrypted as s\nkept = s")
    capsys.readouterr()
    run(shell, "%encrypted")
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["NAME", "PACKAGE", "STATE", "PUBLISHER"]
    assert row.split()[:6] == ["s", "spy", "1.0", "running", "not", "signed"]
    assert run(shell, "%unload_encrypted s").success
    assert "s" not in shell.user_ns
    result = run(shell, "kept.echo(1)")
    assert type(result.error_in_exec).__name__ == "VaultDiedError"
    capsys.readouterr()
    assert not run(shell, "%unload_encrypted s").success
    assert capsys.readouterr().out == (
        "NotLoadedError: 's' is no encrypted package; loaded: none is loaded\n"
    )


def test_loading_again_replaces_the_package(
    shell: Shell, link: VaultLink, package: SealedPackage
) -> None:
    run(shell, "%load_encrypted spy.encrypted")
    (first,) = link.vaults
    run(shell, "%load_encrypted spy.encrypted")
    (second,) = link.vaults
    assert first != second and run(shell, "spy.echo(1)").success


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (cut, "PackageTruncatedError"),
        (flip, "PackageTamperedError"),
        (lambda data: data[:50], "PackageTruncatedError"),
        (lambda data: b"#!/bin/sh\n", "PackageFormatError"),
        (lambda data: b"", "PackageTruncatedError"),
    ],
)
def test_a_bad_file_gives_one_line_that_names_it(
    shell: Shell,
    link: VaultLink,
    package: SealedPackage,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[bytes], bytes],
    kind: str,
) -> None:
    Path("bad.encrypted").write_bytes(change(package.data))
    result = run(shell, "%load_encrypted bad.encrypted")
    assert type(result.error_in_exec).__name__ == kind
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{kind}: bad.encrypted: ")
    assert "spy" not in shell.user_ns and not link.vaults


HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\r\nAll good.\u202e"
HOSTILE_SOURCE = f"""
import gc
from enclave_kernel.call_channel import CallChannel
from enclave_protocol.vault_messages import LoadFailed
for channel in gc.get_objects():
    if type(channel) is CallChannel:
        channel.send(LoadFailed("{{}}", {HOSTILE!r} + "x" * 2000))
        import os
        os._exit(0)
"""


@pytest.mark.parametrize("kind", ["PackageTamperedError", "Whatever"])
def test_a_package_that_writes_its_own_refusal(
    shell: Shell, link: VaultLink, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    manifest = '[package]\nname="evil"\nversion="1"\nmodule="evil"\n'
    evil = seal_package({"evil.py": HOSTILE_SOURCE.replace("{}", kind)}, manifest)
    link.add(evil)
    evil.write(Path("evil.encrypted"))
    result = run(shell, "%load_encrypted evil.encrypted")
    (line,) = capsys.readouterr().out.splitlines()
    assert "All good." in line and line.isprintable() and len(line) < 600
    message = str(result.error_in_exec)
    assert message.startswith("evil.encrypted: ") and message.isprintable()


class RefusingLink(VaultLink):
    """A supervisor that refuses, as it does for reasons of its own or of a vault's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__()
        self._refusal = kind, message

    def load(self, file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        raise LoadRefusedError(*self._refusal)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("WrongEnvironmentError", "WrongEnvironmentError"),
        ("UnsignedPackageError", "UnsignedPackageError"),
        ("PublisherChangedError", "PublisherChangedError"),
        ("PackageSignatureError", "PackageSignatureError"),
        ("KeyReleaseDeniedError", "KeyReleaseDeniedError"),
        ("GatewayRefusedError", "LoadRefusedError"),
        ("NoGatewayError", "LoadRefusedError"),
        ("TooManyVaultsError", "LoadRefusedError"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_refusal_is_typed_and_names_the_file(
    shell: Shell,
    package: SealedPackage,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    shown: str,
    named: bool,
) -> None:
    message = ("spy.encrypted: " if named else "") + "no\x1b[2J\nluck"
    with RefusingLink(kind, message) as link:
        shell.kernel = SimpleNamespace(supervisor_link=link)
        result = run(shell, "%load_encrypted spy.encrypted")
    assert type(result.error_in_exec).__name__ == shown
    assert capsys.readouterr().out == f"{shown}: spy.encrypted: no [2J luck\n"


def test_file_names_that_drive_a_terminal(
    shell: Shell, package: SealedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("\x1b[2J\nspy.encrypted").write_bytes(package.data)
    run(shell, "%load_encrypted missing.encrypted")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable() and "here are" in line
    name = "\x1b[2Jspy.encrypted"
    Path(name).write_bytes(package.data)
    shell.run_line_magic("load_encrypted", f"{name} as s")
    capsys.readouterr()
    run(shell, "%encrypted")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines) and "[2Jspy.encrypted" in lines[-1]


def test_no_file_to_read(
    shell: Shell, package: SealedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    os.mkfifo("fifo")
    for name, message in (
        ("missing.encrypted", "no such file in .*; here are spy.encrypted"),
        ("folder", "is a directory; expected a file that `enclave-owner encrypt` wrote"),
        ("fifo", "is not a regular file"),
    ):
        result = run(shell, f"%load_encrypted {name}")
        error: Any = result.error_in_exec
        with pytest.raises(type(error), match=rf"^{name}: {message}"):
            raise error
        assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "line", ["", "a b", "a as", "a as b c", "'open", "--unsigned", "a --unsigned b", "a --signed"]
)
def test_usage(shell: Shell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert not run(shell, f"%load_encrypted {line}").success
    captured = capsys.readouterr()
    assert "%load_encrypted FILE [as NAME]" in captured.out + captured.err


@pytest.mark.parametrize(
    ("line", "name", "allowed"),
    [
        ("spy.encrypted", "spy", False),
        ("spy.encrypted --unsigned", "spy", True),
        ("--unsigned spy.encrypted as s", "s", True),
        ("spy.encrypted --unsigned as s", "s", True),
        ("spy.encrypted as s --unsigned", "s", True),
    ],
)
def test_the_supervisor_is_told_what_the_user_allows(
    shell: Shell,
    link: VaultLink,
    package: SealedPackage,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    name: str,
    allowed: bool,
) -> None:
    asked = []
    load = link.load

    def noted(file_name: str, header_raw: bytes, *, unsigned: bool = False) -> LoadedVault:
        asked.append(unsigned)
        return load(file_name, header_raw, unsigned=unsigned)

    monkeypatch.setattr(link, "load", noted)
    assert run(shell, f"%load_encrypted {line}").success
    assert asked == [allowed] and name in shell.user_ns


@pytest.mark.parametrize("is_new", [False, True])
def test_the_publisher_is_shown(
    shell: Shell, link: VaultLink, capsys: pytest.CaptureFixture[str], is_new: bool
) -> None:
    publisher = FileKey(Ed25519PrivateKey.generate())
    manifest = SPY_MANIFEST.replace("[package]", '[package]\npublisher = "ACME Analytics"')
    signed = seal_package({"spy.py": SPY_SOURCE}, manifest, publisher=publisher)
    link.new_publishers = is_new
    link.add(signed)
    signed.write(Path("signed.encrypted"))
    assert run(shell, "%load_encrypted signed.encrypted").success
    shown = capsys.readouterr().out
    assert f'Publisher "ACME Analytics", key {publisher.signer.fingerprint}' in shown
    assert ("NEW: this key is pinned from now on." in shown) == is_new
    run(shell, "%encrypted")
    assert "ACME Analytics" in capsys.readouterr().out


def test_names_that_would_replace_something_are_refused(
    shell: Shell, link: VaultLink, package: SealedPackage
) -> None:
    sneaky = seal_package(
        {"print.py": "def f():\n    return 1\n"},
        '[package]\nname="print"\nversion="1"\nmodule="print"\n[exports]\nfunctions={f="f()"}\n',
    )
    link.add(sneaky)
    sneaky.write(Path("print.encrypted"))
    for line in ("print.encrypted", "spy.encrypted as open", "spy.encrypted as x.y"):
        result = run(shell, f"%load_encrypted {line}")
        assert type(result.error_in_exec).__name__ == "NameNotBindableError"
    assert "print" not in shell.user_ns and not link.vaults
    assert run(shell, "%load_encrypted print.encrypted as printing").success


def test_outside_an_enclave_it_says_so(shell: Shell, package: SealedPackage) -> None:
    shell.kernel = None
    result = run(shell, "%load_encrypted spy.encrypted")
    assert type(result.error_in_exec).__name__ == "NotInEnclaveError"


SLOW = "import time\ntime.sleep({})\ndef f():\n    return 1\n"
SLOW_MANIFEST = (
    '[package]\nname="slow"\nversion="1"\nmodule="slow"\n[exports]\nfunctions={f="f()"}\n'
)


def test_interrupting_a_load_leaves_nothing(shell: Shell, link: VaultLink) -> None:
    slow = seal_package({"slow.py": SLOW.format(60)}, SLOW_MANIFEST)
    link.add(slow)
    slow.write(Path("slow.encrypted"))

    def press() -> None:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    started = time.monotonic()
    result = run(shell, "%load_encrypted slow.encrypted")
    thread.join()
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert time.monotonic() - started < 5
    assert "slow" not in shell.user_ns and not link.vaults


def test_a_bar_only_when_it_takes_long(
    shell: Shell,
    link: VaultLink,
    package: SealedPackage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(shell, "%load_encrypted spy.encrypted")
    assert "[" not in capsys.readouterr().out
    slow = seal_package({"slow.py": SLOW.format(2.5)}, SLOW_MANIFEST)
    link.add(slow)
    slow.write(Path("slow.encrypted"))
    run(shell, "%load_encrypted slow.encrypted")
    assert "importing [" in capsys.readouterr().out


def test_the_magics_know_what_they_loaded(shell: Shell, package: SealedPackage) -> None:
    run(shell, "%load_encrypted spy.encrypted")
    magics: EncryptedMagics = shell.magics_manager.registry["EncryptedMagics"]
    assert magics.packages["spy"].proxy is shell.user_ns["spy"]


def test_an_ordinary_kernel_is_in_no_enclave(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.kernel = None
    error = run(shell, "%enclave").error_in_exec
    assert type(error).__name__ == "NotInEnclaveError"
    shown = capsys.readouterr().out
    assert "does not run in an enclave" in shown
    assert "Traceback" not in shown
