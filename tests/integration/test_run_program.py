"""A compiled program of a package, as `enclave run` and `%run_encrypted` run it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel, wait_until
from tests.support.notebook_cells import run_cell
from tests.support.package_owner import PackageOwner, open_folder
from tests.support.run_desk import Desk

_SOURCE = r"""
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static volatile sig_atomic_t interrupted;
static void note(int number) { interrupted = number; }
int main(int argc, char **argv, char **envp) {
    if (argc > 1 && !strcmp(argv[1], "walls")) {
        char *empty[] = {"/bin/true", NULL};
        execve("/bin/true", empty, empty);
        printf("exec %d\n", errno == EPERM);
        printf("socket %d\n", socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
        int open = 0;
        for (int number = 3; number < 1000; number++) open += fcntl(number, F_GETFD) >= 0;
        printf("descriptors %d\n", open);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "wait")) {
        signal(SIGINT, note);
        printf("waiting\n");
        while (!interrupted) pause();
        printf("interrupted\n");
        return 9;
    }
    if (argc > 1 && !strcmp(argv[1], "crash")) abort();
    FILE *model = fopen("model.txt", "r"), *data = fopen(argv[1], "r");
    int factor = 0, value = 0;
    if (!model || !data || fscanf(model, "%d", &factor) != 1 || fscanf(data, "%d", &value) != 1)
        return 4;
    char path[4096];
    snprintf(path, sizeof path, "%s/result.txt", argv[3]);
    FILE *result = fopen(path, "w");
    fprintf(result, "%d", factor * value);
    printf("%s of %s, MODE %s\x1b[2J\n", argv[0], argv[1], getenv("MODE"));
    fprintf(stderr, "careful\n");
    exit(5);
}
"""
_MANIFEST = """
[package]
name = "compiled"
version = "1.0"
[policy]
native = true
[scripts]
tool = { file = "bin/tool.so", output = "all", env = ["MODE"] }
quiet = { file = "quiet.so", output = "none" }
nothing = { file = "nothing.so" }
"""


@pytest.fixture(scope="module")
def desk(enclave: EnclaveHome) -> Iterator[Desk]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        desk = Desk(enclave, folder, owner, owner.new_key(status["pcrs"]["0"]))
        built = {}
        for name, source in (("tool", _SOURCE), ("nothing", "int other(void) { return 0; }")):
            (folder / "x.c").write_text("#include <fcntl.h>\n" + source)
            command = [
                compiler,
                "-shared",
                "-fPIC",
                "-o",
                str(folder / "x.so"),
                str(folder / "x.c"),
            ]
            subprocess.run(command, check=True)
            built[name] = (folder / "x.so").read_bytes()
            (folder / "x.c").unlink()
            (folder / "x.so").unlink()
        desk.encrypt(
            "application",
            {
                "enclave.toml": _MANIFEST,
                "model.txt": "6",
                "bin/tool.so": built["tool"],
                "quiet.so": built["tool"],
                "nothing.so": built["nothing"],
            },
        )
        (folder / "value.txt").write_text("7")
        yield desk


def test_it_runs_like_a_script(desk: Desk) -> None:
    done = desk.run("-s", "tool", "-a", "/value.txt -o /output", "--env", "MODE=fast")
    assert done.returncode == 5, done.stderr
    assert done.stdout == "bin/tool.so of /value.txt, MODE fast\n"
    assert "careful\n" in done.stderr and "tool.so ended with exit code 5" in done.stderr
    assert (desk.folder / "output" / "result.txt").read_text() == "42"
    quiet = desk.run("-s", "quiet.so", "-a", "/value.txt -o /output")
    assert (quiet.returncode, quiet.stdout) == (5, "")
    assert "careful" not in quiet.stderr
    assert desk.is_clean()


def test_its_walls_are_the_vaults(desk: Desk) -> None:
    done = desk.run("-s", "tool", "-a", "walls")
    root = os.geteuid() == 0
    assert done.stdout == "exec 1\nsocket 1\ndescriptors 0\n" or not root, done.stderr


def test_how_it_ends(desk: Desk) -> None:
    assert desk.run("-s", "tool", "-a", "crash").returncode == 128 + signal.SIGABRT
    assert desk.run("-s", "nothing").returncode == 127
    process = desk.start("-s", "tool", "-a", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=20)
    assert (process.returncode, printed) == (9, "interrupted\n"), errors
    stopped = desk.run("-s", "tool", "-a", "wait", "--timeout", "1")
    assert stopped.returncode == 124 and "interrupted" in stopped.stdout
    assert wait_until(desk.is_clean)


def test_in_a_notebook(desk: Desk) -> None:
    (desk.folder / "value.txt").write_text("8")
    with kernel(cwd=str(desk.folder)) as (_, client):
        line = "%run_encrypted application.encrypted tool /value.txt -o /output"
        cell = run_cell(client, line, 60)
        assert cell.error is not None and "exit code 5" in cell.error.traceback[0]
        assert "careful" in cell.printed
    assert Path(desk.folder / "output" / "result.txt").read_text() == "48"
