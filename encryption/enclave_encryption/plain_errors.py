"""How the owner's own errors look in the owner's column: whole."""

import contextlib
import importlib
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enclave_protocol.trial_messages import Ended, clipped

__all__ = ["ended_by", "error_line", "whole_traceback"]

_HERE: Final = Path(__file__).parent
_OURS: Final = tuple(str(_HERE / name) for name in ("plain_run.py", "plain_notebook.py"))
_OWN_FILES: Final = (*_OURS, contextlib.__file__, importlib.__file__)


def ended_by(error: BaseException, frame_name: str) -> Ended:
    """Return how code ended that let out `error`; `sys.exit` is its exit code.

    Args:
        error: What it let out.
        frame_name: The file where the traceback begins; empty: with the first that is not ours.
    """
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or isinstance(code, int):
            return Ended(exit_code=code or 0, error=f"SystemExit: {code or 0}" if code else "")
        return Ended(exit_code=1, error=error_line(error))
    text = clipped(whole_traceback(error, frame_name))
    return Ended(error=clipped(error_line(error)), traceback=text, exit_code=1)


def error_line(error: BaseException) -> str:
    """Return an error's type and message."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def whole_traceback(error: BaseException, frame_name: str) -> str:
    """Return the whole traceback, without the frames of `try` and of what it uses."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames, frame_name):
        frames = frames.tb_next
    told = traceback.TracebackException(type(error), error, frames)
    for part in _chain(told):
        part.stack[:] = [frame for frame in part.stack if frame.filename not in _OURS]
    return "".join(told.format())


def _chain(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    yield told
    for other in (told.__cause__, told.__context__):
        if other is not None:
            yield from _chain(other)


def _is_ours(frames: types.TracebackType, frame_name: str) -> bool:
    place = frames.tb_frame.f_code.co_filename
    if frame_name:
        return place != frame_name
    return place in _OWN_FILES or place.startswith("<frozen ")
