"""Looking up the incident of a notebook's cell."""

import json
from pathlib import Path

from enclave_encryption.incident_lookup import IncidentLookup
from enclave_encryption.package_plan import plan_package
from enclave_encryption.package_scripts import code_cells
from enclave_protocol.incident import Place, make_incident
from tests.support.notebook_source import notebook_source

_KEY = b"\x5f" * 32


def _folder(folder: Path) -> Path:
    (folder / "report.ipynb").write_text(notebook_source("a = 1\n", "b = 2\nc = 3\nd = 4"))
    (folder / "incidents.key").write_text(_KEY.hex())
    return folder


def test_the_cell_and_its_line(tmp_path: Path) -> None:
    lookup = IncidentLookup(plan_package(_folder(tmp_path)))
    # "a = 1" and an empty line, then the second cell.
    found = lookup.find(make_incident(_KEY, Place("report.ipynb", 4)))
    assert found is not None
    assert found.shown == "report.ipynb, code cell 2, line 2"
    assert found.lines[found.place.line - found.first_line] == "c = 3"
    assert lookup.find(make_incident(_KEY, Place("report.ipynb", 6))) is None
    assert lookup.find(make_incident(_KEY, Place("other.ipynb", 1))) is None


def test_sources_as_text_and_as_lines() -> None:
    cells = [
        {"cell_type": "code", "source": "a\nb"},
        {"cell_type": "markdown", "source": "c"},
        {"cell_type": "code", "source": ["d\n", "e"]},
    ]
    assert code_cells(json.dumps({"cells": cells})) == ["a\nb", "d\ne"]
    for text in ("", "{}", "[]", '{"cells": [1]}', '{"worksheets": []}'):
        assert code_cells(text) == []
