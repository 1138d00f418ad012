"""THREATS E.3: output, logs and display. Owners who err, users who look, owners who attack."""

import ast
import os
import socket
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enclave_protocol import vault_messages as vm
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import achieved
from tests.support.enclave_home import wait_until
from tests.support.notebook_cells import finish_cell

_NOISES = ["print", "stderr", "write", "printf", "logging", "traceback", "warning", "faulthandler"]


@pytest.mark.parametrize("how", [*_NOISES, "unraisable", "thread", "displayhook"])
def test_o01_whatever_writes(notebook: HostileNotebook, how: str) -> None:
    shown = notebook.cell(f"m.noisy({how!r})")
    assert shown.text == "" and not shown.error
    assert not notebook.marked.found_in_bytes(notebook.home.run("logs").stdout)


@needs_root
def test_o01_the_noise_is_real(modern: Arena) -> None:
    """The control: with somewhere to go, the same code is heard."""
    code = """
import os, tempfile
kept = [os.dup(1), os.dup(2)]
file = tempfile.TemporaryFile()
os.dup2(file.fileno(), 1)
os.dup2(file.fileno(), 2)
import sys, ctypes
module = sys.modules["marked"]
for how in HOW:
    module.noisy(how)
sys.stdout.flush()
sys.stderr.flush()
for place, descriptor in zip((1, 2), kept):
    os.dup2(descriptor, place)
file.seek(0)
result = file.read()
"""
    with modern.another_vault() as place:
        heard = place.package.run(code.replace("HOW", repr(_NOISES[:6])))
    assert heard.count(modern.marked.markers["constant"]) >= 6


def test_o02_progress_bars_show_no_names(notebook: HostileNotebook) -> None:
    shown = notebook.cell("m.noisy('tqdm')")
    assert notebook.clean(shown) and not shown.error


def test_o03_rich_display(notebook: HostileNotebook) -> None:
    """A result that offers HTML, SVG or JavaScript: it is refused, or shown as plain text."""
    makers = {
        "html string": "'<img src=\"https://evil.example/?d=1\">'",
        "object": "type('H', (), {'_repr_html_': lambda self: '<script>1</script>'})()",
        "svg": "type('S', (str,), {'_repr_svg_': lambda self: '<svg/>'})('x')",
        "bundle": "{'text/html': '<b>', 'application/javascript': 'alert(1)'}",
        "ipython": "__import__('types').SimpleNamespace(data='<b>')",
    }
    for name, expression in makers.items():
        shown = notebook.cell(f"m.run({f'result = {expression}'!r})")
        assert shown.mime_types <= {"text/plain"}, name
        assert "https://evil" not in shown.text or shown.text.startswith("'<img")


def test_o04_escapes_in_strings(notebook: HostileNotebook) -> None:
    escape = "\\x1b]52;c;x\\x07\\x1b[2J\\x9b1m"
    shown = notebook.cell(f"m.run('result = \"{escape}\"')")
    assert not any(ord(character) < 32 and character != "\n" for character in shown.text)
    shown = notebook.cell(f"m.run('raise ValueError(\"{escape}\")')")
    assert shown.error == "ValueError" and "\x1b" not in shown.message
    assert "\x9b" not in shown.message and "\x07" not in shown.message


def test_o05_logs_that_leave(notebook: HostileNotebook) -> None:
    marker = f"users-data-{os.urandom(8).hex()}"
    for how in ("print", "stderr", "logging"):
        notebook.cell(f"m.noisy({how!r})")
    code = f"import logging, sys, os; logging.error({marker!r}); os.write(2, {marker.encode()!r})"
    notebook.cell(f"m.run({code!r})")
    notebook.cell(f"%load_encrypted {marker}.encrypted")
    logs = notebook.home.run("logs").stdout
    for path in notebook.home.root.rglob("*.log*"):
        logs += path.read_text(errors="replace")
    assert "listening on" in logs  # it is the log
    assert marker not in logs
    assert not notebook.marked.found_in_bytes(logs)


