"""docs/sample_parity.md: every row links to a test that exists, or says that there is none yet."""

import re

import pytest

from tests.support.project_wheel import ROOT

_PAGE = ROOT / "docs" / "sample_parity.md"
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| feature")
]
_LINK = re.compile(r"\[(?P<shown>tests/\S+\.py)\]\((?P<target>\S+)\)::(?P<test>test_\w+)")


def test_the_samples_features_are_there() -> None:
    features = [row[0] for row in _ROWS]
    assert len(set(features)) == len(features)
    for feature in (
        *("proxy", "sync", "run, from a shell", "encryptor pipeline", "image builder"),
        *("sharing bucket", "revoke an image"),
        *("use case 1: owner brings code, models and data",),
        *("use case 2: owner brings code and models, user data",),
        *("use case 3: owner brings code, user models and data",),
    ):
        assert feature in features


@pytest.mark.parametrize("row", _ROWS, ids=[row[0] for row in _ROWS])
def test_a_row_is_shown_by_a_test_or_says_not_yet(row: list[str]) -> None:
    assert len(row) == 4
    if row[3] == "not yet":
        return
    match = _LINK.fullmatch(row[3])
    assert match is not None, row[3]
    path = (_PAGE.parent / match["target"]).resolve()
    assert path == ROOT / match["shown"]
    assert re.search(rf"^(?:async )?def {match['test']}\(", path.read_text(), re.MULTILINE)
