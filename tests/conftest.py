"""Fixtures for tests that need a running enclave."""

from collections.abc import Iterator

import pytest

from tests.support.enclave_home import EnclaveHome, new_home
from tests.support.package_owner import PUBLISHER, publisher_fingerprint


@pytest.fixture(scope="session")
def enclave() -> Iterator[EnclaveHome]:
    """One local enclave for the whole run; the environment of this process leads to it."""
    with new_home() as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        patch.delenv("ENCLAVE_BACKEND", raising=False)
        result = home.run("up")
        if result.returncode:
            pytest.fail(f"enclave up: {result.stderr}\n{home.run('logs').stdout}")
        # So that it does not matter which test loads the first package of all.
        home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
        yield home


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnclaveHome]:
    """An enclave home for one test, with nothing running in it."""
    with new_home() as home:
        for name, value in home.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("ENCLAVE_BACKEND", raising=False)
        yield home


@pytest.fixture
def up(own_home: EnclaveHome) -> EnclaveHome:
    """An enclave of one test's own that is up."""
    done = own_home.run("up")
    assert done.returncode == 0, done.stderr
    return own_home
