"""What the linter takes for a check of a value, and what it does not."""

import textwrap
from pathlib import Path

import pytest

from tests.support.marked_code import HEAD, check, functions

CHECKS = """
import enum
NAME = re.compile("[a-z]+")
class Kind(enum.Enum):
    A = "a"
def checked(name):
    if name not in ALLOWED:
        raise ValueError
def known(name):
    'Whether it is one of ours.'
    return name in ALLOWED
def unknown(name):
    return not known(name)
def both(name, names):
    return name in names
class Checker:
    names = ("a", "b")
    def check(self, name):
        if name not in self.names:
            raise ValueError
    def knows(self, name):
        return name in self.names
def returned(name):
    if name not in ALLOWED:
        raise ValueError
    return name
"""


@pytest.mark.parametrize(
    "body",
    [
        "if x not in ALLOWED:\n    raise ValueError(x)\nreturn open(x).readline()",
        "if x in ALLOWED:\n    return open(x).readline()\nreturn None",
        "if x.lower() not in ('a', 'b'):\n    return None\nreturn open(f'{x}.txt').readline()",
        "if x != 'a' and x != 'b':\n    raise ValueError\nreturn open(x).readline()",
        "if not (x == 'a' or x == 'b'):\n    raise ValueError\nreturn open(x).readline()",
        "if not isinstance(x, int):\n    raise TypeError\nreturn open(f'{x}.txt').readline()",
        "if not isinstance(x, (int, float)) or x < 0:\n    raise TypeError\nopen(str(x))",
        "if not re.fullmatch('[a-z]+', x):\n    raise ValueError\nreturn open(x).readline()",
        "if re.fullmatch('[a-z]+', x) is None:\n    raise ValueError\nreturn open(x).readline()",
        "if not NAME.fullmatch(x):\n    raise ValueError\nreturn open(x).readline()",
        "if not x.isalnum():\n    raise ValueError\nreturn open(x).readline()",
        "if not set(x) <= set(ALLOWED):\n    raise ValueError\nreturn [open(n).name for n in x]",
        "for n in x:\n    if n not in ALLOWED:\n        continue\n    open(n)",
        "return open(x).readline() if x in ALLOWED else None",
        "return x in ALLOWED and open(x).readline()",
        "return [open(n).readline() for n in x if n in ALLOWED]",
        "match x:\n    case 'a' | 'b':\n        return open(x).name\n    case _:\n        pass",
        "match x:\n    case 'a':\n        pass\n    case _:\n        raise ValueError\nopen(x)",
        "x = int(x)\nreturn open(f'{x}.txt').readline()",
        "checked(x)\nreturn open(x).readline()",
        "checked(name=x)\nreturn open(x).readline()",
        "return open(returned(x)).readline()",
        "if not known(x):\n    raise ValueError\nreturn open(x).readline()",
        "if known(name=x):\n    return open(x).readline()",
        "if unknown(x):\n    raise ValueError\nreturn open(x).readline()",
        "checker = Checker()\nchecker.check(x)\nreturn open(x).readline()",
        "checker = Checker()\nif not checker.knows(x):\n    return\nreturn open(x).readline()",
        "if not isinstance(x, bytes):\n    raise TypeError\nreturn Image.open(io.BytesIO(x))",
        "if isinstance(x, bytes):\n    x = io.BytesIO(x)\nelse:\n    raise y\nImage.open(x)",
        "try:\n    x = Kind(x)\nexcept ValueError:\n    raise\nreturn open(x.value).readline()",
        "if isinstance(x, str):\n    x = np.asarray([])\nif not isinstance(x, np.ndarray):\n"
        "    raise TypeError\nif isinstance(x, (str, Path)):\n    open(x)\n",
        "assert x in ALLOWED\nreturn open(x).readline()",
        "while x not in ALLOWED:\n    x = 'a'\n",
        "return open(y).readline()",
    ],
)
def test_what_was_checked_is_no_warning(tmp_path: Path, body: str) -> None:
    code = f"{HEAD}{CHECKS}\ndef f(x, y='not exported'):\n{textwrap.indent(body, '    ')}\n"
    check(tmp_path, code, functions("f(x)"))


@pytest.mark.parametrize(
    "body",
    [
        "if x not in y:\n    raise ValueError\nreturn open(x)  # <- open",
        "if x in ALLOWED:\n    pass\nreturn open(x)  # <- open",
        "if x in ALLOWED or y:\n    return open(x)  # <- open",
        "if x not in ALLOWED:\n    print('no')\nreturn open(x)  # <- open",
        "if not isinstance(x, str):\n    raise TypeError\nreturn open(x)  # <- open",
        "if re.match('[a-z]+', x):\n    return open(x)  # <- open",
        "if not re.fullmatch('[a-z_]+', x):\n    raise ValueError\nreturn eval(x)  # <- eval",
        "if not x.isidentifier():\n    raise ValueError\nreturn getattr(np, x)  # <- getattr",
        "if isinstance(x, bytes):\n    x = io.BytesIO(x)\nreturn Image.open(x)  # <- open",
        "try:\n    ALLOWED[x]\nexcept KeyError:\n    pass\nreturn open(x)  # <- open",
        "for n in x:\n    if n not in ALLOWED:\n        break\nopen(n)  # <- open",
        "if y:\n    checked(x)\nreturn open(x)  # <- open",
        "if known(x) or y:\n    pass\nreturn open(x)  # <- open",
        "if not known(y):\n    raise ValueError\nreturn open(x)  # <- open",
        "if not both(x, y):\n    raise ValueError\nreturn open(x)  # <- open",
        "lambda: checked(x)\nreturn open(x)  # <- open",
    ],
)
def test_what_was_not_checked_is_one(tmp_path: Path, body: str) -> None:
    code = f"{HEAD}{CHECKS}\ndef f(x, y):\n{textwrap.indent(body, '    ')}\n"
    check(tmp_path, code, functions("f(x, y)"))
