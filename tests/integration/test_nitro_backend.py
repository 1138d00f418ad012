"""The nitro backend, end to end: our CLI, nitro-cli's stand-in, a supervisor behind it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from enclave_parent_gateway.enclave_state import EnclaveState, read_state, write_state
from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_protocol.eif import measure_eif
from tests.support.enclave_home import kernel, run_code, wait_until
from tests.support.nitro_home import IMAGE_MIB, NitroHome, new_nitro_home


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[NitroHome]:
    with new_nitro_home() as home:
        for name, value in home.variables.items():
            monkeypatch.setenv(name, value)
        yield home


@pytest.fixture
def up(home: NitroHome) -> NitroHome:
    code, said = home.up()
    assert code == 0, said + home.run("logs").stdout
    return home


def _pcr0(home: NitroHome) -> str:
    with home.image.open("rb") as stream:
        return measure_eif(stream)[0].hex()


def _nitro_cli(home: NitroHome, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [home.program, *arguments], env=home.environ, capture_output=True, text=True, timeout=60
    )


def _enclaves(home: NitroHome) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(_nitro_cli(home, "describe-enclaves").stdout)
    return found


def _state(home: NitroHome) -> EnclaveState:
    state = read_state(home.runtime / "enclave.json")
    assert state is not None
    return state


def test_up_status_attest_a_notebook_down(home: NitroHome) -> None:
    code, said = home.up("--memory", "1024", "--cpus", "1")
    assert code == 0, said
    assert f"PCR0 {_pcr0(home)}" in said
    # Not nitro's hardware, and not labelled as such.
    assert "NOT CONFIDENTIAL (nitro backend, with something in place of its hardware)" in said
    (enclave,) = _enclaves(home)
    assert enclave["MemoryMiB"] == 1024 and enclave["NumberOfCPUs"] == 1
    assert enclave["Flags"] == "NONE" and enclave["State"] == "RUNNING"
    status = home.status()
    assert (status["state"], status["backend"], status["debug"]) == ("up", "nitro", False)
    assert status["pcrs"]["0"] == _pcr0(home)
    assert status["pids"]["enclave"] == enclave["ProcessID"]
    assert home.run("attest").returncode == 0
    with kernel() as (_, client):
        assert run_code(client, "print(6 * 7)") == "42\n"
        # Twice is harmless.
        code, said = home.up()
        assert code == 0 and "was up already" in said
        assert home.status()["pids"] == status["pids"]
        assert run_code(client, "print(_ if False else 'alive')") == "alive\n"
    assert home.run("down").stdout.endswith("The enclave is down.\n")
    assert _enclaves(home) == []
    assert not home.processes()
    assert home.run("down").stdout == "No enclave was up; nothing to do.\n"


def test_a_killed_gateway_keeps_kernels(up: NitroHome) -> None:
    with kernel() as (manager, client):
        run_code(client, "x = 5")
        pids = up.status()["pids"]
        os.kill(pids["gateway"], signal.SIGKILL)
        code, said = up.up(image=False)
        assert code == 0, said
        assert up.status()["pids"]["enclave"] == pids["enclave"]
        assert manager.is_alive()
        client.wait_for_ready(timeout=30)
        assert run_code(client, "print(x)") == "5\n"


def test_memory_is_checked_before_anything_starts(home: NitroHome) -> None:
    code, said = home.up("--memory", "64")
    assert code == 0, said
    home.run("down")
    home.set_allocator(memory_mib=4 * IMAGE_MIB - 1, cpu_count=2)
    code, said = home.up()
    assert code == 1
    assert f"set memory_mib: {4 * IMAGE_MIB} or more there" in said
    home.set_allocator(memory_mib=2048, cpu_count=2)
    for arguments, hint in (
        (("--memory", "4096"), "use --memory 2048"),
        (("--cpus", "4"), "use --cpus 2"),
    ):
        code, said = home.up(*arguments)
        assert code == 1 and hint in said
    home.allocator.unlink()
    code, said = home.up()
    assert code == 1 and "no memory and no CPUs are kept for enclaves here" in said
    assert home.status()["state"] == "down"
    assert not home.processes()


def test_errors_say_what_to_do(home: NitroHome) -> None:
    assert "enclave up --backend nitro --image FILE.eif" in home.up(image=False)[1]
    home.write_image(b"x", other_machine=True)
    assert "build the image for it" in home.up()[1]
    home.image.write_bytes(home.image.read_bytes()[:-1])
    assert "is not an enclave image" in home.up()[1]
    home.image.unlink()
    assert "cannot be read" in home.up()[1]
    home.write_image(b"x")
    home.program.unlink()
    done = home.run("up", "--image", str(home.image), PATH="/usr/bin:/bin")
    assert "dnf install aws-nitro-enclaves-cli" in done.stderr
    assert done.stderr.count("\n") == 1
    assert home.up("--no-gateway")[0] == 2
    local = home.run("up", "--backend", "local", "--debug-mode")
    assert local.returncode == 1 and "the local backend runs no image" in local.stderr


def test_nitro_clis_own_refusals_are_explained(home: NitroHome) -> None:
    other = _nitro_cli(
        home,
        *("run-enclave", "--eif-path", str(home.image), "--memory", "1536", "--cpu-count", "1"),
    )
    assert other.returncode == 0, other.stderr
    try:
        code, said = home.up("--memory", "1024", "--cpus", "1")
        assert code == 1
        assert "nitro-cli run-enclave failed (E27, Insufficient memory available" in said
        assert "another enclave may have it" in said
        # Somebody else's enclave is left alone, also by `down`.
        assert home.status()["state"] == "down"
        assert home.run("down").returncode == 0
        assert len(_enclaves(home)) == 1
        code, said = home.up("--memory", "512", "--cpus", "1", "--cid", "16")
        assert code == 1 and "E33" in said and "nitro-cli explain --error-code E33" in said
        code, said = home.up("--memory", "512", "--cpus", "1")
        assert code == 0, said
        assert home.run("down").returncode == 0
        assert len(_enclaves(home)) == 1
    finally:
        _nitro_cli(home, "terminate-enclave", "--all")


def test_another_image_than_expected_is_not_trusted(home: NitroHome) -> None:
    code, said = home.up("--expect-pcr0", "ab" * 48)
    assert code == 1 and "PCR0" in said
    assert not home.processes()
    code, said = home.up("--expect-pcr0", str(home.image))
    assert code == 0, said


@pytest.mark.parametrize("pinned", [False, True])
def test_debug_mode(home: NitroHome, pinned: bool) -> None:
    if pinned:
        code, said = home.up("--debug-mode", "--expect-pcr0", str(home.image))
        assert code == 1
        assert "in debug mode it proves none" in said
        assert _enclaves(home) == []
        return
    code, said = home.up("--debug-mode")
    assert code == 0, said
    assert "DEBUG MODE, NOT CONFIDENTIAL: root on this machine reads" in said
    assert f"PCR0 {'0' * 96}" in said
    shown = home.run("status").stdout
    assert "DEBUG MODE, NOT CONFIDENTIAL" in shown
    status = home.status()
    assert status["debug"] is True and status["confidential"] is False
    assert status["warning"].startswith("DEBUG MODE")
    attested = json.loads(home.run("attest", "--json").stdout)
    assert attested["confidential"] is False
    assert next(c for c in attested["checks"] if c["name"] == "debug mode")["found"].startswith(
        "ON"
    )
    # The console is in the logs.
    assert wait_until(lambda: "console    " in home.run("logs").stdout)
    assert wait_until(lambda: "listening on" in home.run("logs").stdout)
    # As soon as a PCR is expected, it is not trusted any more.
    code, said = home.up("--expect-pcr0", str(home.image))
    assert code == 1 and "debug mode" in said
    assert home.run("down").returncode == 0
    assert not home.processes()


def test_no_console_without_debug_mode(up: NitroHome) -> None:
    (enclave,) = _enclaves(up)
    refused = _nitro_cli(up, "console", "--enclave-id", str(enclave["EnclaveID"]))
    assert refused.returncode == 44 and "[ E44 ]" in refused.stderr
    assert "console    " not in up.run("logs").stdout


def test_an_enclave_that_nobody_asked_to_be_in_debug_mode(home: NitroHome) -> None:
    """A nitro-cli that adds the flag: root's, for instance, to read the console."""
    adds = "sys.argv[1:2] == ['run-enclave'] and sys.argv.append('--debug-mode')\nmain()\n"
    home.program.write_text(home.program.read_text().replace("main()\n", adds))
    code, said = home.up()
    assert code == 1
    assert "nitro-cli started the enclave with flags DEBUG_MODE" in said
    assert not home.processes()


