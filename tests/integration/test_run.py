"""`enclave run` through a real local enclave: the AWS sample's command lines, and refusals."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, wait_until
from tests.support.package_owner import PackageOwner, open_folder, write_package
from tests.support.run_desk import Desk, until

# As the AWS sample has it: a script, a model beside it, data in /dataset/, results in /output/.
_ALGORITHM = """
import argparse
import os
import sys
parser = argparse.ArgumentParser()
parser.add_argument("-m", "--model", required=True)
parser.add_argument("-d", "--data", required=True)
parser.add_argument("-o", "--output", required=True)
options = parser.parse_args()
factor = int(open(options.model).read())
print("secret weights in progress", file=sys.stderr)
os.makedirs(os.path.join(options.output, "deep"), exist_ok=True)
for name in sorted(os.listdir(options.data)):
    path = os.path.join(options.data, name)
    if os.path.isfile(path):
        with open(os.path.join(options.output, "deep", name + ".out"), "w") as out:
            out.write(str(int(open(path).read()) * factor))
os.symlink("/etc/passwd", os.path.join(options.output, "link"))
print("read", options.data, "wrote", options.output)
"""
_OTHERS = {
    "exit.py": "import sys; sys.exit(int(sys.argv[1]))",
    "raises.py": "raise ValueError('secret value')",
    "quiet.py": "import sys; print('secret'); print('secret', file=sys.stderr)",
    "streams.py": """
import sys, time
for number in range(3):
    print("out", number)
    print("err", number, file=sys.stderr)
    time.sleep(0.3)
sys.stdout.write("\\x1b]52;c;eA==\\x07\\x1b[2Jno line feed")
""",
    "environ.py": "import os, time; print(sorted(os.environ.items())); print(time.tzname)",
    "sleep.py": "import sys, time; print('asleep', flush=True); time.sleep(float(sys.argv[1]))",
    "stubborn.py": """
import time
print("stubborn", flush=True)
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("ignored", flush=True)
""",
    "saves.py": """
import sys, time
try:
    print("asleep", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1] + "/checkpoint", "w").write("saved")
    sys.exit(3)
""",
    "memory.py": "data = bytearray(300 * 2**20); data[::4096] = bytes(len(data[::4096])); print(1)",
    "crash.py": "import ctypes; ctypes.string_at(0)",
    "plant.py": """
import os, sys
for name in (".bashrc", "good.txt", "conftest.py", "a\\u202eb"):
    try:
        open(os.path.join(sys.argv[2], name), "w").write("x")
    except OSError:
        pass
""",
    "many.py": """
import os, sys
for number in range(300):
    open(f"{sys.argv[2]}/{number}", "w").write("x" * number)
open(f"{sys.argv[2]}/large", "wb").write(os.urandom(2**20) * 40)
""",
    "copies.py": """
import shutil, sys
shutil.copytree(sys.argv[1], sys.argv[3], dirs_exist_ok=True)
""",
    "prints.py": """
import sys
for number in range(int(sys.argv[1])):
    print(number, "x" * 90)
