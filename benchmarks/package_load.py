"""Loading a package, against decrypting the same bytes; a part of `vault_call`.

Before each of both, as much memory as it takes is used once and freed: a hypervisor that takes back
what a guest leaves free for two seconds makes new memory cost up to 12 s/GiB, now one side, now the
other.
"""

import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks.own_enclave import evaluate, publish
from benchmarks.package_crypto import ARN, make_source, unseal_file
from benchmarks.rows import Row, compare, limit
from enclave_encryption.package_encryption import encrypt_package
from enclave_encryption.publisher_keys import FileKey

__all__ = ["Loads", "measure_loads", "prepare_loads"]

SPARE_S: Final = 2.0
"""How long a spare vault gets to be ready."""
_SLACK_BYTES: Final = 512 * 2**20
"""What a load takes besides the package's own size."""


@dataclass(frozen=True)
class Loads:
    """What is loaded and decrypted.

    Attributes:
        folder: Has `small.encrypted`, `signed.encrypted` and `unsigned.encrypted` for the notebook,
            and `signed` and `unsigned`, the same two packages under data keys that we know.
        keys: Those data keys, by name.
        size: Of the large file in them, in bytes.
    """

    folder: Path
    keys: Mapping[str, bytes]
    size: int


class _KnownKey:
    """Wraps nothing: keeps the data key for us."""

    arn = ARN

    def __init__(self) -> None:
        self.data_key = b""

    def wrap(self, data_key: bytes | bytearray, context: Mapping[str, str]) -> bytes:
        """Keep the data key; as `WrappingKey`."""
        del context
        self.data_key = bytes(data_key)
        return b"wrapped"


def prepare_loads(status: Mapping[str, Any], folder: Path, mib: int) -> Loads:
    """Encrypt a package of `mib` MiB four times; `small.encrypted` is the caller's."""
    plan = make_source(folder, mib)
    publishers = {"signed": FileKey(Ed25519PrivateKey.generate()), "unsigned": None}
    keys = {}
    for name, publisher in publishers.items():
        key = _KnownKey()
        encrypt_package(plan, key, folder / name, lambda _: None, publisher)
        keys[name] = key.data_key
        output = folder / f"{name}.encrypted"
        publish(status, folder / "source", output, signed=publisher is not None)
    (folder / "source/weights.bin").unlink()
    return Loads(folder, keys, mib * 2**20)


def measure_loads(client: BlockingKernelClient, loads: Loads, rounds: int) -> list[Row]:
    """Measure loading, and between the loads what decrypting alone takes."""
    names = ("small", "unsigned", "unsigned, bare", "signed", "signed, bare")
    times: dict[str, list[float]] = {name: [] for name in names}
    with _memory_like_a_vaults(loads.folder / "memory") as new_memory:
        for number in range(rounds + 1):  # the first one warms up
            for name in names:
                time.sleep(SPARE_S)
                if name != "small":
                    _use_once(loads.size + _SLACK_BYTES)
                if name.endswith("bare"):
                    seconds = _decrypt(loads, name.partition(",")[0], new_memory)
                else:
                    seconds = _load(client, name)
                if number:
                    times[name].append(seconds)
    size = f"{loads.size // 2**20} MiB"
    goal = (1.5, "at most 1.5x as long")
    signed, unsigned = f"%load_encrypted, {size}, signed", f"%load_encrypted, {size}, unsigned"
    small = "%load_encrypted, small package with numpy"
    bare = "decrypting it, to new memory"
    verified = "decrypting it and verifying its signature"
    return [
        limit(small, times["small"], 0.4, "at most 0.4 s"),
        compare(unsigned, times["unsigned"], times["unsigned, bare"], bare, goal),
        compare(signed, times["signed"], times["signed, bare"], verified, goal),
        compare(signed, times["signed"], times["unsigned, bare"], "decrypting alone"),
    ]


def _load(client: BlockingKernelClient, name: str) -> float:
    flag = " --unsigned" if name == "unsigned" else ""
    call = f"measure_load(get_ipython(), '{name}.encrypted', '{name}', '{flag}')"
    seconds: float = evaluate(client, call)
    return seconds


def _decrypt(loads: Loads, name: str, new_memory: Callable[[int], memoryview]) -> float:
    begin = time.perf_counter()
    unseal_file(loads.folder / name, new_memory(loads.size), key=loads.keys[name])
    return time.perf_counter() - begin


def _use_once(size: int) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


@contextmanager
def _memory_like_a_vaults(folder: Path) -> Iterator[Callable[[int], memoryview]]:
    """Yield what returns new memory of a size: of a file in a tmpfs as a vault's own is.

    Without root, where a vault has none either, anonymous memory.
    """
    if os.geteuid() != 0:
        yield lambda size: memoryview(mmap.mmap(-1, size))
        return
    folder.mkdir()
    options = "huge=within_size,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "bench", str(folder)], check=True)

    def new_memory(size: int) -> memoryview:
        with (folder / "file").open("w+b") as file:
            (folder / "file").unlink()
            file.truncate(size)
            os.posix_fallocate(file.fileno(), 0, size)
            return memoryview(mmap.mmap(file.fileno(), size))

    try:
        yield new_memory
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