def test_state_of_a_dead_machine(home: NitroHome) -> None:
    """After a power failure: ids and pids of the state file may be somebody else's now."""
    assert home.up("--memory", "512", "--cpus", "1")[0] == 0
    state = _state(home)
    assert state.machine is not None
    home.run("down")
    other = subprocess.Popen(["sleep", "60"])
    try:
        # A stranger's enclave has the id and the CID, and another process the pid.
        stranger = _nitro_cli(
            home,
            *("run-enclave", "--eif-path", str(home.image), "--memory", "512"),
            *("--cpu-count", "1", "--enclave-name", "strangers"),
        )
        started = json.loads(stranger.stdout)
        pid = ProcessIdentity(other.pid, ProcessIdentity.of(other.pid).start_ticks - 1)
        stale = msgspec.structs.replace(
            state,
            processes={"enclave": pid, "gateway": pid},
            machine=msgspec.structs.replace(
                state.machine, enclave_id=started["EnclaveID"], cid=started["EnclaveCID"]
            ),
        )
        write_state(home.runtime / "enclave.json", stale)
        assert home.status()["state"] == "broken"
        code, said = home.up("--memory", "512", "--cpus", "1")
        assert code == 0, said
        assert {entry["EnclaveName"] for entry in _enclaves(home)} > {"strangers"}
        assert home.run("down").returncode == 0
        # As well for an `up` that was killed before it knew more than the name.
        write_state(
            home.runtime / "enclave.json", msgspec.structs.replace(stale, processes={}, endpoint="")
        )
        assert home.run("down").returncode == 0
        assert [entry["EnclaveName"] for entry in _enclaves(home)] == ["strangers"]
        assert other.poll() is None
        assert not (home.runtime / "enclave.json").exists()
    finally:
        _nitro_cli(home, "terminate-enclave", "--all")
        other.kill()
        other.wait()


