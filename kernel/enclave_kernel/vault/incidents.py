"""Makes the incident ids of one package's errors; its owner can look them up, users cannot."""

import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from enclave_protocol.incident import (
    INCIDENT_KEY_NAME,
    MAX_INCIDENT_KEY_BYTES,
    IncidentKeyError,
    Place,
    make_incident,
    parse_incident_key,
)
from enclave_protocol.package_errors import PackageFormatError

__all__ = ["Incidents", "take_incident_key"]

_RANDOM_BYTES: Final = 8
# A class of the package's may have put something of its own over the attribute.
_traceback_of: Final[Any] = BaseException.__dict__["__traceback__"].__get__


class Incidents:
    """Makes ids.

    Args:
        key: The package's; None: ids are random, and stand for nothing.
        root: The folder in which the package's modules say that they are.
        file_name: What its code objects say they come from.
    """

    def __init__(self, key: bytes | None, root: str, file_name: str) -> None:
        self._key = key
        self._prefix = f"{root}/"
        self._file_name = file_name
        self._notebook: tuple[dict[str, Any], str] | None = None

    def forget_key(self) -> None:
        """From now on ids are random: nothing of the package's Python will run."""
        self._key = None

    def watch_notebook(self, namespace: dict[str, Any], path: str) -> None:
        """Know a notebook's cells by the namespace that they run in: they have no `__file__`.

        Args:
            namespace: The dictionary itself.
            path: The notebook's, in the package.
        """
        self._notebook = namespace, path

    def new(self, error: BaseException | None) -> str:
        """Return an id for `error`; no code of the package's runs for it."""
        if self._key is None or error is None:
            return secrets.token_hex(_RANDOM_BYTES)
        return make_incident(self._key, self._place(_traceback_of(error)))

    def _place(self, frames: TracebackType | None) -> Place:
        """Return the innermost line of the package's."""
        place = Place()
        while frames is not None:
            frame = frames.tb_frame
            if frame.f_code.co_filename == self._file_name:
                path = dict.get(frame.f_globals, "__file__")
                if self._notebook is not None and frame.f_globals is self._notebook[0]:
                    place = Place(self._notebook[1], frames.tb_lineno or 0)
                elif type(path) is str and path.startswith(self._prefix):
                    place = Place(path.removeprefix(self._prefix), frames.tb_lineno or 0)
            frames = frames.tb_next
        return place


def take_incident_key(root: Path) -> bytes | None:
    """Return the key among the package's files in `root`, None if there is none.

    The file goes: a path that a user names for a file of the package must not lead to it.

    Raises:
        PackageFormatError: The file holds no key.
    """
    path = root / INCIDENT_KEY_NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(MAX_INCIDENT_KEY_BYTES + 1)
    path.unlink()
    try:
        return parse_incident_key(data)
    except IncidentKeyError as error:
        raise PackageFormatError(str(error)) from None
