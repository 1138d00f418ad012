"""What a directory becomes: its files, and a manifest with every default filled in."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from enclave_encryption.compiled_files import check_compiled, check_programs
from enclave_encryption.errors import ExportError, OwnerError
from enclave_encryption.export_check import check_exports
from enclave_encryption.package_code import PackageCode
from enclave_encryption.package_scripts import check_notebooks, named_scripts
from enclave_encryption.source_tree import SourceTree, scan
from enclave_protocol.incident import (
    INCIDENT_KEY_NAME,
    MAX_INCIDENT_KEY_BYTES,
    parse_incident_key,
)
from enclave_protocol.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    NAME_PATTERN,
    Manifest,
    Script,
    parse_manifest,
)

__all__ = [
    "DEFAULT_VERSION",
    "PackagePlan",
    "check_not_expired",
    "choose_module",
    "default_name",
    "plan_package",
]

DEFAULT_VERSION = "0.0.0"
"""Of a package whose owner gave none: older than every version somebody chose."""


@dataclass(frozen=True)
class PackagePlan:
    """Checked and ready to encrypt.

    Attributes:
        tree: The directory.
        manifest: With every default filled in.
        manifest_text: Its file; empty if there is none.
        code: The directory's modules.
        incident_key: What its incident ids are made with; None: they are random.
    """

    tree: SourceTree
    manifest: Manifest
    manifest_text: str
    code: PackageCode
    incident_key: bytes | None

    @property
    def file_name(self) -> str:
        """The default name of the encrypted file."""
        return f"{self.manifest.package.name}-{self.manifest.package.version}.encrypted"


def plan_package(directory: Path) -> PackagePlan:
    """Return the plan for `directory`; nothing is written and none of its code runs.

    Raises:
        SourceTreeError: Something in it cannot be packed.
        ManifestError: `enclave.toml` is wrong.
        ExportError: `enclave.toml` and the code disagree.
        IncidentKeyError: `incidents.key` holds no key.
    """
    tree = scan(directory)
    text = tree.text(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    manifest = Manifest() if text is None else parse_manifest(text)
    key_text = tree.text(INCIDENT_KEY_NAME, MAX_INCIDENT_KEY_BYTES)
    incident_key = None if key_text is None else parse_incident_key(key_text.encode())
    code = PackageCode(tree)
    paths = frozenset(file.entry.path for file in tree.files)
    package = manifest.package
    module = package.module
    if not module and (manifest.exports.functions or manifest.exports.classes):
        module = choose_module(code, package.name or directory.resolve().name)
    scripts = manifest.scripts
    if text is None:
        # Runnable as it is: a directory of scripts and notebooks needs no manifest.
        scripts = {name: Script(file=path) for name, path in named_scripts(paths).items()}
    manifest = msgspec.structs.replace(
        manifest,
        package=msgspec.structs.replace(
            package,
            name=package.name or default_name(directory),
            version=package.version or DEFAULT_VERSION,
            module=module,
        ),
        scripts=scripts,
    )
    check_exports(manifest, code, paths)
    check_compiled(tree, manifest)
    check_programs(scripts, tree)
    check_notebooks(scripts, tree)
    return PackagePlan(tree, manifest, text or "", code, incident_key)


def check_not_expired(manifest: Manifest, now: datetime) -> None:
    """Refuse a package that no vault would answer a call of.

    Args:
        manifest: Checked.
        now: With a zone.

    Raises:
        OwnerError: `[policy] expires` is past.
    """
    expires = manifest.policy.expires
    if expires and datetime.fromisoformat(expires) <= now:
        raise OwnerError(
            f"{MANIFEST_NAME}: [policy] expires is {expires}, which is past: no vault would answer "
            "a call; set a later time, or remove the line for no expiry"
        )


def default_name(directory: Path) -> str:
    """Return the package name a directory's name gives.

    Raises:
        OwnerError: It has characters a package name cannot have.
    """
    name = directory.resolve().name
    if not NAME_PATTERN.fullmatch(name):
        raise OwnerError(
            f"the directory's name {name!r} cannot be a package's: add an {MANIFEST_NAME} with "
            "[package] name (`enclave-owner init` writes one)"
        )
    return name


def choose_module(code: PackageCode, name: str) -> str:
    """Return the module a package called `name` most likely exports from.

    Raises:
        ExportError: None, or several and none is called like the package.
    """
    candidates = [
        module
        for module in code.top_level()
        if module not in ("setup", "conftest") and not module.startswith("test_")
    ]
    alike = re.sub(r"[-.]", "_", name).casefold()
    for module in candidates:
        if module.casefold() == alike:
            return module
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ExportError("there is no Python module in the directory to export from")
    raise ExportError(
        f"several modules could be exported from ({', '.join(candidates)}): name one with "
        f"[package] module in {MANIFEST_NAME}, or `init --module NAME`"
    )