""",
    "arguments.py": "import sys; print(sys.argv[1:])",
}
_TEXT = {name[:-3] for name in _OTHERS} - {"quiet", "streams", "environ"}
_MANIFEST = """
[package]
name = "app"
version = "1.0"
[scripts]
classify = { file = "ml_algorithm.py", output = "text" }
quiet = { file = "quiet.py", output = "none" }
streams = { file = "streams.py", output = "all" }
environ = { file = "environ.py", output = "text", env = ["MODE"] }
""" + "\n".join(f'{name} = {{ file = "{name}.py", output = "text" }}' for name in sorted(_TEXT))


@pytest.fixture(scope="module")
def desk(enclave: EnclaveHome) -> Iterator[Desk]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        desk = Desk(enclave, folder, owner, owner.new_key(status["pcrs"]["0"]))
        desk.encrypt(
            "application",
            {"enclave.toml": _MANIFEST, "ml_algorithm.py": _ALGORITHM, "model.h5": "7", **_OTHERS},
        )
        write_package(folder / "dataset", {"a.txt": "1", "b.txt": "2", "sub/c.txt": "3"})
        (folder / "dataset" / "away.txt").symlink_to("/etc/hostname")
        yield desk


def test_the_samples_command_line(desk: Desk) -> None:
    (desk.folder / "output").mkdir()
    (desk.folder / "output" / "kept.txt").write_text("mine")
    done = desk.run("-s", "ml_algorithm.py", "-a", "-m model.h5 -d /dataset/ -o /output/")
    assert (done.returncode, done.stdout) == (0, "read /dataset/ wrote /output/\n"), done.stderr
    assert "secret" not in done.stderr
    assert "output/deep/a.txt.out" in done.stderr
    output = desk.folder / "output"
    found = {str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir()}
    assert found == {"kept.txt", "deep/a.txt.out", "deep/b.txt.out"}
    assert (output / "deep" / "b.txt.out").read_text() == "14"
    assert desk.is_clean()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("-a", """'a b' "c d" e\\ f -x=1 'it"s'"""), ["a b", "c d", "e f", "-x=1", 'it"s']),
        (("-a", "one", "--", "-o", "two three", "--json"), ["one", "-o", "two three", "--json"]),
        ((), []),
    ],
)
def test_arguments_are_split_as_a_shell_splits_them(
    desk: Desk, arguments: tuple[str, ...], shown: list[str]
) -> None:
    done = desk.run("-s", "arguments", *arguments)
    assert (done.returncode, done.stdout) == (0, f"{shown}\n"), done.stderr


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_scripts_exit_code(desk: Desk, code: int) -> None:
    done = desk.run("-s", "exit.py", "-a", str(code))
    assert (done.returncode, done.stdout) == (code, "")
    assert (f"exit.py ended with exit code {code}" in done.stderr) is (code != 0)


def test_an_exception_is_its_type_and_an_incident(desk: Desk) -> None:
    done = desk.run("-s", "raises.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError" in done.stderr and "incident" in done.stderr
    assert "secret" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_streams_are_apart_live_and_clean(desk: Desk) -> None:
    process = desk.start("-s", "streams.py")
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    assert process.poll() is None, "what it printed came only at its end"
    rest, errors = process.communicate(timeout=60)
    assert first + rest == "out 0\nout 1\nout 2\nno line feed"
    assert errors == "err 0\nerr 1\nerr 2\n"
    # One stream: the order in which they were written.
    both = subprocess.run(
        desk.command("-f", "application.encrypted", "-s", "streams"),
        env=desk.home.environ,
        cwd=desk.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    expected = "".join(f"out {number}\nerr {number}\n" for number in range(3)) + "no line feed"
    assert both.stdout == expected


def test_a_reader_that_leaves_ends_the_run(desk: Desk) -> None:
    process = desk.start("-s", "streams.py")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert wait_until(desk.is_clean)


def test_nothing_that_it_prints_is_left_out(desk: Desk) -> None:
    lines = 200_000
    process = desk.start("-s", "prints", "-a", str(lines))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("0 x")
    # A reader that takes its time.
    time.sleep(1.5)
    for number in range(1, lines):
        assert process.stdout.readline() == f"{number} {'x' * 90}\n"
    assert process.stdout.read() == "" and process.wait(30) == 0
    # One that never reads does not keep the second Ctrl-C away.
    process = desk.start("-s", "prints", "-a", "10000000")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(20) == 130
    process.communicate()
    assert wait_until(desk.is_clean)


def test_output_that_the_owner_does_not_show(desk: Desk) -> None:
    done = desk.run("-s", "quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = desk.run("-s", "ml_algorithm.py", "-a", "--unknown")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "is not shown by its owner" in wrong.stderr


def test_environment(desk: Desk) -> None:
    done = desk.run(
        *("-s", "environ.py", "--env", "MODE=a=b c", "--env", "TZ=Europe/Rome", "--env", "LANG"),
        environ={"LANG": "C.UTF-8", "SECRET_OF_MINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "('MODE', 'a=b c')" in done.stdout and "('TZ', 'Europe/Rome')" in done.stdout
    assert "SECRET_OF_MINE" not in done.stdout and "CEST" in done.stdout


def test_summary_for_scripts(desk: Desk) -> None:
    done = desk.run("-s", "memory", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["exit_code"], summary["script_exit_code"]) == (0, 0, 0)
    assert summary["ended"] == "exit" and summary["package"] == "app 1.0"
    assert 0 < summary["seconds"] < summary["total_seconds"]
    assert done.stderr == "1\n"
    # Without root there are no control groups to measure it.
    measured = os.geteuid() == 0 and Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
    if os.geteuid() != 0 or measured:
        assert summary["peak_memory_bytes"] == (512 * 2**20 if measured else None)
    failed = desk.run("-s", "exit.py", "-a", "9", "--summary", "summary.json")
    assert (failed.returncode, failed.stdout) == (9, "")
    summary = json.loads((desk.folder / "summary.json").read_text())
    assert (summary["exit_code"], summary["script_exit_code"], summary["written"]) == (9, 9, [])
    refused = desk.run("-s", "nothing", "--json")
    summary = json.loads(refused.stdout)
    assert (refused.returncode, summary["ended"], summary["error"]) == (
        *(125, "failed"),
        "NoScriptError",
    )


def test_timeout(desk: Desk) -> None:
    began = time.monotonic()
    done = desk.run("-s", "sleep.py", "-a", "60", "--timeout", "0.5", "--summary", "t.json")
    assert done.returncode == 124, done.stderr
    assert done.stdout == "asleep\n"
    assert "sleep.py ran for more than 0.5 s" in done.stderr
    assert json.loads((desk.folder / "t.json").read_text())["ended"] == "timeout"
    assert time.monotonic() - began < 20
    stubborn = desk.run("-s", "stubborn", "--timeout", "0.5")
    assert (stubborn.returncode, stubborn.stdout) == (124, "stubborn\nignored\n")
    assert desk.is_clean()
    assert desk.run("-s", "exit.py", "-a", "0", "--timeout", "60").returncode == 0


def test_interrupts(desk: Desk) -> None:
    process = desk.start("-s", "sleep.py", "-a", "60")
    until(process, "asleep\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert desk.is_clean()
    # What it writes when it is interrupted comes back.
    process = desk.start("-s", "saves", "-a", "/output/")
    until(process, "asleep\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 3, errors
    assert (desk.folder / "output" / "checkpoint").read_text() == "saved"
    # One that goes on is stopped by the second.
    process = desk.start("-s", "stubborn")
    until(process, "stubborn\n")
    process.send_signal(signal.SIGINT)
    until(process, "ignored\n")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert time.monotonic() - began < 4
    assert desk.is_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing(desk: Desk, number: signal.Signals) -> None:
    process = desk.start("-s", "sleep.py", "-a", "60")
    until(process, "asleep\n")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert wait_until(desk.is_clean)


def test_several_at_once(desk: Desk) -> None:
    arguments = [f"-m model.h5 -d /dataset/ -o /results-{number}/" for number in range(4)]
    processes = [desk.start("-s", "ml_algorithm.py", "-a", text) for text in arguments]
    for number, process in enumerate(processes):
        printed, errors = process.communicate(timeout=90)
        assert (process.returncode, printed) == (
            0,
            f"read /dataset/ wrote /results-{number}/\n",
        ), errors
        assert (desk.folder / f"results-{number}" / "deep" / "a.txt.out").read_text() == "7"
    assert desk.is_clean()


def test_a_script_that_dies(desk: Desk) -> None:
    done = desk.run("-s", "crash.py")
    assert done.returncode == 137
    assert "SIGSEGV" in done.stderr and len(done.stderr.splitlines()) == 1


def test_results_elsewhere_and_in_bulk(desk: Desk, tmp_path: Path) -> None:
    done = desk.run("-s", "many", "-a", "-o /output/", "-o", str(tmp_path / "new" / "place"))
    assert done.returncode == 0, done.stderr
    place = tmp_path / "new" / "place"
    assert len(list(place.iterdir())) == 301
    assert (place / "299").read_text() == "x" * 299
    assert (place / "large").stat().st_size == 40 * 2**20
    assert (place / "1").stat().st_mode & 0o111 == 0
    # The user's files, in the vault and back.
    (desk.folder / "big").mkdir()
    (desk.folder / "big" / "data").write_bytes(bytes(range(256)) * 4096 * 30)
    done = desk.run("-s", "copies", "-a", "/big -o /back")
    assert done.returncode == 0, done.stderr
    big, back = desk.folder / "big" / "data", desk.folder / "back" / "data"
    assert back.read_bytes() == big.read_bytes()
    # Not through a link, which is found before anything runs.
    (desk.folder / "linked").symlink_to(tmp_path)
    done = desk.run("-s", "copies", "-a", "/big -o /linked/")
    assert done.returncode == 125 and "is a link" in done.stderr


def test_names_that_could_run_code_stay_in_the_enclave(desk: Desk) -> None:
    done = desk.run("-s", "plant", "-a", "-o /planted/")
    assert done.returncode == 125
    assert "not written: /planted/.bashrc: its name could run code" in done.stderr
    assert "not written: /planted/conftest.py" in done.stderr
    assert [path.name for path in (desk.folder / "planted").iterdir()] == ["good.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-s", "nothing.py"), "the package has no script 'nothing.py'; it has: "),
        (("-s", "exit", "-a", "'open"), "cannot be split"),
        (("-s", "exit", "-a", "0 /missing/"), "/missing is not in the workspace"),
        (("-s", "exit", "--env", "PYTHONPATH=/x"), "changes the interpreter"),
        (("-s", "exit", "--env", "LD_PRELOAD=x"), "changes the interpreter"),
        (("-s", "exit", "--env", "XLA_FLAGS=--xla_dump_to=/output"), "show what is inside"),
        (("-s", "exit", "--env", "MODE=1"), 'ask the owner for env = ["MODE"]'),
        (("-s", "exit", "--env", "OMP_NUM_THREADS=/x"), "not one that it can have"),
        (("-s", "exit", "--env", "NOT_SET_HERE"), "give NAME=VALUE"),
    ],
)
def test_wrong_inputs_are_one_line_before_anything_starts(
    desk: Desk, arguments: tuple[str, ...], expected: str
) -> None:
    done = desk.run(*arguments)
    assert (done.returncode, done.stdout) == (125, "")
    assert expected in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1


def test_wrong_files(desk: Desk) -> None:
    for name, expected in (
        ("nothing.encrypted", "there are application.encrypted"),
        ("dataset", "is not a file"),
        ("dataset/a.txt", "dataset/a.txt: "),
    ):
        done = desk.run("-s", "exit", file=name)
        assert done.returncode == 125 and expected in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_packages_that_must_not_run(desk: Desk) -> None:
    good = (desk.folder / "application.encrypted").read_bytes()
    bad = desk.folder / "bad.encrypted"
    # In the label, in the body, and at its end.
    for number, spoiled in enumerate(
        (
            good.replace(b'"output":"none"', b'"output":"text"', 1),
            good[:-40] + bytes([good[-40] ^ 1]) + good[-39:],
            good[:-17],
        )
    ):
        bad.write_bytes(spoiled)
        done = desk.run("-s", "arguments", "--json", file="bad.encrypted")
        summary = json.loads(done.stdout)
        assert (done.returncode, summary["script_exit_code"]) == (125, None), number
        assert "bad.encrypted: " in summary["reason"] and summary["seconds"] is None
    assert desk.is_clean()


def test_unsigned_packages_need_a_word(desk: Desk) -> None:
    desk.encrypt("plain", {"say.py": "print('said')\n"})
    done = desk.run("-s", "say.py", file="plain.encrypted")
    assert done.returncode == 125 and "enclave run --unsigned" in done.stderr
    done = desk.run("-s", "say.py", "--unsigned", file="plain.encrypted")
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert "NOT SIGNED" in done.stderr


def test_an_expired_package(desk: Desk) -> None:
    end = int(time.time()) + 4
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    manifest = f'[package]\nname = "old"\nversion = "1"\n[policy]\nexpires = "{soon}"\n'
    script = '[scripts]\nsay = { file = "say.py" }\n'
    desk.encrypt("old", {"enclave.toml": manifest + script, "say.py": "print('said')\n"})
    time.sleep(max(0.0, end + 0.5 - time.time()))
    done = desk.run("-s", "say", file="old.encrypted")
    assert (done.returncode, done.stdout) == (125, "") and "expired" in done.stderr


def test_a_package_that_sees_no_files(desk: Desk) -> None:
    manifest = '[package]\nname = "shut"\nversion = "1"\n[policy]\nworkspace = "none"\n'
    script = '[scripts]\nsay = { file = "say.py" }\n'
    desk.encrypt("shut", {"enclave.toml": manifest + script, "say.py": "print('said')\n"})
    done = desk.run("-s", "say", "-a", "/dataset", file="shut.encrypted")
    assert done.returncode == 125 and "does not let it see your files" in done.stderr
    assert desk.run("-s", "say", file="shut.encrypted").stdout == "said\n"
