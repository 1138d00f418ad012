"""The oracle itself: it finds what is there, in whatever way it is written."""

import os
import subprocess
import sys
from pathlib import Path

from tests.redteam.arena import Arena
from tests.redteam.canaries import PARTS, marked_package


def test_it_finds_every_marker_in_every_form(tmp_path: Path) -> None:
    marked = marked_package(os.urandom(32))
    for part, marker in marked.markers.items():
        assert marked.found_in_bytes(b"x" * 99 + marker + b"x") == {part}
        assert marked.found_in_bytes(marker.hex()) == {part}
        if part != "numbers":
            wide = marker.decode().encode("utf-32-le")
            assert marked.found_in_bytes(wide) == {part}
            assert marked.found_in_bytes(marker[::-1]) == {part}
    assert marked.key is not None
    assert marked.found_in_bytes(b"-" + marked.key) == {"key"}
    assert marked.found_in_bytes(b"nothing") == set()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "leak.bin").write_bytes(marked.markers["blob"])
    (tmp_path / marked.markers["file_name"].decode()).touch()
    assert marked.found_in_files([tmp_path]) == {"blob", "file_name"}
    hold = "import signal, sys; kept = sys.stdin.buffer.read(); print(flush=True); signal.pause()"
    command = [sys.executable, "-I", "-S", "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"-".join([*marked.markers.values(), marked.key]))
        process.stdin.close()
        process.stdout.readline()
        assert marked.found_in_process(process.pid) == {*PARTS, "numbers", "key"}
        process.kill()


def test_a_vault_holds_every_marker_but_the_key(modern: Arena) -> None:
    """The positive control: what the search does not find elsewhere, it would have found."""
    assert modern.marked.found_in_process(modern.payload_pid) == modern.marked.in_vault


def test_two_packages_share_no_marker() -> None:
    first, second = marked_package(), marked_package()
    assert first.found_in_bytes(b"".join(second.markers.values())) == set()
