"""`enclave-owner` as its owner runs it: a process, a real KMS on loopback, exit codes and lines."""

import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_protocol.package_archive import FileData, FileStart
from enclave_protocol.package_reader import read_package
from tests.support.moto_kms import CREDENTIALS, REGION, MotoKms, refusing_kms, running_moto_kms

COMMAND = [sys.executable, "-c", "from enclave_encryption.cli import main; main()"]
NO_CREDENTIALS = {
    "PATH": os.environ["PATH"],
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "COLUMNS": "200",
}
ENVIRONMENT = {**NO_CREDENTIALS, **CREDENTIALS}


@pytest.fixture(scope="module")
def kms() -> Iterator[MotoKms]:
    with running_moto_kms() as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "credit-scorer"
    (folder / "data").mkdir(parents=True)
    (folder / "credit_scorer.py").write_text(
        '"""Scores applicants."""\n\n'
        "def score(applicants, *, threshold=0.5):\n"
        '    """Score a table."""\n'
        "    return applicants\n"
    )
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "data/weights.bin").write_bytes(bytes(range(256)) * 4000)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/x.pyc").write_bytes(b"left out")
    return folder


def run(
    *arguments: str | Path, cwd: Path, environment: dict[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], message: str, lines: int = 1) -> None:
    assert result.returncode == 1, result
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == lines, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def encrypt(kms: MotoKms, source: Path, *more: str | Path, key: str | None = None) -> list[str]:
    return [
        "encrypt", "-d", str(source), "-k", key or kms.key_arn,
        "--endpoint-url", kms.endpoint_url, *map(str, more),
    ]  # fmt: skip


def opened(kms: MotoKms, path: Path) -> dict[str, tuple[bytes, bool]]:
    files: dict[str, tuple[bytes, bool]] = {}
    name = ""
    for event in read_package(
        io.BytesIO(path.read_bytes()), lambda h: kms.unwrap(h.wrapped_key, h.encryption_context)
    ):
        if isinstance(event, FileStart):
            name = event.path
            files[name] = b"", event.executable
        elif isinstance(event, FileData):
            files[name] = files[name][0] + event.data, files[name][1]
    return files


