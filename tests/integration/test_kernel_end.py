"""A kernel that is asked to end: at once where nothing is left to do, and not before what is."""

import time
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until

# A flush that the control thread waits for, and which the thread of iopub does not come to any more
# if it is stopped now. It is asked for before the loop of the cells ends, and comes 2 s late.
# In a function: the names of cells are gone at the end.
_LATE_FLUSH = """
def make_late(kernel):
    import threading

    pub, loop, asked = kernel.iopub_thread, kernel.io_loop, threading.Event()
    schedule_now, stop_now = pub.schedule, loop.stop

    def schedule(function):
        waits = getattr(function, "__name__", "") == "set"
        if waits and threading.current_thread().name == "Control" and not asked.is_set():
            asked.set()
            pub.thread.join(2)
            if not pub.thread.is_alive():
                return
        schedule_now(function)

    def stop():
        asked.wait(5)
        stop_now()

    pub.schedule, loop.stop = schedule, stop

make_late(get_ipython().kernel)
print("ready")
"""

_THREAD = """
import threading, time

def work():
    time.sleep(1.5)
    with open({path!r}, "w") as file:
        file.write("done")

threading.Thread(target=work).start()
print("ready")
"""


@pytest.mark.usefixtures("enclave")
def test_the_answer_to_the_request_is_waited_for() -> None:
    with kernel() as (manager, client):
        assert run_code(client, _LATE_FLUSH) == "ready\n"
        client.shutdown()
        began = time.monotonic()
        assert wait_until(lambda: not manager.is_alive(), timeout_s=20)
        # ipykernel gives up such a flush after 10 s.
        assert time.monotonic() - began < 8


def test_a_thread_that_is_no_daemon_ends_its_work(enclave: EnclaveHome, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "written"
    with kernel(cwd=str(tmp_path)) as (manager, client):
        assert run_code(client, _THREAD.format(path="written")) == "ready\n"
        client.shutdown()
        assert wait_until(lambda: not manager.is_alive(), timeout_s=20)
    assert path.read_text() == "done"
    assert enclave.status()["kernels"] == []
