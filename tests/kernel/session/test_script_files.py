"""Inputs and outputs of scripts against hostile folders and hostile vaults."""

import os
from pathlib import Path

import pytest

from enclave_kernel.session.script_outputs import OutputFiles, OutputNameError
from enclave_kernel.vault.script_files import InputFiles, OutputRefusedError, collect_outputs
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_archive import Entry, encode_archive
from enclave_protocol.workspace.script_inputs import WorkspaceFileError, plan_inputs, read_inputs


def _archive(files: dict[str, bytes]) -> memoryview:
    entries = [Entry(name, len(data)) for name, data in sorted(files.items())]
    return memoryview(
        b"".join(bytes(p) for p in encode_archive(entries, lambda e: [files[e.path]]))
    )


def test_what_arguments_name(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a").write_bytes(b"123")
    (tmp_path / "data" / "link").symlink_to(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    os.mkfifo(tmp_path / "data" / "pipe")
    arguments = ("-d", "/data/", "--out=/out/", "-o", "/more", "model", "/output")
    inputs = plan_inputs(tmp_path, arguments, ("/third/",))
    assert inputs.entries == (Entry("data/deep/a", 3),)
    assert inputs.outputs == ("third", "out", "more", "output")
    assert set(inputs.folders) == {"third", "out", "more", "output", "data"}


@pytest.mark.parametrize("argument", ["/nothing", "/data/pipe"])
def test_what_cannot_be_sent_is_named(tmp_path: Path, argument: str) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe")
    with pytest.raises(WorkspaceFileError, match=argument):
        plan_inputs(tmp_path, (argument,), ())


def test_a_file_that_grows_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    inputs = plan_inputs(tmp_path, ("/a",), ())
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(WorkspaceFileError, match="changed its size"):
        list(read_inputs(tmp_path, inputs, lambda _: None))


def test_there_and_back(tmp_path: Path) -> None:
    workspace, vault, back = tmp_path / "w", tmp_path / "v", tmp_path / "b"
    for folder in (workspace / "data" / "deep", vault, back):
        folder.mkdir(parents=True)
    files = {"data/a": b"", "data/deep/b": os.urandom(3_000_000)}
    for name, data in files.items():
        (workspace / name).write_bytes(data)
    inputs = plan_inputs(workspace, ("/data",), ())
    taken = InputFiles(vault)
    seen: list[int] = []
    for piece in read_inputs(workspace, inputs, seen.append):
        taken.feed(memoryview(piece))
    taken.finish(("data", "output"))
    assert seen[-1] == 3_000_000
    assert (vault / "output").is_dir()
    (vault / "data" / "link").symlink_to("/etc/passwd")
    outputs = OutputFiles(back, ("data",))
    for piece in collect_outputs(vault, ("data",), 0):
        outputs.feed(memoryview(piece))
    assert outputs.publish() == ("data/a", "data/deep/b")
    outputs.close()
    assert {n: (back / n).read_bytes() for n in files} == files
    assert sorted(path.name for path in back.iterdir()) == ["data"]


def test_more_than_the_owner_allows_stays(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "x").write_bytes(bytes(11))
    assert list(collect_outputs(tmp_path, ("o",), 11))
    with pytest.raises(OutputRefusedError, match="11 bytes"):
        list(collect_outputs(tmp_path, ("o",), 10))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(EnclaveError):
        list(collect_outputs(tmp_path, ("o",), 0))


@pytest.mark.parametrize(
    "name",
    [
        "elsewhere/x",
        "output",
        "output/.bashrc",
        "output/.ssh/authorized_keys",
        "output/.SSH/authorized_keys",
        "output/\uff0essh/key",
        "output/conftest.py",
        "output/SiteCustomize.py",
        "output/evil.pth",
        "outputs/x",
    ],
)
def test_names_that_do_not_come_out(tmp_path: Path, name: str) -> None:
    outputs = OutputFiles(tmp_path, ("output",))
    with pytest.raises(OutputNameError):
        outputs.feed(_archive({name: b"x"}))
    outputs.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [b"../escape", b"/etc/passwd", b"output/../../x"])
def test_an_archive_with_a_bad_path_is_refused(tmp_path: Path, name: bytes) -> None:
    archive = bytes(_archive({"output/aaaaaaaaa": b"x"})).replace(
        b"output/aaaaaaaaa", name.ljust(16, b"a")
    )
    outputs = OutputFiles(tmp_path, ("output",))
    with pytest.raises(EnclaveError):
        outputs.feed(memoryview(archive))
    outputs.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    workspace, outside = tmp_path / "w", tmp_path / "outside"
    workspace.mkdir()
    outside.mkdir()
    (workspace / "output").symlink_to(outside)
    outputs = OutputFiles(workspace, ("output",))
    outputs.feed(_archive({"output/x": b"x"}))
    with pytest.raises(OSError, match="is a link"):
        outputs.publish()
    outputs.close()
    assert not list(outside.iterdir())


def test_an_archive_cut_short_publishes_nothing(tmp_path: Path) -> None:
    archive = _archive({"output/x": b"x" * 600, "output/y": b"y"})
    outputs = OutputFiles(tmp_path, ("output",))
    outputs.feed(archive[: len(archive) - 512])
    with pytest.raises(EnclaveError):
        outputs.publish()
    outputs.close()
    assert not list(tmp_path.iterdir())
