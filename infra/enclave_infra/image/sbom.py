"""The list of everything in an image, as an SPDX 2.3 document in JSON.

Source: SPDX specification 2.3, sections 6 (document), 7 (package), 11 (relationship).
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from enclave_infra.image.cpio_archive import EPOCH_S
from enclave_infra.image.debian_lock import DebianPackage

__all__ = ["python_packages", "write_sbom"]

_DOCUMENT: Final = "SPDXRef-DOCUMENT"
_IMAGE: Final = "SPDXRef-image"
_UNKNOWN: Final = "NOASSERTION"
_FIELD: Final = re.compile(r"^(Name|Version): (.+)$", re.MULTILINE)


def python_packages(site: Path) -> list[tuple[str, str]]:
    """Return name and version of each installed Python package, sorted."""
    found = []
    for path in site.glob("*.dist-info/METADATA"):
        fields = dict(_FIELD.findall(path.read_text("utf-8", "replace").partition("\n\n")[0]))
        found.append((fields["Name"], fields["Version"]))
    return sorted(found)


def write_sbom(
    path: Path,
    *,
    name: str,
    version: str,
    pcr0: bytes,
    debian: Iterable[DebianPackage],
    python: Iterable[tuple[str, str]],
) -> None:
    """Write the document; the same image gives the same bytes.

    Args:
        path: Of the file.
        name: Of the image.
        version: Of the image.
        pcr0: Names the document for ever: another image has another one.
        debian: Packages that are in the image, the kernel's among them.
        python: Name and version of each Python package.
    """
    packages = [_package("image", name, version, supplier=_UNKNOWN)]
    for item in sorted(debian):
        packages.append(
            _package(
                f"deb-{item.name}",
                item.name,
                item.version,
                supplier="Organization: Debian",
                purl=f"pkg:deb/debian/{item.name}@{item.version}?arch={item.architecture}",
                sha256=item.sha256,
            )
        )
    for title, number in python:
        lower = re.sub(r"[-_.]+", "-", title).lower()
        packages.append(_package(f"pypi-{lower}", title, number, purl=f"pkg:pypi/{lower}@{number}"))
    created = datetime.fromtimestamp(EPOCH_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": name,
        "documentNamespace": f"urn:enclave-image:{pcr0.hex()}",
        "creationInfo": {"created": created, "creators": [f"Tool: enclave-image-{version}"]},
        "packages": packages,
        "relationships": [
            _relationship(_DOCUMENT, "DESCRIBES", _IMAGE),
            *(_relationship(_IMAGE, "CONTAINS", item["SPDXID"]) for item in packages[1:]),
        ],
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def _package(
    identifier: str,
    name: str,
    version: str,
    *,
    supplier: str = _UNKNOWN,
    purl: str | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    package: dict[str, Any] = {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", identifier),
        "name": name,
        "versionInfo": version,
        "supplier": supplier,
        "downloadLocation": _UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": _UNKNOWN,
        "licenseDeclared": _UNKNOWN,
        "copyrightText": _UNKNOWN,
    }
    if sha256 is not None:
        package["checksums"] = [{"algorithm": "SHA256", "checksumValue": sha256}]
    if purl is not None:
        reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl"}
        package["externalRefs"] = [{**reference, "referenceLocator": purl}]
    return package


def _relationship(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
