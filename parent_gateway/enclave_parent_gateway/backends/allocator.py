"""What this machine keeps free for enclaves: the allocator's settings, read and explained.

The allocator is a service of nitro-cli's package: it takes memory (huge pages) and CPUs from the
machine at boot. An enclave gets nothing else. Nothing here changes a setting.
Source: aws-nitro-enclaves-cli, bootstrap/allocator.yaml and nitro-enclaves-allocator.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_parent_gateway.errors import EnclaveStartError

__all__ = ["Allocation", "check_fits", "needed_memory_mib", "read_allocation"]

MEMORY_TO_IMAGE: Final = 4
"""nitro-cli refuses less memory than so many times the image's size (its error E26)."""
_MIB: Final = 2**20
_MAX_FILE_BYTES: Final = 64 * 1024
_KEYS: Final = ("memory_mib", "cpu_count", "cpu_pool")
_LINE: Final = re.compile(r'\s*([A-Za-z0-9_-]+)\s*:\s*"?([^"#]*?)"?\s*(?:#.*)?')
_POOL: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_RESTART: Final = "sudo systemctl restart nitro-enclaves-allocator.service"


@dataclass(frozen=True)
class Allocation:
    """The settings of one machine.

    Attributes:
        file: Where they are.
        memory_mib: Memory for all enclaves together.
        cpus: CPUs for all of them.
    """

    file: Path
    memory_mib: int
    cpus: int


def read_allocation() -> Allocation:
    """Return the allocator's settings: /etc/nitro_enclaves/allocator.yaml.

    Below `NITRO_CLI_INSTALL_DIR`, if that is set, as nitro-cli's own tools have it.

    Raises:
        EnclaveStartError: There are none, or they are not what the allocator takes.
    """
    prefix = os.environ.get("NITRO_CLI_INSTALL_DIR", "")
    file = Path(f"{prefix}/etc/nitro_enclaves/allocator.yaml")
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_FILE_BYTES).decode()
    except FileNotFoundError as error:
        raise EnclaveStartError(
            f"{file} does not exist: no memory and no CPUs are kept for enclaves here; type: sudo "
            "dnf install aws-nitro-enclaves-cli, and set memory_mib and cpu_count in that file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EnclaveStartError(f"{file} cannot be read: {error}") from error
    found = _settings(text, file)
    try:
        memory = int(found["memory_mib"])
        cpus = _pool_size(found["cpu_pool"]) if "cpu_pool" in found else int(found["cpu_count"])
    except (KeyError, ValueError) as error:
        raise EnclaveStartError(
            f"{file} must say memory_mib and either cpu_count or cpu_pool, as numbers; correct it, "
            f"then type: {_RESTART}"
        ) from error
    return Allocation(file, memory, cpus)


def _settings(text: str, file: Path) -> dict[str, str]:
    """Return the keys and values, read as the allocator's own script does: after the first ---."""
    found: dict[str, str] = {}
    _, marker, rest = f"\n{text}".partition("\n---")
    for line in rest.splitlines() if marker else ():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in _KEYS or match[1] in found:
            raise EnclaveStartError(
                f"{file} has a line that the allocator does not take: {line.strip()[:80]!r}; it "
                f"takes {', '.join(_KEYS)}, each once"
            )
        found[match[1]] = match[2]
    if "cpu_count" in found and "cpu_pool" in found:
        raise EnclaveStartError(f"{file} has cpu_count and cpu_pool: remove one of them")
    return found


def _pool_size(pool: str) -> int:
    """Return how many CPUs a pool such as 2,3,6-9 has."""
    if _POOL.fullmatch(pool) is None:
        raise ValueError(pool)
    ids: set[int] = set()
    for part in pool.split(","):
        first, _, last = part.partition("-")
        ids.update(range(int(first), int(last or first) + 1))
    return len(ids)


def needed_memory_mib(image_bytes: int) -> int:
    """Return the least memory that nitro-cli gives an image of this size, in MiB."""
    return -(-image_bytes // _MIB) * MEMORY_TO_IMAGE


def check_fits(allocation: Allocation, *, image_bytes: int, memory_mib: int, cpus: int) -> None:
    """See that an enclave of this size can start, before anything is started.

    Raises:
        EnclaveStartError: It cannot; the text says which number to change, and where.
    """
    needed = needed_memory_mib(image_bytes)
    image = f"the image has {-(-image_bytes // _MIB)} MiB, so its enclave needs {needed} MiB"
    if memory_mib < needed and allocation.memory_mib < needed:
        raise EnclaveStartError(
            f"{image} ({MEMORY_TO_IMAGE} times as much), and {allocation.file} keeps "
            f"{allocation.memory_mib} MiB for enclaves: set memory_mib: {needed} or more there, "
            f"then type: {_RESTART}"
        )
    if memory_mib < needed:
        raise EnclaveStartError(
            f"{image} ({MEMORY_TO_IMAGE} times as much), not {memory_mib}; type: enclave up "
            f"--backend nitro --memory {needed}"
        )
    if memory_mib > allocation.memory_mib:
        raise EnclaveStartError(
            f"{allocation.file} keeps {allocation.memory_mib} MiB for enclaves, and {memory_mib} "
            f"are asked for: use --memory {allocation.memory_mib}, or set memory_mib there and "
            f"type: {_RESTART}"
        )
    if cpus > allocation.cpus:
        raise EnclaveStartError(
            f"{allocation.file} keeps {allocation.cpus} CPUs for enclaves, and {cpus} are asked "
            f"for: use --cpus {allocation.cpus}, or set cpu_count there and type: {_RESTART}"
        )
