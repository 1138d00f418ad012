"""An enclave that dies is noticed within 2 s, and every notebook is told, in words."""

import asyncio
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from traitlets.config import Config

import enclave_parent_gateway.liveness as liveness_module
from enclave_parent_gateway.backends.gateway_daemon import spawn_gateway
from enclave_parent_gateway.enclave_state import read_state, write_state
from enclave_parent_gateway.errors import EnclaveGoneError, TransportError
from enclave_parent_gateway.last_word import ERROR_NAME
from enclave_parent_gateway.liveness import Liveness
from enclave_parent_gateway.process_identity import ProcessIdentity, stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.transport import connect
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.nitro_home import NitroHome, new_nitro_home
from tests.support.notebook_cells import unasked

_NOTICED_WITHIN_S = 2.0


@pytest.fixture
def nitro_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[NitroHome]:
    with new_nitro_home() as home:
        for name, value in home.variables.items():
            monkeypatch.setenv(name, value)
        yield home


@pytest.fixture(params=["local", "nitro"])
def any_home(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EnclaveHome]:
    """An enclave that is up, on each backend."""
    request.getfixturevalue("own_home" if request.param == "local" else "nitro_home")
    home = request.getfixturevalue("own_home" if request.param == "local" else "nitro_home")
    done = home.run("up", *(() if request.param == "local" else ("--image", str(home.image))))
    assert done.returncode == 0, done.stderr
    yield home


def test_every_notebook_is_told(any_home: EnclaveHome) -> None:
    pids = any_home.status()["pids"]
    victim = pids.get("enclave") or pids["supervisor"]
    with ExitStack() as stack:
        notebooks = [stack.enter_context(kernel()) for _ in range(4)]
        notebooks[0][1].execute("import time; time.sleep(60)")
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + _NOTICED_WITHIN_S
        for _, client in notebooks:
            text = unasked(client, deadline)
            assert "The enclave has ended" in text, any_home.run("logs").stdout
            assert "enclave up" in text
        # A moment later where a cell is under way: that ends first.
        assert wait_until(lambda: not any(one.is_alive() for one, _ in notebooks), 2)
        # A cell that is run now gets the same answer, as an error.
        for _, client in notebooks[1:]:
            answer = run_code(client, "x = 1", timeout_s=5)
            assert answer.startswith(f"{ERROR_NAME}: The enclave has ended")
        logged = any_home.run("logs").stdout
        assert "the enclave has ended; 4 notebooks are told" in logged


async def test_a_killed_gateway_costs_no_notebook_anything(any_home: EnclaveHome) -> None:
    """With Jupyter's own restarter watching, and nobody who types `enclave up`."""
    config = Config({"AsyncIOLoopKernelRestarter": {"time_to_dead": 0.3}})
    manager = AsyncIOLoopKernelManager(kernel_name="enclave", config=config)
    restarted = asyncio.Event()
    await manager.start_kernel()
    manager.add_restart_callback(restarted.set)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        await client.execute("x = 5", reply=True, timeout=30)
        pids = any_home.status()["pids"]
        os.kill(pids["gateway"], signal.SIGKILL)
        for _ in range(100):
            await asyncio.sleep(0.1)
            now = any_home.status()
            if now["state"] == "up" and now["kernels"]:
                break
        assert now["pids"]["gateway"] != pids["gateway"]
        await client.wait_for_ready(timeout=30)
        reply = await client.execute("assert x == 5", reply=True, timeout=30)
        assert reply["content"]["status"] == "ok"
        assert not restarted.is_set()
        assert {k: v for k, v in now["pids"].items() if k != "gateway"} == {
            k: v for k, v in pids.items() if k != "gateway"
        }
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


def test_status_says_so_and_up_brings_it_back(nitro_home: NitroHome) -> None:
    assert nitro_home.up()[0] == 0
    with kernel() as (manager, client):
        run_code(client, "x = 5")
        first = nitro_home.status()["pids"]["enclave"]
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: nitro_home.status()["state"] == "broken", 4)
        said = nitro_home.run("status")
        assert said.returncode == 3
        assert "does not answer (gateway of it runs)" in said.stdout
        assert manager.provisioner is not None
        # Jupyter tries to start the kernel again, again and again; the notebook is still told.
        for _ in range(2):
            with pytest.raises(Exception, match="enclave up --backend nitro"):
                manager.restart_kernel(now=True)
        assert "The enclave has ended" in unasked(client, time.monotonic() + 4)
        again = run_code(client, "x", timeout_s=5)
        assert again.startswith(ERROR_NAME)

        assert nitro_home.up()[0] == 0
        assert nitro_home.status()["pids"]["enclave"] != first
        manager.start_kernel()
        client.wait_for_ready(timeout=30)
        assert run_code(client, "'x' in globals()") == ""
        assert run_code(client, "print(1 + 1)") == "2\n"


def test_the_server_shows_why(nitro_home: NitroHome) -> None:
    assert nitro_home.up()[0] == 0
    with kernel() as (manager, _):
        os.kill(nitro_home.status()["pids"]["enclave"], signal.SIGKILL)
        assert wait_until(lambda: not manager.is_alive(), 4)
        # What jupyter_server's kernel model shows to its front-ends.
        assert manager.reason == "the enclave ended"  # type: ignore[attr-defined]


