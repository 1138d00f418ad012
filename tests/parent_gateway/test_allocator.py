"""The allocator's settings: read as the allocator reads them, explained where they do not fit."""

from pathlib import Path

import pytest

from enclave_parent_gateway.backends.allocator import (
    Allocation,
    check_fits,
    needed_memory_mib,
    read_allocation,
)
from enclave_parent_gateway.errors import EnclaveStartError

_MIB = 2**20


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NITRO_CLI_INSTALL_DIR", str(tmp_path))
    path = tmp_path / "etc" / "nitro_enclaves" / "allocator.yaml"
    path.parent.mkdir(parents=True)
    return path


# The first is what nitro-cli's package installs, but for its comments' wording.
@pytest.mark.parametrize(
    ("text", "memory", "cpus"),
    [
        ("---\n# How much\n#\nmemory_mib: 512\n#\ncpu_count: 2\n# cpu_pool: 2,3,6-9\n", 512, 2),
        ("# before\nmemory_mib: 9\n---\nmemory_mib: 3072\ncpu_pool: 2,3,6-9\n", 3072, 6),
        ('---\nmemory_mib:   "1024"\ncpu_pool: "1,1-2"  # two\n', 1024, 2),
    ],
)
def test_settings(file: Path, text: str, memory: int, cpus: int) -> None:
    file.write_text(text)
    assert read_allocation() == Allocation(file, memory, cpus)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory_mib: 512\ncpu_count: 2\n", "must say memory_mib"),
        ("---\nmemory_mib: 512\n", "must say memory_mib"),
        ("---\nmemory_mib: lots\ncpu_count: 2\n", "as numbers"),
        ("---\nmemory_mib: 512\ncpu_pool: 2-\n", "as numbers"),
        ("---\nmemory_mib: 512\ncpu_pool: 2\ncpu_count: 2\n", "remove one of them"),
        ("---\nmemory_mib: 512\nmemory_mib: 5\ncpu_count: 2\n", "each once"),
        ("---\nmemory: 512\ncpu_count: 2\n", "does not take: 'memory: 512'"),
        ("---\n- 512\n", "does not take"),
        ("---\n\xff", "cannot be read|does not take"),
    ],
)
def test_what_the_allocator_would_not_take(file: Path, text: str, said: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(EnclaveStartError, match=said) as caught:
        read_allocation()
    assert "\n" not in str(caught.value)


def test_no_settings(file: Path) -> None:
    with pytest.raises(EnclaveStartError, match="dnf install aws-nitro-enclaves-cli"):
        read_allocation()


def test_four_times_the_image() -> None:
    assert [needed_memory_mib(size) for size in (1, _MIB, _MIB + 1)] == [4, 4, 8]


@pytest.mark.parametrize(
    ("kept", "memory", "cpus", "said"),
    [
        ((512, 2), 400, 2, "set memory_mib: 600 or more there"),
        ((2048, 2), 599, 2, "type: enclave up --backend nitro --memory 600"),
        ((2048, 2), 4096, 2, "use --memory 2048, or set memory_mib"),
        ((2048, 2), 2048, 3, "use --cpus 2, or set cpu_count"),
    ],
)
def test_what_does_not_fit(kept: tuple[int, int], memory: int, cpus: int, said: str) -> None:
    allocation = Allocation(Path("/etc/a"), *kept)
    with pytest.raises(EnclaveStartError, match=said):
        check_fits(allocation, image_bytes=150 * _MIB, memory_mib=memory, cpus=cpus)


def test_what_fits() -> None:
    check_fits(Allocation(Path("/etc/a"), 600, 2), image_bytes=150 * _MIB, memory_mib=600, cpus=2)
