"""What a run writes to a terminal and to files: a stranger's text drives neither."""

import io

import pytest

from enclave_parent_gateway.run.run_display import RunDisplay
from enclave_protocol.run_messages import RunBar, RunText


class Terminal(io.TextIOWrapper):
    """Text in memory that says it is a terminal, if it is to."""

    def __init__(self, *, terminal: bool) -> None:
        self.memory = io.BytesIO()
        self._terminal = terminal
        super().__init__(self.memory, "utf-8", write_through=True)

    def isatty(self) -> bool:
        return self._terminal

    def shown(self) -> str:
        return self.memory.getvalue().decode()


_HOSTILE = "\x1b]52;c;eA==\x07a\x1b[2Jb\u202ec"


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_is_only_text(terminal: bool) -> None:
    stdout, stderr = io.BytesIO(), Terminal(terminal=terminal)
    display = RunDisplay(stdout, stderr)
    display.text(RunText("stdout", f"{_HOSTILE}\n"))
    display.text(RunText("stderr", f"{_HOSTILE}\n"))
    assert stdout.getvalue() == b"abc\n"
    assert stderr.shown() == "abc\n"
    display.tell(f"Error: {_HOSTILE}\n\r2")
    last = stderr.shown().splitlines()[1:]
    assert len(last) == 1 and last[0].isprintable()


def test_a_status_line_is_gone_before_text_comes() -> None:
    stdout, stderr = io.BytesIO(), Terminal(terminal=True)
    display = RunDisplay(stdout, stderr)
    display.bar(RunBar(1, 3.0, 10.0, 0))
    assert "30% 3/10" in stderr.shown()
    display.text(RunText("stdout", "open end"))
    assert stderr.shown().endswith("\r\x1b[K")
    # Not over a line of the script's.
    before = stderr.shown()
    display.bar(RunBar(1, float("inf"), None, 0))
    display.bar(RunBar(1, 4.0, 10.0, 2))
    assert stderr.shown() == before
    display.tell("done")
    assert stderr.shown() == f"{before}\ndone\n"


def test_a_log_and_a_quiet_one_stay_short() -> None:
    for terminal, quiet in ((False, False), (True, True)):
        stderr = Terminal(terminal=terminal)
        display = RunDisplay(io.BytesIO(), stderr, quiet=quiet)
        for number in range(1000):
            display.sending(number, 1000)
            display.bar(RunBar(1, number, None, 0))
        display.finish()
        assert stderr.shown() == ""
    display.say("nothing")
    display.tell("an error")
    assert stderr.shown() == "an error\n"
