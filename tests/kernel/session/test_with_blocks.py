"""`with` on a package's objects, with a real vault."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.package_failures import EncryptedPackageError, VaultDiedError
from enclave_kernel.session.package_loading import LoadedPackage
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed

MANIFEST = """
[package]
name = "session"
version = "1"
module = "session"
[exports]
functions = { seen = "seen()", run = "run(code)" }
[exports.classes.Session]
init = "Session(mode='')"
methods = ["ask(x)", "__enter__()", "__exit__()"]
[exports.classes.Plain]
init = "Plain()"
methods = ["ask(x)"]
"""
SOURCE = f"""
log = []


def seen():
    found, log[:] = list(log), []
    return found


def run(code):
    exec(code, {{}})


class Session:
    def __init__(self, mode=""):
        self.mode = mode

    def ask(self, x):
        return x

    def __enter__(self):
        log.append("enter")
        if self.mode == "no entry":
            raise RuntimeError("{CANARY}")
        return [self, "{CANARY}"]

    def __exit__(self, kind, error, traceback):
        log.append([kind.__name__ if kind else None, str(error), traceback])
        if self.mode == "no exit":
            raise RuntimeError("{CANARY}")
        return True


class Plain:
    def ask(self, x):
        return x

    def __enter__(self):
        log.append("{CANARY}")

    def __exit__(self, *failure):
        log.append("{CANARY}")

    def __del__(self):
        log.append("plain is gone")
"""


def session_package() -> SealedPackage:
    return seal_package({"session.py": SOURCE}, MANIFEST)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPackage]:
    with VaultLink() as link:
        yield load_sealed(link, session_package(), tmp_path_factory.mktemp("session"))


@pytest.fixture
def package(loaded: LoadedPackage) -> Any:
    loaded.proxy.seen()
    return loaded.proxy


def test_a_declared_context_manager_is_told_how_the_block_ended(package: Any) -> None:
    session = package.Session()
    with session as bound:
        assert bound is session and bound.ask(5) == 5
    assert package.seen() == ["enter", [None, "None", None]]
    # It has no word in what happens to the user's exception, and does not get to see it.
    with pytest.raises(LookupError, match="mine"), session:
        raise LookupError("mine")
    assert package.seen() == ["enter", ["BlockFailedError", "the block raised", None]]
    assert session.ask(6) == 6


def test_errors_of_the_context_manager_itself(package: Any) -> None:
    with pytest.raises(EncryptedPackageError, match="RuntimeError"):  # noqa: SIM117
        with package.Session("no entry"):
            raise AssertionError("not reached")
    with pytest.raises(EncryptedPackageError, match="RuntimeError") as caught:  # noqa: SIM117
        with package.Session("no exit"):
            raise LookupError("mine")
    assert isinstance(caught.value.__context__, LookupError)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames[1:]] == ["<encrypted session 1>"]


def test_other_objects_are_given_back_at_the_end_of_the_block(package: Any) -> None:
    with package.Plain() as plain:
        assert plain.ask(1) == 1
    assert package.seen() == ["plain is gone"]
    with pytest.raises(ReferenceError, match="no such object"):
        plain.ask(1)
    with pytest.raises(LookupError), package.Plain() as other:
        raise LookupError
    assert package.seen() == ["plain is gone"]
    with pytest.raises(ReferenceError):
        other.ask(1)


def test_only_declared_ones_can_be_entered(loaded: LoadedPackage, package: Any) -> None:
    plain, session = package.Plain(), package.Session()
    client = loaded.client
    for handle, name, arguments, error in (
        (plain._handle, "__enter__", (), AttributeError),
        (plain._handle, "__exit__", (False,), AttributeError),
        (session._handle, "__exit__", (), TypeError),
        (session._handle, "__exit__", (1, 2, 3), TypeError),
        (session._handle, "__enter__", (1,), TypeError),
        (session._handle, "__init__", (), AttributeError),
    ):
        with pytest.raises(error):
            client.call_method(handle, name, (arguments, {}), ())
    with pytest.raises(AttributeError):
        client.get_attribute(session._handle, "__enter__")
    assert package.seen() == []


def test_a_vault_that_dies_in_the_block(tmp_path: Path) -> None:
    with VaultLink() as link:
        package: Any = load_sealed(link, session_package(), tmp_path).proxy
        with pytest.raises(VaultDiedError, match="exit code 3"):  # noqa: SIM117
            with package.Session():
                package.run("import os; os._exit(3)")
