"""What a warning is, and the rules that make one."""

from dataclasses import dataclass
from typing import Final

__all__ = ["RULES", "Finding"]

RULES: Final = {
    "eval": "look the operation up in a table of allowed ones, or parse it yourself",
    "format": "keep the format string in the code and pass only the values",
    "pickle": "take arrays and tables as arguments: they arrive as data, already decoded",
    "getattr": "look the name up in a dict of what users may reach",
    "import": "look the name up in a dict of the modules users may choose from",
    "open": "take the bytes or the array as the argument, not a path",
    "run": "do it in Python; pass no command line that users wrote",
    "regex": "use re.escape(), or offer a fixed set of patterns",
    "sql": "keep the statement in the code and pass values as its parameters",
    "weights": "return what was computed for this call, or a part of it",
    "reference": "declare the class in [exports] returns, or return plain data",
    "errors": "remove it from errors; raise ValueError with a text of your own instead",
    "output": "use progress or none, and return what users are to see",
    "defaults": "write `...` for a default that is not for users",
    "kwargs": "name the keywords users may pass",
    "allow": "correct the comment",
}
"""Name in `# enclave: allow NAME`, and what to do instead."""


@dataclass(frozen=True, order=True)
class Finding:
    """One warning.

    Attributes:
        path: File in the package.
        line: From 1.
        rule: Of `RULES`.
        message: What is there and what comes of it.
        last_line: Where the expression ends: a comment on any of its lines counts.
    """

    path: str
    line: int
    rule: str
    message: str
    last_line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}; {RULES[self.rule]} [{self.rule}]"
