import os
import subprocess
import sys
import time

from enclave_parent_gateway.process_identity import ProcessIdentity, stop_process

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('ready', flush=True); time.sleep(60)"
)


def test_this_process_runs() -> None:
    assert ProcessIdentity.of(os.getpid()).is_running()


def test_a_reused_pid_is_another_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        other = ProcessIdentity(process.pid, ProcessIdentity.of(process.pid).start_ticks - 1)
        assert not other.is_running()
        assert stop_process(other, grace_s=0.1)
        assert process.poll() is None
        process.kill()


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as process:
        identity = ProcessIdentity.of(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.is_running()


def test_stop_ends_by_sigterm() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert stop_process(ProcessIdentity.of(process.pid), grace_s=5)
        assert process.wait(5) == -15


def test_stop_kills_what_ignores_sigterm() -> None:
    with subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        assert not stop_process(ProcessIdentity.of(process.pid), grace_s=0.3)
        assert 0.3 <= time.monotonic() - began < 3
        assert process.wait(5) == -9


def test_stopping_what_is_gone_is_fine() -> None:
    with subprocess.Popen(["true"]) as process:
        identity = ProcessIdentity.of(process.pid)
    assert not identity.is_running()
    assert stop_process(identity, grace_s=5)


def test_names_with_brackets_do_not_confuse(tmp_path: object) -> None:
    script = "open('/proc/self/comm', 'w').write('a) S (b'); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = ProcessIdentity.of(process.pid)
        assert identity.start_ticks > 0
        assert identity.is_running()
        process.kill()
