"""One line of a log: JSON for files and programs, text for a terminal.

Of an exception a line holds the class and the places in the code, never its message and never a
line of source: either could quote a key, a package or what a stranger sent.
"""

import errno
import logging
import sys
import threading
import traceback
from datetime import datetime
from types import TracebackType
from typing import Final, Literal

import msgspec

from enclave_protocol.plain_text import plain_text

__all__ = ["FORMATS", "LogLine", "decode_log_line", "set_up_logging", "show_log_line"]

Format = Literal["json", "text"]
FORMATS: Final = ("json", "text")
_MAX_MESSAGE_CHARS: Final = 2000
_MAX_PLACES: Final = 20
_Value = str | int | float | bool | None


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened.

    Args:
        time: Seconds since 1970.
        level: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.
        logger: The module's.
        message: One line for people.
        fields: The same for programs, where there is something to count or to find.
        error: The class of an exception, and the name of its `errno` if it has one.
        places: Where it came from, outermost first: `FILE:LINE FUNCTION`.
    """

    time: float
    level: str
    logger: str
    message: str
    fields: dict[str, _Value] = {}
    error: str | None = None
    places: tuple[str, ...] = ()


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(LogLine)


def _line_of(record: logging.LogRecord) -> LogLine:
    error: str | None = None
    places: tuple[str, ...] = ()
    if record.exc_info and record.exc_info[0] is not None:
        error = record.exc_info[0].__name__
        number = getattr(record.exc_info[1], "errno", None)
        if isinstance(number, int) and number in errno.errorcode:
            error += f" {errno.errorcode[number]}"
        frames = traceback.extract_tb(record.exc_info[2])[-_MAX_PLACES:]
        places = tuple(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    fields: dict[str, _Value] = getattr(record, "fields", {})
    return LogLine(
        time=round(record.created, 3),
        level=record.levelname,
        logger=record.name,
        message=plain_text(record.getMessage(), limit=_MAX_MESSAGE_CHARS),
        fields={
            name: plain_text(value, limit=_MAX_MESSAGE_CHARS) if isinstance(value, str) else value
            for name, value in fields.items()
        },
        error=error,
        places=places,
    )


class _Formatter(logging.Formatter):
    def __init__(self, chosen: Format) -> None:
        super().__init__()
        self._chosen = chosen

    def format(self, record: logging.LogRecord) -> str:
        line = _line_of(record)
        return _encoder.encode(line).decode() if self._chosen == "json" else show_log_line(line)


def decode_log_line(line: bytes) -> LogLine | None:
    """Return what a line of a log file says; None if it is no JSON of ours.

    Such are a crashing interpreter's last words, and what a library prints.
    """
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def show_log_line(line: LogLine) -> str:
    """Return the line as people read it, with the time of this machine's clock."""
    try:
        when = datetime.fromtimestamp(line.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        when = "no time"
    shown = f"{when} {line.level:<7} {line.message}"
    if line.error is not None:
        shown += f" [{line.error}: {' < '.join(reversed(line.places)) or 'no place'}]"
    return plain_text(shown, limit=None)


def set_up_logging(chosen: str | None) -> None:
    """Have this process log to its standard error, from INFO on.

    What Python itself would print of an exception that nobody caught becomes a line as well: its
    own traceback has the message and the source.

    Args:
        chosen: `json` or `text`; None: text on a terminal, else JSON.
    """
    terminal = sys.stderr.isatty()
    form: Format = "text" if chosen == "text" or (chosen is None and terminal) else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    sys.unraisablehook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    exc_info = (kind, error if error is not None else kind(), trace)
    logging.getLogger(__name__).critical("an error that nobody caught", exc_info=exc_info)
