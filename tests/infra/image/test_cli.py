"""`enclave-image` as a person meets it: errors in one line, exit codes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import enclave_infra
from tests.support.built_image import build, install_programs
from tests.support.eif_files import CMDLINE, KERNEL, METADATA, RAMDISK, eif
from tests.support.without_root import NOBODY, nobodys_folder, without_root

_COMMAND = [sys.executable, "-m", "enclave_infra.image"]


def _run(*arguments: str | Path, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    environ = os.environ if path is None else {**os.environ, "PATH": path}
    command = [*_COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)


def _image(path: Path, *, ramdisk: bytes = b"", metadata: bytes = b'{"ImageName":"x"}') -> Path:
    trailer = b"070701" + b"00000000" * 11 + b"0000000B" + b"00000000" + b"TRAILER!!!\0"
    archive = ramdisk + trailer + bytes(-len(trailer) % 4)
    sections = [(KERNEL, b"K"), (CMDLINE, b"c"), (RAMDISK, archive), (METADATA, metadata)]
    path.write_bytes(eif(sections))
    return path


def _file(name: str, content: bytes) -> bytes:
    fields = [1, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


@pytest.mark.parametrize(
    "command", ["build", "describe", "compare", "lock", "lock-requirements", ""]
)
def test_help_has_an_example(command: str) -> None:
    result = _run(*command.split(), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"enclave-image {command}".strip() in result.stdout.partition("Examples:")[2]


def test_without_its_extra_one_line_says_what_to_install() -> None:
    command = [sys.executable, "-S", "-m", "enclave_infra.image", "--help"]
    path = str(Path(enclave_infra.__file__).parents[1])
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": path}, timeout=60
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "enclave-image: there is no module click: pip install 'enclave-kernel[infra]'\n"
    )


def test_without_mmdebstrap_it_says_what_to_type(tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("dpkg-deb", "tar"):
        (bin_folder / name).symlink_to(f"/usr/bin/{name}")
    arguments = ("build", "-o", tmp_path / "x.eif", "--cache", tmp_path / "c")
    result = _run(*arguments, "--mirror", "http://127.0.0.1:9", path=str(bin_folder))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: mmdebstrap cannot be found; type: apt-get install mmdebstrap"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes a user who has no range of ids")
@pytest.mark.parametrize(
    ("closed", "said"),
    [
        (
            False,
            "Error: without root, mmdebstrap needs a range of user ids of its own; type: "
            "sudo apt-get install uidmap && sudo usermod --add-subuids 100000-165535",
        ),
        (
            True,
            "Error: without root, mmdebstrap has to pass through {folder}/t, which is closed to "
            "others; type: TMPDIR=/var/tmp enclave-image ...",
        ),
    ],
)
def test_without_root_it_says_what_to_type(closed: bool, said: str) -> None:
    install_programs()
    with nobodys_folder() as folder:
        temporary = folder / "t"
        temporary.mkdir(mode=0o700 if closed else 0o711)
        os.chown(temporary, NOBODY, NOBODY)
        before = without_root(folder, with_ids=False)
        result = build(
            folder / "x.eif",
            *("--mirror", "http://127.0.0.1:9"),
            environ={"TMPDIR": str(temporary)},
            cache=folder / "cache",
            before=before,
        )
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith(said.format(folder=folder))
        assert not list(temporary.iterdir())
        assert not (folder / "x.eif").exists()


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    result = _run("build", "-o", tmp_path / "no" / "x.eif")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "there is no folder" in result.stderr


def test_blobs_that_are_not_there(tmp_path: Path) -> None:
    from enclave_infra.image.errors import ImageError
    from enclave_infra.image.kernel_files import nitro_kernel

    for name in ("bzImage", "cmdline"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ImageError, match=r"nsm\.ko is missing: --kernel-dir names"):
        nitro_kernel(tmp_path, "amd64")


def test_kernel_of_nitro_cli(tmp_path: Path) -> None:
    from enclave_infra.image.kernel_files import nitro_kernel

    (tmp_path / "bzImage").write_bytes(b"kernel")
    (tmp_path / "nsm.ko").write_bytes(b"driver")
    (tmp_path / "bzImage.config").write_text(
        "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86_64 4.14.256 Kernel Config\n"
    )
    (tmp_path / "cmdline").write_text(
        "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0\n"
    )
    kernel = nitro_kernel(tmp_path, "amd64")
    assert kernel.cmdline == (
        "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on rdinit=/init"
    )
    assert (kernel.version, kernel.parent_cid) == ("4.14.256", 3)
    assert kernel.modules == {"nsm.ko": b"driver"}


@pytest.mark.parametrize("command", ["describe", "compare"])
def test_something_else_than_an_image(tmp_path: Path, command: str) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    result = _run(command, *[tmp_path / "x"] * (2 if command == "compare" else 1))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "expected an EIF of version 4" in result.stderr


def test_compare_names_the_file_that_differs(tmp_path: Path) -> None:
    one = _image(tmp_path / "a.eif", ramdisk=_file("etc/a", b"1") + _file("etc/b", b"2"))
    other = _image(tmp_path / "b.eif", ramdisk=_file("etc/a", b"9") + _file("etc/c", b"2"))
    result = _run("compare", one, other, "--json")
    assert result.returncode == 1
    found = {item["what"]: item for item in json.loads(result.stdout)}
    assert {"PCR0", "PCR1"} <= found.keys()
    assert {name for name in found if "/" in name} == {
        *(f"ramdisk 1 /etc/{name}" for name in "abc"),
    }
    assert found["ramdisk 1 /etc/c"]["one"] == ""
    assert _run("compare", one, other).returncode == 1


def test_compare_of_the_same_image(tmp_path: Path) -> None:
    one, other = _image(tmp_path / "a.eif"), _image(tmp_path / "b.eif")
    result = _run("compare", one, other)
    assert (result.returncode, result.stdout) == (0, "the same image\n")
    other = _image(tmp_path / "b.eif", metadata=b'{"ImageName":"y"}')
    result = _run("compare", one, other)
    assert (result.returncode, result.stdout) == (1, 'metadata ImageName: "x" | "y"\n')


@pytest.mark.parametrize("metadata", [b'{"\xe8":1}', b"{", b"[" * 5000, b""])
def test_metadata_that_cannot_be_read(tmp_path: Path, metadata: bytes) -> None:
    image = _image(tmp_path / "a.eif", metadata=metadata)
    for result in (_run("describe", image), _run("compare", image, image)):
        assert (result.returncode, result.stderr) == (0, "")


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    command = [*_COMMAND, "build", "-o", str(tmp_path / "x.eif"), "--cache", str(tmp_path / "c")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(work)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    # Until mmdebstrap, which is the first thing to run, has made its own folder in there.
    while not list(work.glob("enclave-image-*/mmdebstrap.*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted: nothing was written"
    assert not list(work.iterdir())
    assert not list(tmp_path.glob("*.eif*"))
