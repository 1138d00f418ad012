"""A whole image, built with the real command from real packages, and what is in it."""

import io
import json
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from enclave_infra.image.cpio_reader import ArchiveEntry
from enclave_infra.image.debian_lock import KERNEL, check_packages, read_lock
from enclave_infra.image.debian_mirror import configured_mirror
from enclave_infra.image.debian_packages import describe_package, fetch_kernel
from enclave_infra.image.image_view import ImageView, view_image
from enclave_infra.image.kernel_files import debian_kernel
from enclave_protocol.eif import EifError, read_eif
from tests.support.built_image import LOCKS, build, built_image, debian_lock, install_programs
from tests.support.without_root import NOBODY, nobodys_folder, without_root

pytestmark = pytest.mark.timeout(900)

_MAX_BASE_BYTES = 180 * 2**20
_SITE = "usr/local/lib/python3.11/dist-packages"
_PROGRAMS = ("bin/", "sbin/", "usr/bin/", "usr/sbin/", "usr/local/bin/")
_COMPILERS = {"gcc", "cc", "g++", "c++", "clang", "as", "ld", "make", "tcc", "rustc", "go"}
_OTHER = {"su", "sudo", "login", "passwd", "mount", "apt", "dpkg", "perl", "sshd", "ldconfig"}


_Build = Future["subprocess.CompletedProcess[str]"]


def _build_elsewhere(folder: Path, lock: Path) -> "subprocess.CompletedProcess[str]":
    elsewhere = folder / "another place"
    elsewhere.mkdir()
    before: list[str] = []
    if os.geteuid() == 0:
        os.chown(elsewhere, NOBODY, NOBODY)
        before = without_root(folder)
    return build(
        elsewhere / "x.eif",
        f"--debian-lock={lock}",
        # Nothing kept by the first one, other folders, another user, language and time zone.
        environ={"TMPDIR": str(elsewhere), "TZ": "Pacific/Apia", "LANG": "tr_TR.UTF-8"},
        cache=elsewhere / "cache",
        before=before,
    )


def _build_for_graviton(folder: Path, lock: Path) -> "subprocess.CompletedProcess[str]":
    contents = {"Image": b"kernel", "cmdline": b"reboot=k root=/dev/ram0\n", "nsm.ko": b"driver"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return build(
        folder / "graviton.eif",
        f"--debian-lock={lock}",
        "--arch=aarch64",
        f"--kernel-dir={folder}",
    )


_ALSO_BUILT = {
    "test_another_build_elsewhere_is_the_same_image": _build_elsewhere,
    "test_graviton_with_the_kernel_of_nitro_cli": _build_for_graviton,
}


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest) -> Iterator[dict[str, tuple[Path, _Build]]]:
    """What the tests of this run build beside the image of all, by name: where, and the outcome.

    One after the other in a thread, as a build keeps one processor busy, and the tests another.
    """
    install_programs()
    lock = debian_lock()
    selected = {item.name for item in request.session.items}
    with nobodys_folder() as reachable, ThreadPoolExecutor(1) as pool:
        started = {}
        for name, make in _ALSO_BUILT.items():
            if name in selected:
                folder = reachable / name
                folder.mkdir()
                started[name] = (folder, pool.submit(make, folder, lock))
        yield started


@pytest.fixture(scope="module")
def image(builds: object) -> Path:
    return built_image()


@pytest.fixture(scope="module")
def view(image: Path) -> ImageView:
    return view_image(image)


@pytest.fixture(scope="module")
def entries(view: ImageView) -> dict[str, ArchiveEntry]:
    return {entry.name: entry for ramdisk in view.ramdisks() for entry in ramdisk}


@pytest.fixture(scope="module")
def files(view: ImageView) -> dict[str, bytes]:
    return view.read_files(lambda name: name.startswith(("etc/", "modules/")))


def test_size(image: Path) -> None:
    assert image.stat().st_size < _MAX_BASE_BYTES


class _Flipped(io.RawIOBase):
    """A file of which one bit is read wrongly."""

    def __init__(self, path: Path, position: int) -> None:
        self._file = path.open("rb")
        self._wrong = position

    def read(self, size: int = -1, /) -> bytes:
        begin = self._file.tell()
        data = bytearray(self._file.read(size))
        if begin <= self._wrong < begin + len(data):
            data[self._wrong - begin] ^= 0x10
        return bytes(data)

    def close(self) -> None:
        self._file.close()