def test_nobody_takes_the_last_word_for_a_kernel(nitro_home: NitroHome) -> None:
    assert nitro_home.up()[0] == 0
    with kernel() as (_, client):
        os.kill(nitro_home.status()["pids"]["enclave"], signal.SIGKILL)
        assert unasked(client, time.monotonic() + 4)
        client.kernel_info()
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=1)
        assert wait_until(lambda: not client.hb_channel.is_beating(), 5)
        # Without the kernel's key nobody gets a word out of it.
        stranger = BlockingKernelClient()
        info = client.get_connection_info()
        stranger.load_connection_info(cast("Any", info | {"key": b"0" * 64}))
        stranger.start_channels()
        stranger.execute("1")
        with pytest.raises(queue.Empty):
            stranger.get_shell_msg(timeout=1)
        stranger.stop_channels()


class _Silent:
    """A peer that accepts, or does not, and never answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def die(self) -> None:
        self.listener.close()
        self.path.unlink()


def _liveness(path: Path, process: ProcessIdentity | None = None) -> Liveness:
    async def ping(timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        raise EnclaveGoneError("no answer")

    return Liveness(
        f"unix:{path}", process=lambda: process, ping=ping, heard_at=lambda: float("-inf")
    )


async def test_an_overloaded_enclave_is_not_taken_for_dead(tmp_path: Path) -> None:
    peer = _Silent(tmp_path / "s")
    liveness = _liveness(peer.path)
    ended = asyncio.create_task(liveness.ended())
    await asyncio.sleep(3)
    assert not ended.done()
    peer.die()
    await asyncio.wait_for(ended, _NOTICED_WITHIN_S)
    liveness.close()


async def test_the_end_of_its_process_is_the_end(tmp_path: Path) -> None:
    peer = _Silent(tmp_path / "s")
    process = await asyncio.create_subprocess_exec("sleep", "60")
    identity = ProcessIdentity.of(process.pid)
    liveness = _liveness(peer.path, identity)
    ended = asyncio.create_task(liveness.ended())
    await asyncio.sleep(0.5)
    assert not ended.done()
    process.kill()
    await asyncio.wait_for(ended, _NOTICED_WITHIN_S)
    assert liveness.process_ended()
    liveness.close()
    peer.die()
    await process.wait()


class _DeadWire:
    """Carries connections to the enclave, and can go silent: open connections say nothing more."""

    def __init__(self, outer: Path, inner: Path) -> None:
        self._inner = inner
        self._outer = outer
        self._dead = False
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(outer))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._inner))
                self._ends += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._dead:
                    return
                target.sendall(data)
            if not self._dead:
                target.shutdown(socket.SHUT_WR)

    def die(self) -> None:
        self._dead = True
        self._outer.unlink()
        self._listener.close()

    def close(self) -> None:
        for end in self._ends:
            end.close()


def test_streams_that_stay_open_and_silent(own_home: EnclaveHome) -> None:
    """As vsock may be after the machine behind it is gone."""
    assert own_home.run("up").returncode == 0
    state_file = own_home.runtime / "enclave.json"
    state = read_state(state_file)
    assert state is not None
    stop_process(state.processes["gateway"], grace_s=5)
    outer, inner = own_home.runtime / "enclave.sock", own_home.runtime / "real.sock"
    outer.rename(inner)
    wire = _DeadWire(outer, inner)
    # A gateway that does not know which process is the enclave's.
    unknown = {name: one for name, one in state.processes.items() if name != "supervisor"}
    write_state(state_file, msgspec.structs.replace(state, processes=unknown))
    paths = EnclavePaths(own_home.runtime, own_home.runtime / "state")
    gateway = spawn_gateway(paths, state, 0.0)
    try:
        assert wait_until(lambda: own_home.status()["state"] == "up")
        with kernel() as (_, client):
            run_code(client, "x = 1")
            wire.die()
            began = time.monotonic()
            assert "The enclave has ended" in unasked(client, began + _NOTICED_WITHIN_S)
    finally:
        inner.rename(outer)
        wire.close()
        write_state(state_file, state.with_process("gateway", gateway.identity))


async def test_a_full_queue_of_connections_is_not_death(tmp_path: Path) -> None:
    peer = _Silent(tmp_path / "s")
    waiting = []
    with suppress(TransportError):
        while True:
            waiting.append(connect(f"unix:{peer.path}", timeout_s=0.1))
    liveness = _liveness(peer.path)
    ended = asyncio.create_task(liveness.ended())
    await asyncio.sleep(2.5)
    assert not ended.done()
    for sock in waiting:
        sock.close()
    peer.die()
    await asyncio.wait_for(ended, _NOTICED_WITHIN_S)
    liveness.close()


async def test_a_hung_enclave_whose_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness_module, "_WEDGED_S", 1.5)
    liveness = _liveness(tmp_path / "nothing", ProcessIdentity.of(os.getpid()))
    began = time.monotonic()
    await asyncio.wait_for(liveness.ended(), 10)
    assert time.monotonic() - began > 1.5
    liveness.close()
