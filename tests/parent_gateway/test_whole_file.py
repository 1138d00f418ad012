"""A file that is replaced is at any moment the old one or the new one."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from enclave_parent_gateway.whole_file import replace_file

_WRITER = """
import sys
from pathlib import Path
from enclave_parent_gateway.whole_file import replace_file
path = Path(sys.argv[1])
print("begun", flush=True)
while True:
    for letter in b"ab":
        replace_file(path, bytes([letter]) * 200_000)
"""


def _is_whole(data: bytes) -> bool:
    return len(data) == 200_000 and len(set(data)) == 1


def test_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    umask = os.umask(0o077)
    try:
        replace_file(path, b"first")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        replace_file(path, b"2", 0o640)
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    path = tmp_path / "state.json"
    path.symlink_to(elsewhere)
    replace_file(path, b"new")
    assert (elsewhere.read_bytes(), path.read_bytes()) == (b"kept", b"new")
    assert not path.is_symlink()


def test_what_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_file(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"a" * 200_000)
    for attempt in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            time.sleep(0.02 + 0.007 * attempt)
            process.kill()
        assert _is_whole(path.read_bytes())


def test_readers_and_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"a" * 200_000)
    seen = set()

    def write(letter: bytes) -> None:
        for _ in range(30):
            replace_file(path, letter * 200_000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert _is_whole(data)
        seen.add(data[:1])
    assert seen == {b"a", b"b"}
    assert list(tmp_path.iterdir()) == [path]
