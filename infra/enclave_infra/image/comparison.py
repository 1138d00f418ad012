"""What differs between two images: PCRs, sections, and the files in their ramdisks."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import msgspec

from enclave_infra.image.cpio_reader import ArchiveEntry
from enclave_infra.image.image_view import SECTION_NAMES, ImageView

__all__ = ["Difference", "compare_images"]


class Difference(msgspec.Struct, frozen=True):
    """One thing that differs; `one` or `other` is empty where only one image has it."""

    what: str
    one: str
    other: str


def compare_images(one: ImageView, other: ImageView) -> tuple[Difference, ...]:
    """Return what differs: nothing for images with the same PCRs and the same metadata.

    Raises:
        ImageError: A ramdisk cannot be read.
    """
    found = list(_values("PCR", _pcrs(one), _pcrs(other)))
    found += _values("", _header(one), _header(other))
    found += _values("metadata ", _metadata(one), _metadata(other))
    if _pcrs(one) != _pcrs(other):
        files = zip_longest(one.ramdisks(), other.ramdisks(), fillvalue=())
        for number, (ours, theirs) in enumerate(files, 1):
            found += _values(f"ramdisk {number} /", _files(ours), _files(theirs))
    return tuple(found)


def _values(prefix: str, ours: dict[str, str], theirs: dict[str, str]) -> Iterator[Difference]:
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name, ""), theirs.get(name, "")
        if one != other:
            yield Difference(f"{prefix}{name}", one, other)


def _pcrs(view: ImageView) -> dict[str, str]:
    return {str(index): value.hex() for index, value in view.eif.pcrs.items()}


def _header(view: ImageView) -> dict[str, str]:
    eif = view.eif
    facts = {
        "architecture": "aarch64" if eif.arm64 else "x86_64",
        "memory": f"{eif.memory_bytes >> 20} MiB",
        "cpus": str(eif.cpus),
        "cmdline": view.cmdline,
    }
    for number, section in enumerate(eif.sections, 1):
        kind = SECTION_NAMES[section.kind]
        facts[f"section {number} ({kind})"] = f"{section.size_bytes} bytes"
    return facts


def _metadata(view: ImageView) -> dict[str, str]:
    return {name: msgspec.json.encode(value).decode() for name, value in view.metadata.items()}


def _files(entries: Sequence[ArchiveEntry]) -> dict[str, str]:
    return {entry.name: _shown(entry) for entry in entries}


def _shown(entry: ArchiveEntry) -> str:
    what = f"-> {entry.link}" if entry.link else f"sha256 {entry.sha256}"
    owner = "" if entry.owner == (0, 0) else f" owner {entry.owner[0]}:{entry.owner[1]}"
    return f"{entry.mode:o}{owner} {entry.size_bytes} bytes {what}"
