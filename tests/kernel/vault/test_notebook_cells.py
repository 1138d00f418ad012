"""Reading an owner's notebook: its cells, its parameters, and what is no notebook."""

import pytest

from enclave_kernel.vault.notebook_cells import (
    NotebookFormatError,
    check_parameters,
    read_cells,
)
from enclave_protocol.notebook_parameters import NotebookParameterError, parse_notebook_arguments
from tests.support.notebook_source import notebook_source


def test_only_the_first_tagged_cell_has_the_parameters() -> None:
    source = notebook_source("x = 1", "\n\ny", parameters="a = 1\n").replace('"x = 1"', '"# x"')
    cells = read_cells(source.encode())
    assert [(cell.source, cell.lines_before, cell.has_parameters) for cell in cells] == [
        ("a = 1\n", 0, True),
        ("# x", 2, False),
        # IPython takes away the empty lines that a cell begins with.
        ("\n\ny", 5, False),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "no json CANARY",
        "\xff",
        "{}",
        "[" * 100_000,
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {"language_info": {"name": "R"}}, '
        '"cells": []}',
    ],
)
def test_what_is_no_notebook(source: str) -> None:
    with pytest.raises(NotebookFormatError, match="its notebook is not") as caught:
        read_cells(source.encode("latin-1"))
    assert "CANARY" not in str(caught.value)


_PARAMETERS = """
%matplotlib inline
limit = 1
other: str = 'x'
first = second = 2
a, b = 1, 2
table["key"] = 3
thing.attribute = 4
_hidden = 5
import os
if True:
    nested = 6
def function():
    inner = 7
for loop in (): pass
limit += 1
"""


@pytest.mark.parametrize("name", ["limit", "other", "first", "second"])
def test_names_that_the_tagged_cell_assigns(name: str) -> None:
    cells = read_cells(notebook_source("later = 1", parameters=_PARAMETERS).encode())
    check_parameters(cells, parse_notebook_arguments(("-p", name, "1")))


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "table",
        "thing",
        "_hidden",
        "os",
        "nested",
        "function",
        "inner",
        "loop",
        "later",
        "print",
    ],
)
def test_all_other_names(name: str) -> None:
    cells = read_cells(notebook_source("later = 1", parameters=_PARAMETERS).encode())
    with pytest.raises(NotebookParameterError) as caught:
        check_parameters(cells, parse_notebook_arguments(("-p", name, "1")))
    assert f"no parameter {name!r}" in str(caught.value)
    assert str(caught.value).endswith("; parameters: first, limit, other, second")


def test_a_notebook_without_parameters() -> None:
    for source in (notebook_source("x = 1"), notebook_source("1", parameters="x = = 1")):
        with pytest.raises(NotebookParameterError, match="parameters: it has none"):
            check_parameters(
                read_cells(source.encode()), parse_notebook_arguments(("-p", "x", "1"))
            )
