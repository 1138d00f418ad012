"""Wheels of what this environment has installed, packed anew: as from an index, without one."""

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.project_wheel import build_wheel

__all__ = ["fill_wheelhouse"]

_MADE_BY_INSTALLER = frozenset({"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"})


def fill_wheelhouse(directory: Path, extra: str) -> None:
    """Put this project's wheel, and one of everything `extra` needs, into `directory`."""
    directory.mkdir(exist_ok=True)
    build_wheel(directory)
    for needed in _closure("enclave-kernel", extra):
        _pack(needed, directory)


def _closure(name: str, extra: str) -> Iterator[Distribution]:
    """Yield what a distribution needs, directly or not, itself excluded."""
    seen: set[str] = {canonicalize_name(name)}
    waiting = [(distribution(name), extra)]
    while waiting:
        found, of_extra = waiting.pop()
        for text in found.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": of_extra}):
                continue
            key = canonicalize_name(requirement.name)
            if key not in seen:
                seen.add(key)
                needed = distribution(requirement.name)
                yield needed
                waiting.append((needed, ""))


def _pack(installed: Distribution, directory: Path) -> None:
    metadata = installed.read_text("WHEEL") or ""
    tags = [line.removeprefix("Tag: ") for line in metadata.splitlines() if line.startswith("Tag:")]
    # Python versions, ABIs and platforms, each as a compressed set.
    sets = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in sets)
    name = canonicalize_name(installed.metadata["Name"]).replace("-", "_")
    path = directory / f"{name}-{installed.version}-{tag}.whl"
    records: list[str] = []
    with zipfile.ZipFile(path, "w") as wheel:
        for file in installed.files or ():
            if ".." in file.parts or file.suffix == ".pyc" or file.name in _MADE_BY_INSTALLER:
                continue  # scripts, which pip makes again, and what belongs to this environment
            data = file.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            records.append(f"{file.as_posix()},sha256={digest},{len(data)}\n")
            wheel.writestr(file.as_posix(), data)
        (info,) = {file.parts[0] for file in installed.files or () if file.name == "METADATA"}
        wheel.writestr(f"{info}/RECORD", "".join([*records, f"{info}/RECORD,,\n"]))
