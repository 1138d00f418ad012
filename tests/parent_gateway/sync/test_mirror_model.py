"""The mirror against a reference of what should be: random changes on both sides, and deaths."""

import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enclave_protocol.workspace.stream import StreamEndedError
from tests.support.tree_reference import Node, differences, merge, read_tree
from tests.support.workspace_pair import WorkspacePair

_NAMES = ["a", "b", "c.txt", "d e.tar.gz", "é"]
_paths = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join)
_sides = st.sampled_from(["local", "remote"])
_CONTENTS = {
    **{text: text.encode() for text in ("", "1", "2", "one", "two")},
    **{"large x": b"x" * 300_000, "large y": b"x" * 290_000 + b"y" * 10_000},
}
_contents = st.sampled_from(sorted(_CONTENTS))


class MirrorMachine(RuleBasedStateMachine):
    """Changes both sides at will; after a mirror has gone through, both are as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mirror-"))
        self.pair = WorkspacePair(self.root)
        self.clock = itertools.count(1_600_000_000)
        self.base: Node = {}
        self.synced = False

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _place(self, side: str, path: str) -> Path | None:
        """Return a path whose folder is there, None if a file is in the way."""
        place = self._root(side) / path
        for above in reversed(place.relative_to(self._root(side)).parents):
            folder = self._root(side) / above
            if folder.is_file():
                return None
            folder.mkdir(exist_ok=True)
        return place

    def _root(self, side: str) -> Path:
        return self.pair.local if side == "local" else self.pair.remote

    def _touch(self, path: Path) -> None:
        """Give a file a time of its own, long ago: nothing here waits for a clock."""
        stamp = next(self.clock)
        os.utime(path, (stamp, stamp))

    @rule(side=_sides, path=_paths, content=_contents)
    def write(self, side: str, path: str, content: str) -> None:
        place = self._place(side, path)
        if place is None or place.is_dir():
            return
        place.write_bytes(_CONTENTS[content])
        self._touch(place)
        self.synced = False

    @rule(path=_paths, content=_contents)
    def write_the_same(self, path: str, content: str) -> None:
        """Both make the same file, at different times."""
        self.write("local", path, content)
        self.write("remote", path, content)

    @rule(side=_sides, path=_paths)
    def make_folder(self, side: str, path: str) -> None:
        place = self._place(side, path)
        if place is not None and not place.exists():
            place.mkdir()
            self.synced = False

    @rule(side=_sides, path=_paths)
    def remove(self, side: str, path: str) -> None:
        place = self._root(side) / path
        if place.is_dir():
            shutil.rmtree(place)
        elif place.is_file():
            place.unlink()
        self.synced = False

    @rule(side=_sides, old=_paths, new=_paths)
    def rename(self, side: str, old: str, new: str) -> None:
        source = self._root(side) / old
        if not source.exists() or PurePosixPath(new).is_relative_to(old):
            return
        target = self._place(side, new)
        if target is not None and not target.exists() and source.exists():
            source.rename(target)
            self.synced = False

    @rule(side=_sides, path=_paths, mode=st.sampled_from([0o600, 0o644, 0o700, 0o755]))
    def change_mode(self, side: str, path: str, mode: int) -> None:
        place = self._root(side) / path
        if place.is_file() or (place.is_dir() and mode & 0o100):
            place.chmod(mode)
            self.synced = False

    @rule(side=_sides, path=_paths)
    def replace_by_the_other_kind(self, side: str, path: str) -> None:
        place = self._root(side) / path
        if place.is_dir():
            shutil.rmtree(place)
            place.write_bytes(b"was a folder")
            self._touch(place)
        elif place.is_file():
            place.unlink()
            place.mkdir()
        self.synced = False

    @precondition(lambda self: not self.synced)
    @rule(deaths=st.lists(st.integers(0, 60), max_size=3))
    def mirror(self, deaths: list[int]) -> None:
        """Mirror, killed and started again a few times before it goes through."""
        expected = merge(
            read_tree(self.pair.local),
            read_tree(self.pair.remote),
            self.base,
            time.strftime("%Y-%m-%d"),
        )
        for cut in deaths:
            try:
                self.pair.mirror_once(cut)
            except StreamEndedError:
                continue
        problems = self.pair.mirror_once()
        assert problems == {}, str(problems)
        for side in ("local", "remote"):
            different = differences(read_tree(self._root(side)), expected)
            assert different == {}, f"{side}: {different}"
        self.base = expected
        self.synced = True

    @invariant()
    def nothing_else_is_there(self) -> None:
        assert sorted(path.name for path in self.root.iterdir() if path.name != "journal") in (
            ["local", "remote"],
            ["journal.new", "local", "remote"],
        )


TestMirror = MirrorMachine.TestCase
TestMirror.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