@needs_root
def test_o06_w15_telemetry(modern: Arena, tmp_path: Path) -> None:
    """Whatever a package's libraries report with: nobody hears it, and there is no service for it.

    What a vault can say to its supervisor is a closed list, and ends when it has its key.
    """
    heard: list[bytes] = []

    class Listener(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            said = b""
            self.request.settimeout(0.3)  # a mail server speaks first
            with suppress(OSError):
                said = self.request.recv(4096)
            heard.append(said)
            greeting = b"HTTP/1.0 200 OK\r\n\r\n" if said.startswith(b"GET") else b"220 mail\r\n"
            with suppress(OSError):
                self.request.sendall(greeting)

    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Listener) as server, log:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = str(tmp_path / "log")
        log.bind(path)
        log.setblocking(False)
        port = server.server_address[1]
        assert achieved(modern.plain().run(attacks.telemetry, port, path)) == {
            *("http", "smtp", "socket log", "syslog", "datagram log")
        }
        assert b"users-data" in b"".join(heard) and b"users-data" in log.recv(4096)
        heard.clear()
        assert achieved(modern.vault.run(attacks.telemetry, port, path)) == set()
        server.shutdown()
        assert heard == []
        with pytest.raises(BlockingIOError):
            log.recv(4096)
    said = {kind.__name__ for kind in vm.ControlMessage.__args__}
    assert said == {"VaultReady", "StartVault", "VaultStarted", "VaultFailed"}


def test_o08_history_and_output_caches(notebook: HostileNotebook) -> None:
    code = "print(list(Out.values()), In[-3:], [str(value) for value in _oh.values()])"
    shown = notebook.cell(code)
    assert notebook.clean(shown) and not shown.error


def test_o09_no_key_is_typed(notebook: HostileNotebook) -> None:
    shown = notebook.cell("%load_encrypted marked.encrypted --key 00112233")
    assert "UsageError" in shown.text
    assert "key" not in notebook.cell("%load_encrypted?").text.lower().replace("kms", "")


@needs_root
def test_o10_an_exit_says_little(modern: Arena) -> None:
    """What an ended vault tells: a status or a signal, and only to its user."""
    for code, word in (("os._exit(77)", "exit code 77"), ("os.abort()", "SIGABRT")):
        with modern.another_vault() as place, pytest.raises(Exception, match=word) as death:
            place.package.run(f"import os; {code}")
        assert len(str(death.value)) < 300
        assert not modern.marked.found_in_bytes(str(death.value))


def test_o10_the_parent_sees_steps_of_a_vaults_use(notebook: HostileNotebook) -> None:
    """Twice a minute, whoever asks and however often; and of the package what its label says."""

    def vault() -> dict[str, Any]:
        found = [each for kernel in notebook.home.status()["kernels"] for each in kernel["vaults"]]
        (mine,) = (each for each in found if each["package"] == "marked")
        return dict(mine)

    # Not before it was looked at twice: its beginning is nobody's business.
    assert wait_until(lambda: vault()["memory_bytes"] is not None, 70)
    spin = "import time\nt = time.time()\nwhile time.time() - t < 2: pass\nresult = 1"
    seen = [vault()]
    request = notebook.client.execute(f"held = m.run({spin!r})")
    seen += [vault() for _ in range(5)]
    finish_cell(notebook.client, request)
    # One look may have come meanwhile, not five.
    assert len({(each["memory_bytes"], each["cpu_percent"]) for each in seen}) <= 2
    for each in seen:
        assert each["memory_bytes"] in {2**power for power in range(26, 41)}
        assert each["cpu_percent"] in {0, *(25 * 2**power for power in range(11))}
        assert set(each) == {
            *("package", "version", "walled", "uptime_s", "memory_bytes", "cpu_percent")
        }
    told = notebook.home.run("status", "--json").stdout + notebook.home.run("status").stdout
    told += notebook.home.run("metrics").stdout
    assert "marked" in told and not notebook.marked.found_in_bytes(told)
    assert "marked" not in notebook.home.run("metrics").stdout


def test_o10_the_user_sees_no_more_of_a_vault(notebook: HostileNotebook) -> None:
    """Of what the usage panel shows, a vault's part is the same steps."""
    ask = """
from enclave_kernel.session_messages import VaultsUsage
usage = get_ipython().kernel.supervisor_link.vaults_usage()
print((type(usage) is VaultsUsage, usage.memory_bytes, usage.cpu_percent))
"""
    said, memory, processors = ast.literal_eval(notebook.cell(ask).text)
    assert said
    assert memory in {0, *(2**power for power in range(26, 41))}
    assert processors in {0, *(25 * 2**power for power in range(11))}


def test_everything_that_was_shown(notebook: HostileNotebook) -> None:
    """All messages that reached the user up to here, whole, with what no person looks at."""
    everything = "\n".join(notebook.seen)
    assert "<encrypted marked 1.0>" in everything
    assert notebook.marked.found_in_bytes(everything) == set()
