"""The red team's ground: an enclave with a marked package, vaults, and processes without walls."""

import os
from collections.abc import Iterator

import pytest

from tests.redteam.arena import Arena, open_arena
from tests.redteam.hostile_notebook import HostileNotebook, hostile_notebook
from tests.redteam.places import NotebookPlace, Place
from tests.support.enclave_home import EnclaveHome

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="walls need a root supervisor")


@pytest.fixture(scope="module")
def notebook(enclave: EnclaveHome) -> Iterator[HostileNotebook]:
    """A real notebook in a real enclave, with the marked package loaded as `m`."""
    with hostile_notebook(enclave) as made:
        yield made


@pytest.fixture(scope="session", params=[False, True], ids=["this-kernel", "linux-4.14"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Processes on this machine's kernel, and on one that knows no newer calls than 4.14."""
    if os.geteuid() != 0:
        pytest.skip("walls need a root supervisor")
    with open_arena(old_kernel=request.param) as made:
        yield made


@pytest.fixture(scope="session")
def modern() -> Iterator[Arena]:
    """The arena for rows that have nothing to do with the kernel's age."""
    with open_arena(old_kernel=False) as made:
        yield made


@pytest.fixture(scope="session")
def user(arena: Arena) -> Iterator[NotebookPlace]:
    """A notebook of the arena's: adversary U."""
    with arena.another_notebook() as place:
        yield place


@pytest.fixture(params=["vault", "notebook"])
def hostile(request: pytest.FixtureRequest, arena: Arena, user: NotebookPlace) -> Place:
    """Behind walls: a package in its vault (adversary K), and a notebook (adversary U)."""
    return arena.vault if request.param == "vault" else user


@pytest.fixture(params=["vault", "notebook"])
def mortal(request: pytest.FixtureRequest, arena: Arena) -> Iterator[Place]:
    """The same, but it may die in the test."""
    if request.param == "vault":
        with arena.another_vault() as place:
            yield place
    else:
        with arena.another_notebook() as notebook:
            yield notebook