def test_up_that_was_killed_while_the_enclave_booted(home: NitroHome) -> None:
    with subprocess.Popen(
        home.command("up", "--image", str(home.image)), env=home.environ, stdout=subprocess.DEVNULL
    ) as up:
        assert wait_until(lambda: bool(_enclaves(home)), 30)
        up.kill()
    assert home.run("down").returncode == 0
    assert wait_until(lambda: not home.processes(), 5), home.processes()
    assert _enclaves(home) == []


def test_an_interrupted_up_leaves_nothing(home: NitroHome) -> None:
    with subprocess.Popen(
        home.command("up", "--image", str(home.image)),
        env=home.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as up:
        assert wait_until(lambda: any("software_nsm" in one for one in home.processes().values()))
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
        assert up.returncode != 0
    assert not home.processes()
    assert home.status()["state"] == "down"


def test_wait_ends_with_the_enclave(home: NitroHome) -> None:
    command = home.command("up", "--image", str(home.image), "--wait")
    for kill in (True, False):
        with subprocess.Popen(
            command, env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as up:
            came_up = wait_until(
                lambda: up.poll() is not None or home.status()["state"] == "up", 30
            )
            assert came_up and up.poll() is None, up.communicate(timeout=30)
            if kill:
                os.kill(home.status()["pids"]["enclave"], signal.SIGKILL)
            else:
                up.send_signal(signal.SIGTERM)
            _, stderr = up.communicate(timeout=30)
        assert up.returncode == (1 if kill else 0), stderr
        assert ("the enclave has ended" in stderr) is kill
    assert not home.processes()


def test_a_notebook_starts_no_nitro_enclave(home: NitroHome, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="a notebook starts none on backend 'nitro'"), kernel():
        pass
