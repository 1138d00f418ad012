"""Nothing the demo starts outlives it: `examples/ocr/children.py`, with real processes."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

OCR = Path(__file__).resolve().parents[2] / "examples" / "ocr"


def script(tmp_path: Path, body: str) -> list[str]:
    """Return a command that runs `body` with `children` at hand: it changes signal handling."""
    source = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(OCR)!r})
sys.dont_write_bytecode = True
from children import ChildFailedError, Children, StoppedError
children = Children(Path({str(tmp_path / "log")!r}))
env = dict(os.environ)
def run(code, **options):
    return children.run([sys.executable, "-c", code], env=env, **options)
"""
    return [sys.executable, "-c", source + textwrap.dedent(body)]


def call(tmp_path: Path, body: str) -> str:
    result = subprocess.run(
        script(tmp_path, body), capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


DAEMON = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", CODE], start_new_session=True)
print(child.pid)
"""


def daemon(code: str) -> str:
    """Return code that leaves a process behind running `code`, and prints its pid."""
    return DAEMON.replace("CODE", repr(code))


def test_output_is_returned_and_logged(tmp_path: Path) -> None:
    body = "print(run(\"print('to me'); import sys; print('to log', file=sys.stderr)\"), end='')"
    assert call(tmp_path, body) == "to me\n"
    log = (tmp_path / "log").read_text()
    assert "to log\n" in log and "to me\n" in log


def test_failure_names_the_command_and_its_last_line(tmp_path: Path) -> None:
    body = """
    try:
        run("import sys; print('first', file=sys.stderr); sys.exit('it broke')")
    except ChildFailedError as error:
        print(error)
    """
    line = call(tmp_path, body).strip()
    assert line.startswith("python") and line.endswith("ended with code 1: it broke")


def test_too_slow_is_a_failure(tmp_path: Path) -> None:
    body = """
    try:
        run("import time; time.sleep(60)", timeout_s=0.5)
    except ChildFailedError as error:
        print(error)
    """
    assert "took more than 0.5 s" in call(tmp_path, body)


def test_daemon_that_ends_by_itself_is_waited_for(tmp_path: Path) -> None:
    body = f"""
    run({daemon("import time; time.sleep(0.5)")!r})
    print(children.end_all())
    """
    assert call(tmp_path, body) == "0\n"


def test_daemon_left_behind_is_ended(tmp_path: Path) -> None:
    body = f"""
    pid = run({daemon("import time; time.sleep(60)")!r})
    print(int(pid), children.end_all())
    """
    pid, ended = map(int, call(tmp_path, body).split())
    assert ended == 1
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_command_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    pids = tmp_path / "pids"
    forever = "import time; time.sleep(60)"
    code = f"""
import os, pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", {forever!r}], start_new_session=True)
part = pathlib.Path({str(pids)!r} + ".part")
part.write_text(f"{{os.getpid()}} {{other.pid}}")
part.rename({str(pids)!r})
time.sleep(60)
"""
    body = f"""
    try:
        run({code!r})
    except StoppedError as stopped:
        children.begin_end()
        children.end_all()
        sys.exit(stopped.signal_number)
    """
    with subprocess.Popen(script(tmp_path, body)) as demo:
        deadline = time.monotonic() + 20
        while not pids.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        demo.send_signal(number)
        assert demo.wait(timeout=30) == number
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert not [pid for pid in started if alive(pid)]


def test_signals_while_ending_are_ignored(tmp_path: Path) -> None:
    body = """
    import signal
    children.begin_end()
    os.kill(os.getpid(), signal.SIGINT)
    print(run("print('tidied up')"), end="")
    """
    assert call(tmp_path, body) == "tidied up\n"


def test_exit_code_of_a_command_is_not_lost_to_the_reaper(tmp_path: Path) -> None:
    # An orphan ends while the command still runs: both are our children then.
    code = daemon("pass") + "\nimport time; time.sleep(0.5); sys.exit(7)"
    body = f"""
    try:
        run({code!r})
    except ChildFailedError as error:
        print(error)
    """
    assert "ended with code 7" in call(tmp_path, body)
