"""The ids of a package's errors: which line they stand for, and that making one runs no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.vault.incidents import Incidents, take_incident_key
from enclave_protocol.incident import Place, stands_for
from enclave_protocol.package_errors import PackageFormatError

_KEY = b"k" * 32
_FILE_NAME = "<encrypted spy 1.0>"
_ROOT = "/vault-0123/package"


def _raised(source: str, **names: Any) -> BaseException:
    module: dict[str, Any] = {"__file__": f"{_ROOT}/spy/core.py", **names}
    code = compile(source, _FILE_NAME, "exec")
    try:
        exec(code, module)  # noqa: S102
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def _stands_for(error: BaseException, place: Place) -> bool:
    incident = Incidents(_KEY, _ROOT, _FILE_NAME).new(error)
    return stands_for(_KEY, incident, place)


def test_the_innermost_line_of_the_package() -> None:
    source = "def inner():\n    return int('x')\n\n\ndef outer():\n    inner()\n\n\nouter()\n"
    assert _stands_for(_raised(source), Place("spy/core.py", 2))
    # What it calls of others' code is not looked at.
    assert _stands_for(_raised("import json\n\njson.loads('{')\n"), Place("spy/core.py", 3))


@pytest.mark.parametrize(
    "names", [{"__file__": None}, {"__file__": 1}, {"__file__": "/elsewhere/core.py"}]
)
def test_without_a_line_of_the_package(names: Mapping[str, Any]) -> None:
    assert _stands_for(_raised("1 / 0", **names), Place())
    assert _stands_for(ValueError("never raised"), Place())


def test_no_code_of_the_package_runs() -> None:
    source = (
        "class Hostile(Exception):\n"
        "    @property\n"
        "    def __traceback__(self):\n"
        "        ran.append(1)\n"
        "    def __getattribute__(self, name):\n"
        "        ran.append(2)\n"
        "class Text(str):\n"
        "    def startswith(self, *_):\n"
        "        ran.append(3)\n"
        "__file__ = Text(__file__)\n"
        "raise Hostile\n"
    )
    ran: list[int] = []
    error = _raised(source, ran=ran)
    ran.clear()
    assert _stands_for(error, Place())
    assert ran == []


def test_without_a_key_ids_stand_for_nothing() -> None:
    error = _raised("1 / 0")
    incident = Incidents(None, _ROOT, _FILE_NAME).new(error)
    assert len(incident) == 16
    assert not stands_for(_KEY, incident, Place("spy/core.py", 1))


def test_the_key_leaves_the_folder(tmp_path: Path) -> None:
    assert take_incident_key(tmp_path) is None
    path = tmp_path / "incidents.key"
    path.write_text(_KEY.hex() + "\n")
    assert take_incident_key(tmp_path) == _KEY
    assert not path.exists()
    path.write_text("canary\n")
    with pytest.raises(PackageFormatError, match=r"incidents\.key holds no key") as refusal:
        take_incident_key(tmp_path)
    assert "canary" not in str(refusal.value)
