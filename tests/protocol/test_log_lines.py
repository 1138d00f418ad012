import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from enclave_protocol.log_lines import LogLine, decode_log_line, set_up_logging, show_log_line


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Log as JSON to what this returns, and put the root logger back afterwards."""
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    for module, hook in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))
    set_up_logging("json")
    return stream


def _only_line(written: io.StringIO) -> LogLine:
    (raw,) = written.getvalue().splitlines()
    line = decode_log_line(raw.encode())
    assert line is not None
    return line


def test_a_line_has_what_programs_look_for(written: io.StringIO) -> None:
    fields = {"event": "loaded", "kernel": "aa-bb", "ms": 12}
    logging.getLogger("enclave.test").info("kernel %s", "aa-bb", extra={"fields": fields})
    line = _only_line(written)
    assert (line.level, line.logger, line.message) == ("INFO", "enclave.test", "kernel aa-bb")
    assert line.fields == fields and line.error is None
    assert set(json.loads(written.getvalue())) == {"time", "level", "logger", "message", "fields"}


def test_what_an_exception_says_is_not_logged(written: io.StringIO) -> None:
    secret = "key-0123456789"

    def open_package(key: str) -> None:
        raise ValueError(f"bad key {key}")

    try:
        open_package(secret)
    except ValueError:
        logging.getLogger("x").exception("a load failed")
    line = _only_line(written)
    assert line.error == "ValueError"
    assert line.places[-1].endswith(" open_package") and __file__ in line.places[-1]
    assert secret not in written.getvalue() and "bad key" not in written.getvalue()
    # Nor the line of source that raised it.
    assert "raise" not in written.getvalue()
    assert show_log_line(line).count("open_package") == 1


def test_strangers_text_stays_on_its_line_and_in_its_field(written: io.StringIO) -> None:
    evil = '\x1b[2J","level":"FAKE"\r\n{"level":"FAKE"}\u2028\x9b1m'
    logging.getLogger("x").warning("from outside: %s", evil, extra={"fields": {"name": evil}})
    line = _only_line(written)
    assert line.level == "WARNING"
    for text in (line.message, line.fields["name"], show_log_line(line)):
        assert isinstance(text, str) and text.isprintable() and "FAKE" in text


def test_a_long_message_is_cut(written: io.StringIO) -> None:
    logging.getLogger("x").warning("%s", "x" * 1_000_000)
    assert len(written.getvalue()) < 3000


@pytest.mark.parametrize(
    "raw", [b"", b"Traceback (most recent call last):", b'{"time":1}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_line_of_ours(raw: bytes) -> None:
    assert decode_log_line(raw) is None


def test_a_time_that_is_none_is_shown_as_such() -> None:
    assert show_log_line(LogLine(1e300, "INFO", "x", "m")).startswith("no time INFO")


@pytest.mark.parametrize(
    ("chosen", "is_json"), [("json", True), ("text", False), (None, True)], ids=str
)
def test_the_format_that_is_chosen(chosen: str | None, is_json: bool) -> None:
    """Without a choice: JSON, for it is no terminal."""
    code = "import logging; from enclave_protocol.log_lines import set_up_logging;"
    code += f"set_up_logging({chosen!r}); logging.getLogger('x').info('hello')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (decode_log_line(result.stderr.strip()) is not None) is is_json
    assert b"hello" in result.stderr


_UNCAUGHT = """
import sys, threading
from enclave_protocol.log_lines import set_up_logging
set_up_logging("json")
def fail():
    raise OSError(28, "canary-of-a-key", "canary-of-a-file")
class Dying:
    def __del__(self):
        fail()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Dying()
fail()
"""


def test_what_nobody_caught_is_a_line_too() -> None:
    result = subprocess.run([sys.executable, "-c", _UNCAUGHT], capture_output=True, check=False)
    assert result.returncode == 1
    lines = [decode_log_line(raw) for raw in result.stderr.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line is not None and (line.level, line.error) == ("CRITICAL", "OSError ENOSPC")
        assert line.places[-1].endswith(" fail")
    assert b"canary" not in result.stderr
