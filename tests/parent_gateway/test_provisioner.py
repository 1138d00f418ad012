import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import MultiKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_dir_exists

from enclave_parent_gateway.errors import KernelLaunchError
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.process_ids import kernel_pid

pytestmark = pytest.mark.usefixtures("enclave")


def test_a_cell_runs() -> None:
    with kernel() as (_, client):
        assert run_code(client, "print(6 * 7)") == "42\n"


def test_first_output_is_not_lost() -> None:
    # Right after start_kernel, without waiting for the kernel: all five sockets are bound.
    manager = KernelManager(kernel_name="enclave")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        assert run_code(client, "print('first')") == "first\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_working_directory(tmp_path: Path) -> None:
    with kernel(cwd=str(tmp_path)) as (_, client):
        assert run_code(client, "import os; print(os.getcwd())") == f"{tmp_path}\n"


def test_only_listed_variables_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = os.environ | {
        "LANG": "C.UTF-8",
        "JPY_SESSION_NAME": "a.ipynb",
        "JPY_API_TOKEN": "t0ken",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "MY_SETTING": "7",
    }
    names = "['LANG', 'JPY_SESSION_NAME', 'JPY_API_TOKEN', 'AWS_SECRET_ACCESS_KEY', 'MY_SETTING']"
    show = f"import os; print([os.environ.get(name) for name in {names}])"
    with kernel(env=environ) as (manager, client):
        assert run_code(client, show) == "['C.UTF-8', 'a.ipynb', None, None, None]\n"
        manager.provisioner.pass_environment = ["MY_SETTING"]  # type: ignore[union-attr]
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert run_code(client, show) == "['C.UTF-8', 'a.ipynb', None, None, '7']\n"


def test_a_variable_that_is_too_long_is_named() -> None:
    manager = KernelManager(kernel_name="enclave")
    with pytest.raises(KernelLaunchError, match="variable TERM has 5000 characters"):
        manager.start_kernel(env={"TERM": "x" * 5000})


def _not_encrypted(manager: KernelManager) -> None:
    """As the kernelspec's provisioner configuration would."""
    stanza = manager.kernel_spec.metadata["kernel_provisioner"]  # type: ignore[union-attr]
    stanza["config"] = {"transport_encryption": "disabled"}


@pytest.mark.parametrize("asked", ["disabled", "auto", "required"])
def test_channels_are_encrypted_whatever_jupyter_asks_for(asked: str) -> None:
    manager = KernelManager(kernel_name="enclave", transport_encryption=asked)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print(6 * 7)") == "42\n"
        assert client.hb_channel.is_beating()
        file = Path(manager.connection_file)
        kept = msgspec.json.decode(file.read_bytes())
        assert len(kept["curve_publickey"]) == len(kept["curve_secretkey"]) == 40
        assert file.stat().st_mode & 0o777 == 0o600
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print(6 * 7)") == "42\n"
        assert msgspec.json.decode(file.read_bytes()) == kept
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_only_this_user_reads_the_keys() -> None:
    """As a Jupyter server keeps its connection files, in a directory it makes so."""
    ensure_dir_exists(jupyter_runtime_dir(), mode=0o700)
    manager = MultiKernelManager(connection_dir=jupyter_runtime_dir())
    kernel_id = manager.start_kernel(kernel_name="enclave")
    try:
        file = Path(manager.get_kernel(kernel_id).connection_file)
        assert "curve_secretkey" in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    finally:
        manager.shutdown_all(now=True)


def test_what_switches_encryption_off_does_not_go_with_what_requires_it() -> None:
    manager = KernelManager(kernel_name="enclave", transport_encryption="required")
    _not_encrypted(manager)
    with pytest.raises(KernelLaunchError, match="contradict"):
        manager.start_kernel()


def test_encryption_can_be_switched_off() -> None:
    manager = KernelManager(kernel_name="enclave")
    _not_encrypted(manager)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        assert manager.curve_publickey is None
        assert "curve" not in Path(manager.connection_file).read_text()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    ],
    ids=["sleep", "loop", "subprocess", "regex"],
)
def test_interrupt(code: str) -> None:
    with kernel() as (manager, client):
        # A pause before the code: what holds the interpreter's lock would hold back "begins", too.
        begin = "import time; print('begins', flush=True); time.sleep(0.5)"
        message_id = client.execute(f"{begin}\n{code}")
        while client.get_iopub_msg(timeout=10)["msg_type"] != "stream":
            pass
        time.sleep(1)
        began = time.monotonic()
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=10)
        assert time.monotonic() - began < 5
        assert reply["parent_header"]["msg_id"] == message_id
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert run_code(client, "print('alive')") == "alive\n"


