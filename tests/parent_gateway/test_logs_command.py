import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, wait_until


@pytest.fixture
def log(own_home: EnclaveHome) -> Iterator[Path]:
    """The folder of logs of an enclave that is down."""
    folder = own_home.runtime / "log"
    assert own_home.run("status").returncode == 3
    yield folder


def _line(time: float, message: str, **more: object) -> str:
    line = {"time": time, "level": "INFO", "logger": "x", "message": message, **more}
    return json.dumps(line) + "\n"


def test_lines_of_both_in_the_order_of_their_time(own_home: EnclaveHome, log: Path) -> None:
    (log / "supervisor.log").write_text(_line(2, "second") + _line(4, "fourth"))
    gateway = _line(1, "first") + _line(3, "third")
    (log / "gateway.log").write_text(gateway + "Last words: x\x1b[1m\n")
    lines = own_home.run("logs").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == [*("first", "second", "third", "[1m", "fourth")]
    assert [line.split()[0] for line in lines] == [
        *("gateway", "supervisor", "gateway", "gateway", "supervisor")
    ]
    assert lines[0].startswith("gateway    1970-01-0") and " INFO    first" in lines[0]
    assert "\x1b" not in "".join(lines)


def test_an_exception_is_one_line(own_home: EnclaveHome, log: Path) -> None:
    places = ["/a.py:1 outer", "/b.py:2 inner"]
    (log / "gateway.log").write_text(_line(1, "failed", error="ValueError", places=places))
    (line,) = own_home.run("logs").stdout.splitlines()
    assert line.endswith("failed [ValueError: /b.py:2 inner < /a.py:1 outer]")


def test_json_for_programs(own_home: EnclaveHome, log: Path) -> None:
    (log / "supervisor.log").write_text(_line(2, "a", fields={"event": "loaded"}) + "no JSON\n")
    first, second = map(json.loads, own_home.run("logs", "--json").stdout.splitlines())
    assert first["process"] == "supervisor" and first["fields"] == {"event": "loaded"}
    assert second["message"] == "no JSON" and second["level"] == "ERROR"


def test_a_last_line_without_its_end(own_home: EnclaveHome, log: Path) -> None:
    (log / "gateway.log").write_text(_line(1, "whole") + '{"time":2,"lev')
    lines = own_home.run("logs").stdout.splitlines()
    assert lines[1] == 'gateway    {"time":2,"lev'


def test_following_goes_on_over_a_new_start(own_home: EnclaveHome, log: Path) -> None:
    file = log / "gateway.log"
    file.write_text(_line(1, "old"))
    with subprocess.Popen(
        own_home.command("logs", "-f"), env=own_home.environ, stdout=subprocess.PIPE, text=True
    ) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline().endswith(" old\n")
        with file.open("a") as more:
            more.write(_line(2, "half")[:20])
            more.flush()
            more.write(_line(2, "half")[20:])
        assert follow.stdout.readline().endswith(" half\n")
        # As `Daemon` does it.
        file.replace(file.with_suffix(".log.1"))
        file.write_text(_line(3, "new"))
        assert follow.stdout.readline().endswith(" new\n")
        follow.send_signal(signal.SIGINT)
        assert wait_until(lambda: follow.poll() == 0)
