"""The whole memory of a notebook's process, searched for what is in the package it uses."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process_memory import occurrences
from tests.support.sealed_package import seal_package
from tests.support.vault_link import ROOT

# The notebook's side: knows the encrypted file and the key, never a word of the package.
NOTEBOOK = """
import sys
from enclave_kernel.session.package_loading import load_package
from tests.support.sealed_package import SealedPackage
from tests.support.vault_link import VaultLink, payload_pid
path, header_bytes, key = sys.stdin.readline().split()
header = open(path, "rb").read(int(header_bytes))
with VaultLink(SealedPackage(b"", header, bytes.fromhex(key))) as link:
    loaded = load_package(path, link, lambda stage, share: None)
    package, kept = loaded.proxy, []
    kept.append(package.weights_sum())
    kept.append(package.Model().size())
    for call in (package.fail, package.leak, lambda: package.fail(1), lambda: package.secret):
        try:
            kept.append(call())
        except Exception as error:
            kept.append(error)
    print([payload_pid(vault.pid) for vault in link.vaults.values()][0], flush=True)
    sys.stdin.readline()
"""

MANIFEST = """
[package]
name = "canaries"
version = "1"
module = "canaries"
[exports]
functions = { weights_sum = "weights_sum()", fail = "fail()", leak = "leak()" }
classes = { Model = { init = "Model()", methods = ["size()"] } }
[policy]
errors = ["ValueError"]
"""

SOURCE = '''"""docstring-{0}"""
# comment-{0}
from pathlib import Path
WEIGHTS = (Path(__file__).parent / "weights-{0}.bin").read_bytes()
CONSTANT = "constant-{0}"


class Model:
    """class-{0}"""

    def size(self, default="default-{0}"):
        return len(WEIGHTS)


class Hidden(ValueError):
    pass


def weights_sum():
    local = "local-{0}"
    return sum(WEIGHTS) + len(local)


def fail():
    raise Hidden("message-{0}") from RuntimeError("cause-{0}")


def leak():
    return Hidden("returned-{0}")
'''


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory needs root")
def test_nothing_of_the_package_is_in_the_notebooks_memory(tmp_path: Path) -> None:
    canary = secrets.token_hex(12)
    files: dict[str, str | bytes] = {
        "canaries.py": SOURCE.format(canary),
        f"weights-{canary}.bin": f"weights-{canary}".encode() * 5000,
    }
    package = seal_package(files, MANIFEST)
    path = package.write(tmp_path / "canaries.encrypted")
    notebook = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with notebook:
        assert notebook.stdin is not None and notebook.stdout is not None
        notebook.stdin.write(f"{path} {len(package.header_raw)} {package.key.hex()}\n")
        notebook.stdin.flush()
        vault = int(notebook.stdout.readline())
        assert occurrences(vault, canary.encode()) > 5000  # the search finds what is there
        assert occurrences(notebook.pid, path.name.encode()) > 0
        assert occurrences(notebook.pid, canary.encode()) == 0
        # Wiped where it was handed over, derived and thrown away where it was used.
        assert occurrences(vault, package.key) == 0
        notebook.stdin.write("\n")
    assert notebook.returncode == 0