def test_init_encrypt_inspect_open(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    assert run("init", source, cwd=tmp_path).returncode == 0
    manifest = (source / "enclave.toml").read_text()
    key = (source / "incidents.key").read_text()
    assert len(bytes.fromhex(key)) == 32
    assert 'score = "score(applicants, *, threshold=0.5)"' in manifest
    refused(run("init", source, cwd=tmp_path), "--force")
    assert run("init", source, "--force", cwd=tmp_path).returncode == 0
    # Ids of packages that are out are looked up with it.
    assert (source / "incidents.key").read_text() == key

    more = ("--region", REGION)
    result = run(*encrypt(kms, source, *more, key="alias/packages"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    path = tmp_path / "credit-scorer-0.0.0.encrypted"
    assert kms.key_arn in result.stdout and path.name in result.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert leftovers(tmp_path) == ["credit-scorer", path.name]

    files = opened(kms, path)
    assert sorted(files) == [
        "credit_scorer.py",
        "data/weights.bin",
        "enclave.toml",
        "incidents.key",
        "run.sh",
    ]
    for name, (data, executable) in files.items():
        assert data == (source / name).read_bytes()
        assert executable == (name == "run.sh")

    shown = run("inspect", path, cwd=tmp_path, environment=NO_CREDENTIALS)
    assert shown.returncode == 0
    for text in ("credit-scorer 0.0.0", "threshold=0.5", kms.key_arn, "Score a table."):
        assert text in shown.stdout
    document = json.loads(run("inspect", path, "--json", cwd=tmp_path).stdout)
    assert document["kms_key_arn"] == kms.key_arn
    assert document["encryption_context"]["package"] == "credit-scorer"
    assert document["verified"] is False


def test_umask_and_replacement(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.encrypted"
    target.write_text("old")
    command = [*COMMAND, *encrypt(kms, source, "-o", target)]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, umask=0o077)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert opened(kms, target)


def test_same_directory_gives_same_archive_but_fresh_keys(
    kms: MotoKms, source: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        os.utime(source / "run.sh", (1, 1 if name == "a" else 2))
        assert run(*encrypt(kms, source, "-o", name), cwd=tmp_path).returncode == 0
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first != second
    assert opened(kms, tmp_path / "a") == opened(kms, tmp_path / "b")


def test_links_devices_sockets_are_all_named(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    (source / "link.py").symlink_to("credit_scorer.py")
    (source / "data/loop").symlink_to(source, target_is_directory=True)
    os.mkfifo(source / "fifo")
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    (source / "bad\\name").write_text("")
    # The endpoint does not exist: it must not even be asked.
    command = encrypt(MotoKms("http://127.0.0.1:9", kms.key_id, kms.key_arn), source)
    result = run(*command, cwd=tmp_path)
    refused(result, "link.py: is a symbolic link", lines=5)
    for text in (
        "data/loop: is a symbolic",
        "fifo: is a FIFO",
        "socket: is a socket",
        "bad\\\\name",
    ):
        assert text in result.stderr
    assert leftovers(tmp_path) == ["credit-scorer"]


def test_misspelt_manifest_and_missing_export(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    manifest = source / "enclave.toml"
    manifest.write_text("[polcy]\n")
    refused(run(*encrypt(kms, source), cwd=tmp_path), "did you mean 'policy'?")
    manifest.write_text('[exports]\nfunctions = { scoer = "scoer(a)" }\n')
    refused(run(*encrypt(kms, source), cwd=tmp_path), "did you mean 'score'?")
    assert leftovers(tmp_path) == ["credit-scorer"]


def test_expired_package_is_refused(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    manifest = source / "enclave.toml"
    manifest.write_text("[policy]\nexpires = 2020-01-01T00:00:00Z\n")
    # The endpoint does not exist: it must not even be asked.
    command = encrypt(MotoKms("http://127.0.0.1:9", kms.key_id, kms.key_arn), source)
    refused(run(*command, cwd=tmp_path), "expires is 2020-01-01T00:00:00+00:00, which is past")
    assert leftovers(tmp_path) == ["credit-scorer"]
    manifest.write_text('[policy]\nexpires = "2999-01-01T00:00:00Z"\nmax_calls = 1000\n')
    assert run(*encrypt(kms, source), cwd=tmp_path).returncode == 0
    shown = run("inspect", "credit-scorer-0.0.0.encrypted", cwd=tmp_path).stdout
    assert "2999-01-01T00:00:00Z (in 3" in shown
    assert "at most 1,000 calls each time it is loaded" in shown


CARELESS = """\
def score(applicants, rule):
    return applicants.query(rule)
"""


def test_warnings_are_on_the_owners_screen_only(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    (source / "credit_scorer.py").write_text(CARELESS)
    warning = (
        "enclave-owner: warning: credit_scorer.py:2: applicants.query() evaluates, as code, text "
        "from the user (rule of score()); look the operation up"
    )
    result = run("init", source, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.startswith(warning)
    assert result.stdout.startswith("Wrote ")

    result = run(*encrypt(kms, source), cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.startswith(warning)
    assert len(result.stderr.splitlines()) == 2
    path = tmp_path / "credit-scorer-0.0.0.encrypted"
    assert result.stdout.startswith("Wrote ") and "warning" not in result.stdout
    # What the owner was told is in no part of what is published.
    shown = run("inspect", path, "--json", cwd=tmp_path).stdout
    assert "warning" not in shown and "credit_scorer.py" not in shown


def test_strict_takes_warnings_for_errors(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    module = source / "credit_scorer.py"
    module.write_text(CARELESS)
    (source / "enclave.toml").write_text(
        '[exports]\nfunctions = { score = "score(applicants, rule)" }\n'
        '[policy]\nerrors = ["KeyError"]\n'
    )
    # The endpoint does not exist: it must not even be asked.
    nowhere = MotoKms("http://127.0.0.1:9", kms.key_id, kms.key_arn)
    result = run(*encrypt(nowhere, source, "--strict"), cwd=tmp_path)
    refused(result, "--strict: warnings are errors; nothing was written", lines=4)
    assert "warning: credit_scorer.py:2: " in result.stderr
    assert "warning: enclave.toml:4: users read the message of every KeyError" in result.stderr
    assert leftovers(tmp_path) == ["credit-scorer"]

    module.write_text(CARELESS.replace("(rule)", "(rule)  # enclave: allow eval"))
    text = (source / "enclave.toml").read_text()
    (source / "enclave.toml").write_text(text.replace('"]\n', '"] # enclave: allow errors\n'))
    result = run(*encrypt(kms, source, "--strict"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_output_inside_the_directory(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    message = "inside the directory to be encrypted"
    refused(run(*encrypt(kms, source, "-o", source / "x"), cwd=tmp_path), message)
    refused(run(*encrypt(kms, source, "-o", "data/x"), cwd=source), message)
    (tmp_path / "alias").symlink_to(source)
    refused(run(*encrypt(kms, source, "-o", "alias/x"), cwd=tmp_path), message)
    refused(run(*encrypt(kms, source), cwd=source), message)
    refused(run(*encrypt(kms, source, "-o", "no/x"), cwd=tmp_path), "no such directory")
    refused(run(*encrypt(kms, source, "-o", tmp_path), cwd=tmp_path), "directory")


def test_kms_errors_are_one_line(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    region = ("--region", REGION)
    missing = run(*encrypt(kms, source, *region, key="1234"), cwd=tmp_path)
    refused(missing, "there is no key 1234 in eu-central-1")
    refused(run(*encrypt(kms, source, key="alias/packages"), cwd=tmp_path), "no AWS region")
    command = encrypt(kms, source)
    nobody = run(*command, cwd=tmp_path, environment=NO_CREDENTIALS)
    refused(nobody, "no AWS credentials")
    command[command.index(kms.endpoint_url)] = "http://127.0.0.1:9"
    refused(run(*command, cwd=tmp_path), "http://127.0.0.1:9/ is not reachable")
    command[-1] = "not a url"
    refused(run(*command, cwd=tmp_path), "not a url")
    refused(run("encrypt", "-d", tmp_path / "no", "-k", "x", cwd=tmp_path), "no such directory")
    refused(run("encrypt", "-d", __file__, "-k", "x", cwd=tmp_path), "not a directory")
    assert leftovers(tmp_path) == ["credit-scorer"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AccessDeniedException", "these credentials may not use key"),
        ("DisabledException", "is disabled"),
        ("KMSInvalidStateException", "to be deleted"),
        ("ExpiredTokenException", "log in again"),
        ("UnrecognizedClientException", "log in again"),
        ("SomethingNewException", "KMS refused with SomethingNewException: two lines"),
    ],
)
def test_refusals_are_one_line(
    kms: MotoKms, source: Path, tmp_path: Path, code: str, message: str
) -> None:
    with refusing_kms(code, "two\nlines") as url:
        command = encrypt(MotoKms(url, kms.key_id, kms.key_arn), source)
        refused(run(*command, cwd=tmp_path), message)
    assert leftovers(tmp_path) == ["credit-scorer"]


def test_full_disk_leaves_nothing(kms: MotoKms, source: Path, tmp_path: Path) -> None:
    # A file-size limit fails a write in its middle, as a full disk does.
    result = subprocess.run(
        [*COMMAND, *encrypt(kms, source)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    refused(result, "give -o another place")
    assert leftovers(tmp_path) == ["credit-scorer"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(
    kms: MotoKms, source: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    with (source / "data/large.bin").open("wb") as large:
        large.truncate(4 * 2**30)  # sparse: reading it takes long enough, disk it needs none
    target = tmp_path / "out"
    target.mkdir()
    process = subprocess.Popen(
        [*COMMAND, *encrypt(kms, source, "-o", target / "x.encrypted")],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in target.iterdir()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        (temporary,) = target.iterdir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        process.send_signal(stop)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors == "enclave-owner: interrupted; nothing was written\n"
    assert leftovers(target) == []


def test_inspect_refuses_what_is_no_package(source: Path, tmp_path: Path) -> None:
    refused(run("inspect", source / "run.sh", cwd=tmp_path), "run.sh: not an encrypted package")
    refused(run("inspect", "none.encrypted", cwd=tmp_path), "none.encrypted: cannot be read")
    empty = tmp_path / "empty"
    empty.touch()
    refused(run("inspect", empty, cwd=tmp_path), "empty: the file has only 0 bytes")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("inspect", "x", cwd=tmp_path, environment={**ENVIRONMENT, "ENCLAVE_DEBUG": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("command", [[], ["init"], ["encrypt"], ["inspect"]])
def test_help_has_an_example(command: list[str], tmp_path: Path) -> None:
    result = run(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert re.search(r"Example:\n\s+enclave-owner ", result.stdout)
    assert run(*command, "--nonsense", cwd=tmp_path).returncode == 2