@pytest.mark.parametrize("now", [False, True])
def test_restart_keeps_the_client_and_forgets_the_state(now: bool) -> None:
    with kernel() as (manager, client):
        run_code(client, "x = 1")
        endpoint, pid = manager.ip, manager.provisioner.pid  # type: ignore[union-attr]
        manager.restart_kernel(now=now)
        client.wait_for_ready(timeout=30)
        assert manager.ip == endpoint
        assert manager.provisioner.pid != pid  # type: ignore[union-attr]
        assert run_code(client, "print(x)") == "NameError: name 'x' is not defined"


def test_shutdown_leaves_nothing(enclave: EnclaveHome) -> None:
    with kernel() as (manager, client):
        pid = kernel_pid(client)
        connection_file = Path(manager.connection_file)
        manager.shutdown_kernel()
        assert not manager.has_kernel
        assert not Path(f"/proc/{pid}").exists()
        assert not list((enclave.runtime / "k").iterdir())
        assert not connection_file.exists()


def test_input() -> None:
    with kernel() as (_, client):
        client.execute("name = input('Who? ')", allow_stdin=True)
        assert client.get_stdin_msg(timeout=10)["content"]["prompt"] == "Who? "
        client.input("Ada")
        assert client.get_shell_msg(timeout=10)["content"]["status"] == "ok"
        assert run_code(client, "print(name)") == "Ada\n"


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("import os; os._exit(3)", 3), ("import os, signal; os.kill(os.getpid(), 9)", -9)],
    ids=["exit", "kill"],
)
def test_death(code: str, returncode: int) -> None:
    with kernel() as (manager, client):
        client.execute(code)
        assert wait_until(lambda: not manager.is_alive())
        assert manager.has_kernel
        assert asyncio.run(manager.provisioner.poll()) == returncode  # type: ignore[union-attr]
        # None of these may raise on a dead kernel.
        manager.interrupt_kernel()
        manager.signal_kernel(signal.SIGTERM)
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print('again')") == "again\n"


def test_wait_returns_the_code() -> None:
    with kernel() as (manager, client):

        async def ends() -> int | None:
            provisioner = manager.provisioner
            assert provisioner is not None
            waiting = asyncio.create_task(provisioner.wait())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            client.execute("import os; os._exit(7)")
            return await asyncio.wait_for(waiting, 10)

        assert asyncio.run(ends()) == 7
        assert not manager.has_kernel


def test_a_kernel_id_of_any_kind() -> None:
    manager = KernelManager(kernel_name="enclave")
    manager.kernel_id = "../Übung 1"
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print(1)") == "1\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_short_session_key_is_replaced() -> None:
    manager = KernelManager(kernel_name="enclave")
    manager.session.key = b"short"
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        assert len(manager.session.key) >= 32
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


_FIRST_JUPYTER = """
import asyncio, json, os
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="enclave")
client.execute_interactive("x = 41")
info = asyncio.run(manager.provisioner.get_provisioner_info())
print(json.dumps(info), flush=True)
os._exit(0)
"""


def test_a_kernel_survives_jupyter(enclave: EnclaveHome) -> None:
    first = subprocess.run(
        [sys.executable, "-c", _FIRST_JUPYTER],
        env=enclave.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    info = msgspec.json.decode(first.stdout)
    manager = KernelManager(kernel_name="enclave")
    manager.kernel_id = info["kernel_id"]
    manager.load_connection_info(info["connection_info"])
    provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
        manager.kernel_id, manager.kernel_spec, manager
    )
    asyncio.run(provisioner.load_provisioner_info(info))
    manager.provisioner = provisioner
    assert manager.is_alive()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=10)
        assert run_code(client, "x += 1; print(x)") == "42\n"
        client.execute("import time; time.sleep(60)")
        time.sleep(0.5)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=10)["content"]["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert not manager.is_alive()


async def _square(number: int) -> str:
    manager = AsyncKernelManager(kernel_name="enclave")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        texts: list[str] = []
        await client.execute_interactive(
            f"print({number} ** 2)",
            timeout=60,
            output_hook=lambda message: texts.append(message["content"].get("text", "")),
        )
        return "".join(texts)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def test_twenty_at_once() -> None:
    results = await asyncio.gather(*(_square(number) for number in range(20)))
    assert results == [f"{number**2}\n" for number in range(20)]


def test_large_output_arrives_whole() -> None:
    with kernel() as (_, client):
        code = "for i in range(2000): print(i, 'x' * 1000)"
        texts = run_code(client, code).splitlines()
        assert [int(line.split()[0]) for line in texts] == list(range(2000))
