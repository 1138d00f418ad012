"""docs/threat_model.md and the tests say the same: every row, every test, in both directions."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.vault_link import ROOT

_TESTS = ROOT / "tests"
_DOCUMENT = (ROOT / "docs" / "threat_model.md").read_text()
_ROWS = {
    **{"I": 22, "E": 16, "O": 10, "C": 11, "R": 11, "D": 13, "M": 11, "F": 11, "P": 13, "K": 16},
    **{"S": 13, "X": 11, "A": 16, "V": 11, "Z": 11, "Y": 10, "N": 10, "J": 12, "T": 12, "B": 8},
    **{"W": 15, "G": 8},
}
"""How many rows each section of the catalogue has, by the letter that their ids begin with."""
_IDS = [
    f"{letter}-{number:02}" for letter, count in _ROWS.items() for number in range(1, count + 1)
]
_NAMED = re.compile(r"`([a-z_/0-9]+\.py)::(\w+)`")
_TABLE = re.findall(r"^\| ([A-Z]-\d\d) \| ([^|]+) \| (.+) \|$", _DOCUMENT, re.MULTILINE)
_CARRIED = re.compile(r"test((?:_(?:[a-z]\d\d|to))+)(?:_|$)")


def rows_of(name: str) -> list[str]:
    """Return the rows whose ids a test carries in its name: `test_p01_to_p04_...` has four."""
    match = _CARRIED.match(name)
    rows: list[str] = []
    through = False
    for word in match[1].strip("_").split("_") if match else ():
        if word == "to":
            through = True
            continue
        letter, last = word[0].upper(), int(word[1:])
        first = int(rows[-1][2:]) + 1 if through else last
        rows += [f"{letter}-{number:02}" for number in range(first, last + 1)]
        through = False
    return rows


@cache
def collected_from(session: pytest.Session, path: Path) -> frozenset[str]:
    """Return the names of the tests that pytest collects from a file."""
    module: pytest.Module = pytest.Module.from_parent(session, path=path)
    items = (item for item in module.collect() if isinstance(item, pytest.Function))
    return frozenset(item.originalname for item in items)


def test_the_catalogue_is_whole() -> None:
    assert [row for row, _, _ in _TABLE] == _IDS


def test_a_row_has_tests_or_a_reason() -> None:
    neither = [
        row
        for row, _, cell in _TABLE
        if not _NAMED.match(cell) and not (cell.startswith("None. ") and len(cell) > 30)
    ]
    assert neither == []


def test_every_named_test_exists(request: pytest.FixtureRequest) -> None:
    named = set(_NAMED.findall(_DOCUMENT))
    assert len(named) > 200
    missing = set()
    for name, test in named:
        path = _TESTS / name
        if not path.is_file() or test not in collected_from(request.session, path):
            missing.add(f"{name}::{test}")
    assert missing == set()


def test_every_test_with_a_rows_id_is_in_that_row(request: pytest.FixtureRequest) -> None:
    listed = {row: set(_NAMED.findall(cell)) for row, _, cell in _TABLE}
    unlisted, carried = [], 0
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name in sorted(collected_from(request.session, path)):
            for row in rows_of(name):
                carried += 1
                if (f"redteam/{path.name}", name) not in listed.get(row, ()):
                    unlisted.append(f"{row}: {path.name}::{name}")
    assert unlisted == [] and carried > 250


def test_a_promise_names_the_tests_that_hold_it() -> None:
    section = _DOCUMENT.partition("## What is promised")[2].partition("\n## ")[0]
    promises = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(promises) >= 12
    assert all(len(_NAMED.findall(promise)) >= 2 for promise in promises)


def test_ids_are_read_as_they_are_written() -> None:
    assert rows_of("test_p01_to_p04_the_vault") == ["P-01", "P-02", "P-03", "P-04"]
    assert rows_of("test_w03_t09_programs") == ["W-03", "T-09"]
    assert rows_of("test_i22") == ["I-22"]
    assert rows_of("test_the_old_kernel_is_one") == rows_of("test_x0_y") == []
