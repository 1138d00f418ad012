"""Packages for tests of the vault: one that reports what it sees, and ways to load packages."""

from pathlib import Path

from enclave_kernel.session.package_loading import LoadedPackage, load_package
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink

CANARY = "canary-5b1f0c9a"

SPY_MANIFEST = """
[package]
name = "spy"
version = "1.0"
module = "spy"
[exports.functions]
run = "run(code)"
echo = "echo(value)"
empty = "empty()"
fail = "fail(kind, *args)"
opts = "opts(a, b=2, *, c=..., d)"
make = "make(size=0)"
wrong = "wrong()"
nothing = "nothing()"
[exports.classes]
Box = { init = "Box(content=None)", methods = ["get()", "twin()"], attributes = ["content"] }
Sealed = {}
[exports.returns]
make = "Box"
"Box.twin" = "Box"
wrong = "Box"
nothing = "none"
[docs]
run = "Run code in the vault."
"Box.get" = "What is inside."
[policy]
errors = ["ValueError", "KeyError"]
"""

SPY_SOURCE = f'''
"""{CANARY} docstring"""
import builtins
SECRET = "{CANARY}"


class Private(ValueError):
    pass


class Box:
    hidden = SECRET

    def __init__(self, content=None):
        self.content = content

    def get(self):
        return self.content

    def twin(self):
        return Box(self.content)

    def undeclared(self):
        return SECRET


class Sealed:
    pass


class SubBox(Box):
    pass


def run(code):
    """Tests only: what a real owner must never do."""
    scope = {{"__name__": "spy"}}
    exec(code, scope)
    return scope.get("result")


def echo(value):
    return value


def empty():
    return None


def fail(kind, *args):
    raise (Private if kind == "Private" else getattr(builtins, kind))(*args)


def opts(a, b=2, *, c=3, d):
    return [a, b, c, d]


def make(size=0):
    return Box(bytes(size))


def wrong():
    return SubBox()


def nothing():
    return SECRET


def undeclared():
    return SECRET
'''


def spy_package() -> SealedPackage:
    return seal_package({"spy.py": SPY_SOURCE, "data/model.bin": b"weights"}, SPY_MANIFEST)


def load_sealed(link: VaultLink, package: SealedPackage, folder: Path) -> LoadedPackage:
    link.add(package)
    path = package.write(folder / "package.encrypted")
    return load_package(str(path), link, lambda _stage, _share: None)
