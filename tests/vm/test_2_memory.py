"""Limits by control groups of version 2, which the image's kernel has: a vault that eats too much.

What the same does with version 1: tests/redteam/test_12_resources.py.
"""

import re
from pathlib import Path

import pytest

from tests.support.enclave_home import kernel, run_code
from tests.support.grader_package import publish_grader
from tests.support.notebook_cells import run_cell
from tests.support.package_owner import PackageOwner, write_package
from tests.support.vm_home import VmHome

# Not beside the NSM: that machine's kernel is not an image's, and leaves less of the memory.
pytestmark = [
    pytest.mark.vm,
    pytest.mark.parametrize("machine", ["x86_64", "aarch64"], indirect=True, scope="session"),
]
_MANIFEST = """
[package]
name = "greedy"
version = "1"
module = "greedy"
[exports.functions]
eat = "eat(mib)"
groups = "groups()"
"""
_GREEDY = """
from pathlib import Path

kept = []

def eat(mib):
    for _ in range(0, mib, 16):
        kept.append(bytearray(b"x") * (16 << 20))

def groups():
    return Path("/proc/self/cgroup").read_text()  # enclave: allow weights
"""
_MARGIN_MIB = 256
"""More than the vault's own Python and what it maps take."""
_AVAILABLE = """
with open("/proc/meminfo") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) >> 10)
"""
_LIMIT = re.compile(r"needed more than the (\d+) MiB of memory it may have")


def test_a_vault_that_needs_too_much_dies_alone(
    vm: VmHome, project: Path, owner: PackageOwner, key_arn: str, tmp_path: Path
) -> None:
    source = write_package(tmp_path / "greedy", {"enclave.toml": _MANIFEST, "greedy.py": _GREEDY})
    owner.encrypt(source, key_arn, project / "greedy.encrypted")
    publish_grader(owner, key_arn, project / "other.encrypted")
    with kernel(cwd=str(project)) as (manager, client):
        loads = "%load_encrypted other.encrypted as other\n%load_encrypted greedy.encrypted"
        loaded = run_cell(client, f"x = 41\n{loads}", 120)
        assert loaded.error is None, loaded.error
        # Version 2 has one hierarchy, which is number 0 and names no controller; version 1 a line
        # for each.
        assert run_code(client, "print(greedy.groups())", 60).strip().startswith("0::/")
        assert len(run_code(client, "print(greedy.groups().strip())", 60).splitlines()) == 1

        error = run_cell(client, "greedy.eat(100_000)", 120).error
        assert error is not None and error.name == "VaultDiedError", error
        found = _LIMIT.search(error.value)
        assert found, error.value

        assert manager.is_alive()
        assert run_code(client, "print(x + 1, other.mean([1, 2, 3]))", 60).strip() == "42 2.0"
        # It was its own limit, not the machine's end of memory: at the limit others have some left.
        again = run_cell(client, "%load_encrypted greedy.encrypted", 120)
        assert again.error is None, again.error
        limit = int(found[1])
        assert limit > 256
        below = run_cell(client, f"greedy.eat({limit - _MARGIN_MIB})", 120)
        assert below.error is None, below.error
        assert int(run_code(client, _AVAILABLE, 60)) > _MARGIN_MIB // 2
        assert run_code(client, "print(other.mean([1, 2, 3]))", 60).strip() == "2.0"
    assert vm.status()["state"] == "up"
