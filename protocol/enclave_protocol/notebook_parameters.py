"""What follows a notebook's name in `%run_encrypted`: parameters, as papermill takes them.

`-p NAME VALUE`, any number of them; everything else is `sys.argv`. A value is a scalar as YAML
writes it, and never more: nothing that a user types becomes code of the notebook.

Source: docs/spec/scripts.md, "Notebooks".
"""

import json
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enclave_protocol.package_errors import PackageError

__all__ = [
    "NOTEBOOK_SUFFIX",
    "PARAMETERS_TAG",
    "NotebookArguments",
    "NotebookParameterError",
    "Scalar",
    "parse_notebook_arguments",
    "parse_scalar",
]

Scalar = str | int | float | bool | None

NOTEBOOK_SUFFIX: Final = ".ipynb"
"""Of a script's file: it is run as a notebook."""
PARAMETERS_TAG: Final = "parameters"
"""Of the cell with the defaults; the first one that has it counts."""
_OPTIONS: Final = frozenset({"-p", "--parameters"})
_MAX_DIGITS: Final = 1000
"""Python converts no more than 4300, in a time that grows with their square."""
_WORDS: Final[dict[str, Scalar]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "None", "~"), None),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INT: Final = re.compile(r"[-+]?[0-9]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SINGLE_QUOTED: Final = re.compile(r"'(?:[^']|'')*'", re.DOTALL)


class NotebookParameterError(PackageError):
    """A parameter that no notebook takes, or that this one does not."""


@dataclass(frozen=True)
class NotebookArguments:
    """A notebook's arguments, taken apart.

    Attributes:
        parameters: Values by name; strings that are not in `quoted` may name the workspace.
        quoted: Names whose value was in quotes: text, whatever it looks like.
        others: Of `sys.argv`.
    """

    parameters: dict[str, Scalar]
    quoted: frozenset[str]
    others: tuple[str, ...]


def parse_notebook_arguments(arguments: Sequence[str]) -> NotebookArguments:
    """Return parameters and other arguments; of a parameter given twice the last value counts.

    Args:
        arguments: As typed behind the notebook's name, split as a shell does.

    Raises:
        NotebookParameterError: `-p` without a name and a value, or with a name that is none.
    """
    parameters: dict[str, Scalar] = {}
    quoted: dict[str, bool] = {}
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument not in _OPTIONS:
            others.append(argument)
            continue
        name, value = next(remaining, None), next(remaining, None)
        if name is None or value is None:
            raise NotebookParameterError(f"{argument} needs a name and a value: {argument} alpha 1")
        if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
            raise NotebookParameterError(f"{name[:64]!r} is no parameter's name")
        parameters[name] = parse_scalar(value)
        quoted[name] = value[:1] in ("'", '"')
    names = frozenset(name for name, was_quoted in quoted.items() if was_quoted)
    return NotebookArguments(parameters, names, tuple(others))


def parse_scalar(text: str) -> Scalar:
    """Return what `text` means: a number, a truth value, nothing, or text.

    Args:
        text: `0.5`, `true`, `null`, `some text`, `'0.5'`, `"a\\tb"`.

    Raises:
        NotebookParameterError: Quotes that do not close, or an integer of over 1000 digits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise NotebookParameterError(f"a number of {len(text)} digits, at most {_MAX_DIGITS}")
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.startswith("'"):
        if not _SINGLE_QUOTED.fullmatch(text):
            raise NotebookParameterError(f"the quotes of {text[:64]!r} do not match")
        return text[1:-1].replace("''", "'")
    if text.startswith('"'):
        # What YAML takes in double quotes and JSON does not, nobody types.
        try:
            value = json.loads(text, strict=False)
        except ValueError:
            value = None
        if type(value) is not str:
            raise NotebookParameterError(f"the quotes of {text[:64]!r} do not match")
        return value
    return text
