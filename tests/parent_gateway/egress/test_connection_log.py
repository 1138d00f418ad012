from pathlib import Path

import pytest

from enclave_parent_gateway.egress import connection_log
from enclave_parent_gateway.egress.connection_log import ConnectionLog, LogEntry, read_log


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    assert list(read_log(path)) == []
    entries = [LogEntry(1.5, "refused", "ab-cd", "a.example:443", reason="no")]
    entries.append(LogEntry(2.5, "closed", None, "b.example:443", "1.1.1.1", 10, 20, 0.5))
    for entry in entries:
        ConnectionLog(path).write(entry)
    with path.open("ab") as file:
        file.write(b'{"time": 3.0, "ev')
    assert list(read_log(path)) == entries
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_log, "_MAX_BYTES", 4096)
    path = tmp_path / "egress.jsonl"
    log = ConnectionLog(path)
    for number in range(1000):
        log.write(LogEntry(float(number), "refused", reason="x" * 50))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 4096
    kept = [entry.time for entry in read_log(path)]
    assert kept == sorted(kept) and kept[-1] == 999.0 and len(kept) > 40


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    ConnectionLog(tmp_path / "no" / "folder").write(LogEntry(1.0, "opened"))