def test_a_flipped_byte_in_any_part_is_noticed(image: Path, view: ImageView) -> None:
    places = [0, 5, 7, 15, 27, 100, 300, 545]
    for _, offset, size in view.sections():
        places += [offset - 12, offset - 1, offset, offset + size // 2, offset + size - 1]
    for place in places:
        with _Flipped(image, place) as stream, pytest.raises(EifError):
            read_eif(stream)


def test_a_flipped_byte_whose_checksum_was_made_right_is_another_image(
    image: Path, view: ImageView
) -> None:
    data = bytearray(image.read_bytes())
    for index, (_, offset, size) in enumerate(view.sections()):
        data[offset + size // 2] ^= 1
        data[544:548] = struct.pack(">I", zlib.crc32(data[548:], zlib.crc32(data[:544])))
        measured = read_eif(io.BytesIO(data)).pcrs
        data[offset + size // 2] ^= 1
        changed = [pcr for pcr, value in view.eif.pcrs.items() if measured[pcr] != value]
        # Kernel, command line and the first ramdisk; the second one; metadata is nobody's.
        assert changed == [[0, 1], [0, 1], [0, 1], [0, 2], []][index]


def test_nobody_but_root_owns_anything_and_nothing_is_setuid(
    entries: dict[str, ArchiveEntry],
) -> None:
    assert len(entries) > 3000
    for entry in entries.values():
        assert entry.owner == (0, 0)
        assert not entry.mode & 0o6000, entry.name
        open_to_all = entry.mode & 0o022 and not stat.S_ISLNK(entry.mode)
        assert not open_to_all or entry.name in ("tmp", "var/tmp"), entry.name
        special = not (
            stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode) or stat.S_ISLNK(entry.mode)
        )
        assert not special or (entry.name, entry.device) == ("dev/console", (5, 1))


def test_programs(entries: dict[str, ArchiveEntry]) -> None:
    programs = {
        name.rpartition("/")[2] for name in entries if name.rpartition("/")[0] + "/" in _PROGRAMS
    }
    assert {"python3.11", "bash", "ls", "tar"} <= programs
    assert not programs & (_COMPILERS | _OTHER)
    assert not [name for name in programs if "gcc" in name or "linux-gnu" in name]


def test_nobody_can_log_in(files: dict[str, bytes]) -> None:
    shadow = files["etc/shadow"].decode().splitlines()
    assert {line.split(":")[1] for line in shadow} == {"!*"}
    users = files["etc/passwd"].decode().splitlines()
    assert {line.rpartition(":")[2] for line in users} == {"/usr/sbin/nologin"}


def test_code_of_the_enclave_and_no_other(entries: dict[str, ArchiveEntry]) -> None:
    ours = {name.split("/")[5] for name in entries if name.startswith(f"{_SITE}/enclave_")}
    assert {name for name in ours if "." not in name} == {"enclave_kernel", "enclave_protocol"}
    assert f"{_SITE}/enclave_kernel/boot/__main__.py" in entries
    assert f"{_SITE}/enclave_kernel/boot/__pycache__/__main__.cpython-311.pyc" in entries
    assert not [name for name in entries if "software_nsm" in name]


def test_settings(view: ImageView, files: dict[str, bytes]) -> None:
    assert json.loads(files["etc/enclave/image.json"]) == {"name": "enclave-base"}
    assert view.metadata["ImageName"] == "enclave-base"


def test_kernel_modules_come_after_what_they_need(files: dict[str, bytes]) -> None:
    order = files["modules/order"].decode().split()
    for earlier, later in (
        ("vsock.ko", "vmw_vsock_virtio_transport_common.ko"),
        ("vmw_vsock_virtio_transport_common.ko", "vmw_vsock_virtio_transport.ko"),
        ("virtio.ko", "virtio_pci.ko"),
    ):
        assert order.index(earlier) < order.index(later)
    assert all(files[f"modules/{name}"][:4] == b"\x7fELF" for name in order)
    assert files["modules/parent-cid"] == b"2\n"


def test_list_of_contents_names_every_package(
    image: Path, entries: dict[str, ArchiveEntry]
) -> None:
    document = json.loads(Path(f"{image}.spdx.json").read_text())
    assert (document["spdxVersion"], document["dataLicense"]) == ("SPDX-2.3", "CC0-1.0")
    listed = {
        item["name"].lower().replace("_", "-"): item["versionInfo"] for item in document["packages"]
    }
    identifiers = [item["SPDXID"] for item in document["packages"]]
    assert len(set(identifiers)) == len(identifiers)
    related = {item["relatedSpdxElement"] for item in document["relationships"]}
    assert related == set(identifiers)
    for line in (LOCKS / "requirements-base.lock").read_text().splitlines():
        if "==" in line:
            name, _, version = line.rstrip(" \\").partition("==")
            assert listed[name] == version
    copyrights = {
        name.split("/")[3]
        for name in entries
        if name.startswith("usr/share/doc/") and name.count("/") == 4
    }
    assert {"libc6", "coreutils", "python3.11"} <= copyrights <= listed.keys()
    assert "debconf" not in listed


def test_described_by_the_command(image: Path, view: ImageView) -> None:
    command = [sys.executable, "-m", "enclave_infra.image", "describe", str(image), "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert shown["Measurements"]["PCR0"] == view.eif.pcrs[0].hex()
    assert [section["type"] for section in shown["Sections"]] == [
        *("kernel", "cmdline", "ramdisk", "ramdisk", "metadata"),
    ]


def test_another_build_elsewhere_is_the_same_image(
    image: Path, builds: dict[str, tuple[Path, _Build]]
) -> None:
    folder, building = builds["test_another_build_elsewhere_is_the_same_image"]
    elsewhere, result = folder / "another place", building.result()
    assert result.returncode == 0, result.stderr
    assert (elsewhere / "x.eif").read_bytes() == image.read_bytes()
    ours, theirs = (Path(f"{path}.spdx.json") for path in (image, elsewhere / "x.eif"))
    assert ours.read_bytes() == theirs.read_bytes()
    pcrs = dict(line.split() for line in result.stdout.splitlines())
    assert pcrs["PCR0"] == view_image(image).eif.pcrs[0].hex()
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "cache",
        "x.eif",
        "x.eif.spdx.json",
    ]


def test_graviton_with_the_kernel_of_nitro_cli(builds: dict[str, tuple[Path, _Build]]) -> None:
    """Built with foreign packages, checked in structure: nothing here runs it.

    The kernel's files are named and laid out as nitro-cli's, which could not be had here.
    """
    folder, building = builds["test_graviton_with_the_kernel_of_nitro_cli"]
    path, result = folder / "graviton.eif", building.result()
    assert result.returncode == 0, result.stderr
    graviton = view_image(path)
    assert graviton.eif.arm64
    assert graviton.cmdline == "reboot=k rdinit=/init"
    loader = "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"
    programs = (loader, "usr/bin/python3.11")
    files = graviton.read_files(
        lambda name: name in programs or name.endswith(".so") or name.startswith("modules/")
    )
    assert [files[f"modules/{name}"] for name in ("order", "nsm.ko", "parent-cid")] == [
        *(b"nsm.ko\n", b"driver", b"3\n"),
    ]
    for name in programs:
        header = files[name][:20]
        assert (header[:4], header[18:20]) == (b"\x7fELF", b"\xb7\x00")  # EM_AARCH64
    compiled = [
        name
        for name in files
        if name.endswith(".so")
        and name.startswith(_SITE)
        # The debugger's wheel is for every machine and brings its parts for each of them.
        and "pydevd_attach_to_process" not in name
    ]
    assert len(compiled) > 20
    assert {files[name][18:20] for name in compiled} == {b"\xb7\x00"}


def test_debians_kernel_for_graviton(tmp_path: Path) -> None:
    locked = [
        p for p in read_lock(debian_lock()) if (p.architecture, p.purpose) == ("arm64", KERNEL)
    ]
    package = fetch_kernel("arm64", configured_mirror(), locked[0], tmp_path / "apt")
    check_packages([describe_package(package, "arm64", KERNEL)], locked)
    kernel = debian_kernel(package, "arm64", tmp_path / "kernel")
    assert "console=ttyAMA0" in kernel.cmdline
    assert list(kernel.modules)[-1] == "vmw_vsock_virtio_transport.ko"
    # Linux, Documentation/arch/arm64/booting.rst: the header's magic number.
    assert kernel.kernel.read_bytes()[56:60] == b"ARM\x64"
