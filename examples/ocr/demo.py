"""The whole way in one command: from an encrypted package to a notebook's result.

`make demo` runs this after it has made the virtual environment; `make lab` opens the notebook
in JupyterLab instead. It uses an enclave of its own, so one that is already up is not touched.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from children import ChildFailedError, Children, StoppedError
from images import write_images
from rich.console import Console

from enclave_infra.local_cloud.identities import (
    HOST_ACCESS_KEY_ID,
    IDENTITIES,
    OWNER_ACCESS_KEY_ID,
    REGION,
)

OWNER = IDENTITIES[OWNER_ACCESS_KEY_ID]
HOST = IDENTITIES[HOST_ACCESS_KEY_ID]
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
NOTEBOOK = "ocr.ipynb"
EXECUTED = "ocr-executed.ipynb"


class Demo:
    """The five steps; each prints one line when it is done.

    Args:
        children: Runs the commands.
        console: Where the lines go.
        work: The user's folder: notebook, images, encrypted package, results.
        runtime: Directory of this demo's enclave and everything temporary.
    """

    def __init__(self, children: Children, console: Console, work: Path, runtime: Path) -> None:
        self._children = children
        self._console = console
        self._work = work
        self._runtime = runtime
        self._env = environment(runtime)
        self._brought_up = False
        self._begin = time.monotonic()
        self.step = 1

    def announce_environment(self) -> None:
        """Say what `make` has prepared."""
        self._console.print(f"[green]✓[/] [bold]1/5[/] virtual environment: {shown(BIN.parent)}")

    def bring_up(self) -> dict[str, Any]:
        """Start the local enclave and return its status."""
        with self._doing(2, "starting the local enclave"):
            self._brought_up = True
            self._run("enclave", "up", "--backend", "local")
            status: dict[str, Any] = json.loads(self._run("enclave", "status", "--json"))
        self._done(f"enclave: up, PCR0 {status['pcrs']['0'][:16]}...")
        self._console.print("      [bold red]NOT CONFIDENTIAL (local backend, for development)[/]")
        return status

    def publish(self, *, pcr0: str, endpoint_url: str) -> None:
        """As the owner: a KMS key that is released to `pcr0` only, and the encrypted package."""
        with self._doing(3, "the owner creates a key and puts the package together"):
            key_arn = create_key(endpoint_url)
            policy = ("key-policy", "-k", key_arn, "--pcr0", pcr0)
            at = ("--region", REGION, "--endpoint-url", endpoint_url)
            self._owner(*policy, "--principal", HOST.role_arn, "--narrow", "--apply", *at)
            package = ROOT / ".cache" / "ocr" / "package"
            self._run(sys.executable, HERE / "build_package.py", "--output", package)
            signing_key = self._runtime / "publisher.key"
            self._owner("keygen", "-o", signing_key)
        # Not under a status line from here on: these print themselves.
        self._owner(*policy, "--check", *at, terminal=True)
        output = self._work / "ocr-1.0.0.encrypted"
        output.unlink(missing_ok=True)
        package_and_key = ("-d", package, "-k", key_arn)
        signed = ("--sign-with", signing_key)
        self._owner("encrypt", *package_and_key, *signed, "-o", output, *at, terminal=True)
        size = f"{output.stat().st_size / 1e6:.1f} MB"
        self._done(f"owner: RapidOCR encrypted to {output.name}, {size}")

    def lay_out(self, *, keep_notebook: bool) -> None:
        """As the user: put images and notebook into the folder."""
        write_images(self._work / "images")
        notebook = self._work / NOTEBOOK
        if not (keep_notebook and notebook.exists()):
            shutil.copyfile(HERE / NOTEBOOK, notebook)

    def execute(self) -> None:
        """As the user: run the notebook with kernel `enclave`, and render it as HTML."""
        notebook, executed = self._work / NOTEBOOK, self._work / EXECUTED
        convert = ("nbconvert", "--log-level", "WARN", "--to")
        with self._doing(4, "the user runs the notebook"):
            self._run("jupyter", *convert, "notebook", "--execute", notebook, "--output", EXECUTED)
            self._run("jupyter", *convert, "html", executed)
        self._done("user: notebook executed by jupyter nbconvert, kernel enclave")
        for path in (executed, executed.with_suffix(".html")):
            self._console.print(f"      {shown(path)}", style="bold")

    def serve_lab(self) -> None:
        """As the user: JupyterLab on the notebook, until a signal arrives."""
        self._begin = time.monotonic()
        self.step = 4
        command = [str(BIN / "jupyter"), "lab", NOTEBOOK, "--ServerApp.ip=127.0.0.1"]
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            command.append("--no-browser")
        if os.geteuid() == 0:
            command.append("--allow-root")
        self._children.run(
            command,
            env=self._env,
            cwd=self._work,
            timeout_s=float("inf"),
            until=self._print_lab_url,
        )

    def _print_lab_url(self) -> bool:
        """Print where JupyterLab listens, once it has written that down; True when done."""
        for file in (self._runtime / "jupyter").glob("jpserver-*.json"):
            try:
                server = json.loads(file.read_bytes())
            except ValueError:
                return False  # it is being written
            self._done("user: JupyterLab has the notebook open, kernel enclave; Ctrl-C ends both")
            url = f"{server['url']}lab/tree/{NOTEBOOK}?token={server['token']}"
            self._console.print(f"      {url}", style="bold", soft_wrap=True)
            return True
        return False

    def end(self, *, failed: bool) -> None:
        """Stop everything that was started and remove what was temporary.

        Args:
            failed: A step did: what the enclave logged is kept in the demo's log.

        Raises:
            ChildFailedError: Something had to be ended by force.
        """
        self._children.begin_end()
        failure = ""
        with self._doing(5, "stopping everything"):
            if self._brought_up:
                if failed:
                    with suppress(ChildFailedError):
                        self._run("enclave", "logs", timeout_s=10)
                try:
                    self._run("enclave", "down", timeout_s=60)
                except ChildFailedError as error:
                    failure = str(error)
            forced = self._children.end_all()
            shutil.rmtree(self._runtime)
        if failure or forced:
            raise ChildFailedError(failure or f"{forced} processes had to be ended by force")
        self._done("everything that was started is stopped")

    @contextmanager
    def _doing(self, step: int, what: str) -> Iterator[None]:
        """Begin `step`, and on a terminal show `what` while the block runs."""
        self.step = step
        self._begin = time.monotonic()
        with self._console.status(f"{step}/5 {what} ..."):
            yield

    def _done(self, what: str) -> None:
        """Print the line of the step that just ended well."""
        took = time.monotonic() - self._begin
        line = f"[green]✓[/] [bold]{self.step}/5[/] {what} [dim]({took:.1f} s)[/]"
        self._console.print(line, soft_wrap=True)

    def _owner(self, *arguments: str | Path, terminal: bool = False) -> str:
        """Run `enclave-owner` with the owner's credentials; see `Children.run`."""
        argv = [str(BIN / "enclave-owner"), *map(str, arguments)]
        return self._children.run(argv, env={**self._env, **owner_credentials()}, terminal=terminal)

    def _run(self, command: str, *arguments: str | Path, timeout_s: float = 600) -> str:
        """Run a command of the virtual environment; what it prints goes to the log."""
        argv = [str(BIN / command), *map(str, arguments)]
        return self._children.run(argv, env=self._env, timeout_s=timeout_s)


