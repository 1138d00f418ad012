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
#define _GNU_SOURCE
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
static volatile sig_atomic_t interrupted;
static __thread int own = 20;
static void note(int number) { interrupted = number; }
static void *work(void *of_main) { own = 1; *(int *)of_main += 2; return of_main; }
static int run_written(void) {
    int file = open("/tmp/code", O_RDWR | O_CREAT, 0700);
    int bad = write(file, "code", 4) != 4
        || mmap(NULL, 4, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED;
    int reason = errno;
    close(file);
    errno = reason;
    return bad;
}
int main(int argc, char **argv, char **envp) {
    if (argc > 1 && !strcmp(argv[1], "about")) {
        pthread_t thread;
        void *answer = NULL;
        int option = getopt(argc - 1, argv + 1, "o:");
        pthread_create(&thread, NULL, work, &own);
        pthread_join(thread, &answer);
        char *memory = malloc(64 << 20), deep[4 << 20];
        memset(memory, 1, 64 << 20);
        memset(deep, 1, sizeof deep);
        printf("%s %c %s %d %d %s %d\n", argv[0], option, optarg, own, *(int *)answer,
               (char *)getauxval(AT_EXECFN) ? "named" : "", argv[argc] == NULL);
        return memory[1] + deep[1];
    }
    if (argc > 2 && !strcmp(argv[1], "deep")) {
        volatile char *deep = alloca(atoi(argv[2]));
        deep[0] = 1;
        printf("survived\n");
        return deep[0];
    }
    if (argc > 1 && !strcmp(argv[1], "code")) {
#ifdef __x86_64__
        unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
#else
        unsigned int code[] = {0x52800540, 0xd65f03c0};
        __builtin___clear_cache((char *)code, (char *)(code + 2));
#endif
        return ((int (*)(void))code)();
    }
    if (argc > 1 && !strcmp(argv[1], "walls")) {
        char *empty[] = {"/bin/true", NULL};
        execve("/bin/true", empty, empty);
        printf("exec %d\n", errno == EPERM);
        printf("socket %d\n", socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
        int open = 0;
        for (int number = 3; number < 1000; number++) open += fcntl(number, F_GETFD) >= 0;
        printf("descriptors %d\n", open);
        printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
        printf("filter %d\n", prctl(PR_GET_SECCOMP));
        printf("written code %d\n", run_written() && errno == EPERM);
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
tool = { file = "bin/tool", output = "all", env = ["MODE"] }
quiet = { file = "quiet", output = "none" }
static = { file = "bin/static", output = "all" }
fixed = { file = "bin/fixed", output = "all" }
movable = { file = "bin/movable", output = "all" }
stack = { file = "bin/stack", output = "all" }
foreign = { file = "bin/foreign" }
homeless = { file = "bin/homeless" }
cut = { file = "bin/cut" }
"""
_KINDS = {
    "tool": ["-pie", "-fPIE"],
    "fixed": ["-no-pie", "-fno-pie"],
    "static": ["-static", "-no-pie"],
    "movable": ["-static-pie"],
    "stack": ["-static", "-Wl,-z,execstack"],
    "homeless": ["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"],
}


def compiled(folder: Path, source: str, *flags: str) -> bytes:
    """Return the program that the C compiler makes of `source`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (folder / "x.c").write_text(source)
    command = [compiler, *flags, "-pthread", "-o", str(folder / "x"), str(folder / "x.c")]
    subprocess.run(command, check=True)
    (folder / "x.c").unlink()
    program = (folder / "x").read_bytes()
    (folder / "x").unlink()
    return program


@pytest.fixture(scope="module")
def desk(enclave: EnclaveHome) -> Iterator[Desk]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    with open_folder() as folder:
        desk = Desk(enclave, folder, owner, owner.new_key(status["pcrs"]["0"]))
        built = {name: compiled(folder, _SOURCE, *flags) for name, flags in _KINDS.items()}
        tool = built["tool"]
        # The field e_machine, of the other processor that there are enclaves with.
        other = {b"\x3e": b"\xb7", b"\xb7": b"\x3e"}[tool[18:19]]
        desk.encrypt(
            "application",
            {
                "enclave.toml": _MANIFEST,
                "model.txt": "6",
                "quiet": tool,
                **{f"bin/{name}": program for name, program in built.items()},
                "bin/foreign": tool[:18] + other + tool[19:],
                "bin/cut": tool[:200],
            },
        )
        (folder / "value.txt").write_text("7")
        yield desk


def test_it_runs_like_a_script(desk: Desk) -> None:
    done = desk.run("-s", "tool", "-a", "/value.txt -o /output", "--env", "MODE=fast")
    assert done.returncode == 5, done.stderr
    assert done.stdout == "bin/tool of /value.txt, MODE fast\n"
    assert "careful\n" in done.stderr and "tool ended with exit code 5" in done.stderr
    assert (desk.folder / "output" / "result.txt").read_text() == "42"
    quiet = desk.run("-s", "quiet", "-a", "/value.txt -o /output")
    assert (quiet.returncode, quiet.stdout) == (5, "")
    assert "careful" not in quiet.stderr
    assert desk.is_clean()


@pytest.mark.parametrize("kind", ["tool", "fixed", "static", "movable"])
def test_however_it_is_linked(desk: Desk, kind: str) -> None:
    """With the interpreter's own addresses, too; threads, its thread's data, heap and stack."""
    done = desk.run("-s", kind, "-a", "about -o x")
    assert (done.returncode, done.stdout) == (2, f"bin/{kind} o x 22 22 named 1\n"), done.stderr


def test_its_stack_is_one_of_exec(desk: Desk) -> None:
    """8 MiB, and no step over its end reaches what lies below; with code on it where linked so."""
    # As much again is in the frame of `main`.
    done = desk.run("-s", "tool", "-a", "deep 3900000")
    assert (done.returncode, done.stdout) == (1, "survived\n"), done.stderr
    assert desk.run("-s", "tool", "-a", "deep 4300000").returncode == 128 + signal.SIGSEGV
    assert desk.run("-s", "stack", "-a", "code").returncode == 42
    assert desk.run("-s", "static", "-a", "code").returncode == 128 + signal.SIGSEGV


def test_its_walls_are_the_vaults(desk: Desk) -> None:
    for kind in ("tool", "static"):
        done = desk.run("-s", kind, "-a", "walls")
        walls = "exec 1\nsocket 1\ndescriptors 0\ndumpable 0\nfilter 2\nwritten code 1\n"
        assert done.stdout == walls or os.geteuid() != 0, done.stderr


def test_how_it_ends(desk: Desk) -> None:
    assert desk.run("-s", "tool", "-a", "crash").returncode == 128 + signal.SIGABRT
    process = desk.start("-s", "tool", "-a", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=20)
    assert (process.returncode, printed) == (9, "interrupted\n"), errors
    stopped = desk.run("-s", "tool", "-a", "wait", "--timeout", "1")
    assert stopped.returncode == 124 and "interrupted" in stopped.stdout
    assert wait_until(desk.is_clean)


def test_what_cannot_run_here(desk: Desk) -> None:
    reasons = {
        "foreign": "bin/foreign: is compiled for ",
        "homeless": "bin/homeless: needs the loader 'ld-musl-x86_64.so.1', which the image does",
        "cut": "bin/cut: ends within its table of segments",
    }
    for name, reason in reasons.items():
        done = desk.run("-s", name)
        assert done.returncode == 125 and reason in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


def test_in_a_notebook(desk: Desk) -> None:
    (desk.folder / "value.txt").write_text("8")
    with kernel(cwd=str(desk.folder)) as (_, client):
        line = "%run_encrypted application.encrypted tool /value.txt -o /output"
        cell = run_cell(client, line, 60)
        assert cell.error is not None and "exit code 5" in cell.error.traceback[0]
        assert "careful" in cell.printed
    assert Path(desk.folder / "output" / "result.txt").read_text() == "48"
