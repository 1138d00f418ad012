"""The journal: what it knows after a death, and what it forgets on purpose."""

import os
from pathlib import Path

from enclave_parent_gateway.sync.journal import Base, Journal
from enclave_protocol.workspace.messages import Entry

OLD, NEW = Entry("file", 1, 10, 0o644, 5), Entry("file", 2, 20, 0o644, 5)


def reopen(path: Path, workspace: str = "w") -> Journal:
    return Journal(path, workspace, "/folder")


def test_what_was_flushed_is_known_after_a_death(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = reopen(path)
    journal.agree("a/b", Base(OLD, NEW))
    journal.agree("a/gone", Base(OLD, OLD))
    journal.drop("a/gone")
    journal.flush()
    journal.agree("lost", Base(OLD, OLD))
    again = reopen(path)
    assert again.get("a/b") == Base(OLD, NEW)
    assert again.get("a/gone") is None and again.get("lost") is None
    assert set(again.under("")) == set(again.under("a")) == set(again.siblings("a")) == {"a/b"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_workspace_or_folder_knows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = reopen(path)
    journal.agree("a", Base(OLD, OLD))
    journal.close()
    assert Journal(path, "w", "/other").get("a") is None
    journal = reopen(path)
    journal.agree("a", Base(OLD, OLD))
    journal.close()
    assert reopen(path, "another").get("a") is None


def test_a_torn_end_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = reopen(path)
    journal.agree("a", Base(OLD, OLD))
    journal.agree("b", Base(OLD, OLD))
    journal.close()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        known = set(reopen(path).under(""))
        assert known in (set(), {"a"}, {"a", "b"})
    for garbage in (b"", b"\xff" * 100, os.urandom(200)):
        path.write_bytes(garbage)
        assert len(reopen(path)) == 0


def test_intentions(tmp_path: Path) -> None:
    """It was written there, or it was not: what is found there says which."""
    for number, (found, expected) in enumerate([(NEW, Base(NEW, NEW)), (OLD, Base(OLD, OLD))]):
        path = tmp_path / str(number)
        journal = reopen(path)
        journal.agree("a", Base(OLD, OLD))
        journal.intend("a", NEW, NEW, "remote")
        journal.flush()
        assert reopen(path).settle("a", NEW, found) == expected
    journal = reopen(tmp_path / "other")
    journal.intend("b", NEW, NEW, "local")
    journal.flush()
    assert reopen(tmp_path / "other").settle("b", None, NEW) is None