def shown(path: Path) -> Path:
    """Return `path` as people would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def create_key(endpoint_url: str) -> str:
    """Create a KMS key as the owner, with KMS's default policy, and return its ARN."""
    kms = boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=OWNER.access_key_id,
        aws_secret_access_key=OWNER.secret_access_key,
        config=Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2}),
    )
    created = kms.create_key(Description="data keys of the ocr package")
    arn: str = created["KeyMetadata"]["Arn"]
    return arn


def environment(runtime: Path) -> dict[str, str]:
    """Return the environment of the demo's commands: the user's, with nothing of their AWS."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # Jupyter and pip write temporary files: below `runtime` they go when the demo ends.
    temporary = runtime / "tmp"
    temporary.mkdir()
    return env | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ENCLAVE_RUNTIME_DIR": str(runtime / "enclave"),
        "JUPYTER_RUNTIME_DIR": str(runtime / "jupyter"),
        "PATH": f"{BIN}{os.pathsep}{env.get('PATH', os.defpath)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
    }


def owner_credentials() -> Mapping[str, str]:
    """Return the owner's identity in the local cloud, as environment variables."""
    return {
        "AWS_ACCESS_KEY_ID": OWNER.access_key_id,
        "AWS_SECRET_ACCESS_KEY": OWNER.secret_access_key,
    }


def run(demo: Demo, *, lab: bool) -> None:
    """Take the steps up to the result; `Demo.end` is the caller's to call, whatever happens."""
    demo.announce_environment()
    status = demo.bring_up()
    demo.publish(pcr0=status["pcrs"]["0"], endpoint_url=status["kms_endpoint_url"])
    demo.lay_out(keep_notebook=lab)
    if lab:
        demo.serve_lab()
    else:
        demo.execute()


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lab", action="store_true", help="open the notebook in JupyterLab")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: demo-output[/lab]")
    arguments = parser.parse_args()
    # The notebook's process has a user id of its own where that is possible: it has to read these.
    os.umask(0o022)
    default = ROOT / "demo-output" / ("lab" if arguments.lab else "")
    work = (arguments.output or default).absolute()
    work.mkdir(parents=True, exist_ok=True)
    log = work / "demo.log"
    console = Console(highlight=False)
    children = Children(log)
    demo = Demo(children, console, work, Path(tempfile.mkdtemp(prefix="enclave-demo-", dir="/tmp")))
    code = 0
    try:
        run(demo, lab=arguments.lab)
    except StoppedError as stopped:
        in_lab = arguments.lab and demo.step == 4
        code = 0 if in_lab else 128 + stopped.signal_number
        if not in_lab:
            console.print(f"[yellow]✗ {demo.step}/5 {stopped}[/]")
    except (ChildFailedError, BotoCoreError, ClientError, OSError, ValueError) as error:
        code = fail(console, demo, error, log)
    try:
        demo.end(failed=code == 1)
    except (ChildFailedError, OSError) as error:
        code = fail(console, demo, error, log)
    return code


def fail(console: Console, demo: Demo, error: Exception, log: Path) -> int:
    """Say in one line which step failed and why; returns the exit code."""
    line = f"✗ {demo.step}/5 {error}; the log is {shown(log)}"
    console.print(" ".join(line.split()), style="red", markup=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
