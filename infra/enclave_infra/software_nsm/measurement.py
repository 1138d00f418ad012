"""PCR values of the local backend: what stands in for measuring an image.

PCR0 = SHA384(48 zero bytes || SHA384(S)), where S is, for every `.py` file of the measured
directories sorted by path: `path`, a zero byte, the size in decimal, a zero byte, the content.
`path` is relative to the measured directory's parent, with `/`; `__pycache__` is not looked at.
Path and size are part of S, so that moving bytes from one file to another changes PCR0.
Source: FACTS, "Attestation document" (the formula around S is the image builder's).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from enclave_protocol.attestation_document import PCR_BYTES
from enclave_protocol.errors import EnclaveError

__all__ = ["MeasurementError", "extend", "initial_pcrs", "measure"]

_ZERO = bytes(PCR_BYTES)
_EMPTY_RAMDISK = hashlib.sha384(b"").digest()
_DEBUG_ZEROED = (0, 1, 2, 8)


class MeasurementError(EnclaveError):
    """A path that was to be measured is not a readable directory or file."""


def extend(pcr: bytes, data: bytes) -> bytes:
    """Return SHA384(pcr || data), 48 bytes: the extend operation."""
    return hashlib.sha384(pcr + data).digest()


def measure(paths: Iterable[Path]) -> bytes:
    """Return PCR0 (48 bytes) of the Python files under `paths`.

    Raises:
        MeasurementError: A path does not exist or cannot be read, or holds no Python file.
    """
    digest = hashlib.sha384()
    for name, file in sorted(_python_files(paths)):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise MeasurementError(f"cannot measure {file}: {error.strerror}") from error
        digest.update(b"%s\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    return extend(_ZERO, digest.digest())


def _python_files(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in paths:
        files = [path] if path.is_file() else list(path.rglob("*.py"))
        files = [file for file in files if "__pycache__" not in file.parts and file.is_file()]
        if not files:
            raise MeasurementError(f"nothing to measure: {path} holds no Python file")
        found += [(file.relative_to(path.parent).as_posix(), file) for file in files]
    return found


def initial_pcrs(*, pcr0: bytes, role_arn: str, instance_id: str, debug: bool) -> dict[int, bytes]:
    """Return PCR0..15 as an enclave starts with them.

    PCR1 and PCR2 are those of an empty image part, PCR3 and PCR4 name the parent's role and
    instance; debug mode zeroes PCR0, 1, 2 and 8.
    """
    pcrs = dict.fromkeys(range(16), _ZERO)
    pcrs[0] = pcr0
    pcrs[1] = pcrs[2] = extend(_ZERO, _EMPTY_RAMDISK)
    pcrs[3] = extend(_ZERO, role_arn.encode())
    pcrs[4] = extend(_ZERO, instance_id.encode())
    if debug:
        pcrs |= dict.fromkeys(_DEBUG_ZEROED, _ZERO)
    return pcrs
