"""A Jupyter process of some user with one kernel: cells go in, what they print comes out.

The process is started by the caller, as that user and wherever it is to run; it needs the packages
of the parent instance only.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["UserNotebook"]

_PROGRAM = """
import json, sys, time
from jupyter_client.manager import KernelManager

def say(value):
    print(json.dumps(value), flush=True)

def run(code):
    # After a gateway's end each of a client's connections comes back by itself: what a cell prints
    # before iopub has is lost, as it is with any Jupyter kernel.
    for attempt in range(6):
        try:
            client.execute_interactive(code, timeout=5, output_hook=lambda m: say(
                m["content"].get("text", "")) if m["msg_type"] == "stream" else None)
            return
        except TimeoutError:
            client.wait_for_ready(timeout=60)

def told(seconds):
    # What reaches a client unasked, on iopub's stderr.
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = client.get_iopub_msg(timeout=left)
        except Exception:
            break
        if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
            return say(message["content"]["text"])
    say("")

def restart(_):
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=60)
    say("restarted")

manager = KernelManager(kernel_name="enclave")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
info = manager.get_connection_info()
say({"ip": info["ip"], "id": manager.provisioner._enclave_kernel_id})
for line in sys.stdin:
    name, argument = json.loads(line)
    if name == "end":
        break
    {"run": run, "told": told, "restart": restart}[name](argument)
client.stop_channels()
manager.shutdown_kernel(now=True)
say("ended")
"""


class UserNotebook:
    """See the module.

    Args:
        python: The interpreter, as that user finds it.
        start: Starts a command as the user, with pipes, text.

    Attributes:
        info: `ip` of the channels, `id` of the kernel.
    """

    def __init__(
        self, python: str, start: Callable[[Sequence[str]], "subprocess.Popen[str]"]
    ) -> None:
        self._process = start([python, "-c", _PROGRAM])
        self.info: dict[str, Any] = self._answer()

    def run(self, code: str) -> Any:
        """Run a cell of one line; return the first that it printed."""
        return self._ask("run", code)

    def told(self, within_s: float) -> str:
        """Return what is said to the notebook unasked; nothing if it is not said in time."""
        return str(self._ask("told", within_s))

    def restart(self) -> None:
        """Restart its kernel, as the button does."""
        assert self._ask("restart", None) == "restarted"

    def close(self) -> None:
        """Shut its kernel down."""
        out, err = self._process.communicate('["end", null]\n', timeout=60)
        assert "ended" in out, err

    def _ask(self, name: str, argument: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, argument]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return json.loads(line)
