"""An image taken apart for a virtual machine; that a kernel boots it is in tests/vm."""

import json
import stat
from pathlib import Path

import pytest

from enclave_parent_gateway.backends.development_ramdisk import development_ramdisk
from enclave_parent_gateway.backends.eif_boot import unpack_eif
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_protocol.eif import measure_eif
from tests.support.eif_files import CMDLINE, KERNEL, METADATA, RAMDISK, eif

_METADATA = json.dumps({"ImageName": "made-for-tests", "More": 1}).encode()
_SECTIONS = [
    (KERNEL, b"kernel" * 1000),
    (CMDLINE, b"console=ttyS0 panic=-1\0"),
    (RAMDISK, b"first"),
    (RAMDISK, b"second!"),
    (METADATA, _METADATA),
]


def _image(folder: Path, data: bytes | None = None) -> Path:
    path = folder / "a.eif"
    path.write_bytes(eif(_SECTIONS) if data is None else data)
    return path


def _with(kind: int, content: bytes) -> bytes:
    return eif([(k, content if k == kind else c) for k, c in _SECTIONS])


def test_parts_and_measurement(tmp_path: Path) -> None:
    image = _image(tmp_path)
    before = image.read_bytes()
    folder = tmp_path / "vm"
    folder.mkdir()
    boot = unpack_eif(image, folder)
    assert boot.kernel.read_bytes() == b"kernel" * 1000
    assert boot.initrd.read_bytes() == b"firstsecond!"
    assert (boot.cmdline, boot.name) == ("console=ttyS0 panic=-1", "made-for-tests")
    assert boot.image_bytes == len(before)
    with image.open("rb") as file:
        assert boot.eif.pcrs == measure_eif(file)
    assert image.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"kernel", "initrd"}


def test_one_more_ramdisk_lies_where_the_kernel_finds_it(tmp_path: Path) -> None:
    told: list[bytes] = []

    def extra(pcr0: bytes) -> bytes:
        told.append(pcr0)
        return b"070701extra"

    folder = tmp_path / "vm"
    folder.mkdir()
    image = _image(tmp_path, _with(RAMDISK, b"odd"))
    boot = unpack_eif(image, folder, extra_ramdisk=extra)
    assert boot.initrd.read_bytes() == b"oddodd\0\0" + b"070701extra"
    assert told == [boot.eif.pcrs[0]]
    with image.open("rb") as file:
        assert boot.eif.pcrs == measure_eif(file)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no enclave image"),
        (eif(_SECTIONS)[:-1], "is no enclave image"),
        (eif(_SECTIONS)[:700] + b"x" + eif(_SECTIONS)[701:], "CRC-32"),
        (_with(CMDLINE, b"quiet\x1b[2J"), "printable"),
        (_with(CMDLINE, b"a" * 2049), "2048"),
        (_with(CMDLINE, "ü".encode()), "printable"),
    ],
    ids=["empty", "cut", "flipped", "escape", "long", "not-ascii"],
)
def test_what_is_not_booted(tmp_path: Path, data: bytes, said: str) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    with pytest.raises(EnclaveStartError, match=said) as caught:
        unpack_eif(_image(tmp_path, data), folder)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (folder / "image.eif").exists()


@pytest.mark.parametrize("arm64", [False, True])
def test_the_processor_that_it_is_for(tmp_path: Path, arm64: bool) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    boot = unpack_eif(_image(tmp_path, eif(_SECTIONS, flags=int(arm64))), folder)
    assert boot.eif.arm64 is arm64


@pytest.mark.parametrize(
    "metadata",
    [
        *(b"{", b"[]", b'{"ImageName": "a\\u001bb"}', b'{"ImageName": "\xe8"}'),
        *(b'{"\xe8": 1}', b'{"a":' + b"[" * 5000),
    ],
)
def test_a_name_that_is_none(tmp_path: Path, metadata: bytes) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    assert unpack_eif(_image(tmp_path, _with(METADATA, metadata)), folder).name == "unnamed"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnclaveStartError, match=r"nothing\.eif cannot be used: No such file"):
        unpack_eif(tmp_path / "nothing.eif", tmp_path)


def _entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive: names with mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        begin = position + 110
        name = archive[begin : begin + name_size - 1].decode()
        content = (begin + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert len(archive) == content
            return found
        found[name] = (mode, archive[content : content + size])
        position = (content + size + 3) // 4 * 4


def test_the_development_ramdisk() -> None:
    archive = development_ramdisk(
        pcr0=bytes(range(48)),
        kms_endpoint_url="http://127.0.0.1:8000",
        nsm_root={"root.pem": b"public", "../../etc/shadow": b"x"},
    )
    entries = _entries(archive)
    assert entries["development/pcr0"][1] == bytes(range(48)).hex().encode()
    assert entries["development/kms-endpoint-url"][1] == b"http://127.0.0.1:8000"
    assert entries["development/nsm-root/root.pem"] == (stat.S_IFREG | 0o600, b"public")
    # Nobody but root of the machine gets in, and nothing lies anywhere else.
    assert entries["development"][0] == entries["development/nsm-root"][0] == stat.S_IFDIR | 0o700
    assert all(name.split("/")[0] == "development" and ".." not in name for name in entries)
