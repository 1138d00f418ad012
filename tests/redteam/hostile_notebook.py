"""Adversary U: a notebook in a real enclave whose user types whatever there is to try."""

import ast
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from enclave_protocol.package_header import decode_header
from tests.redteam.canaries import MANIFEST, MarkedPackage, marked_package
from tests.redteam.places import payload
from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.local_services import OWNER_ROLE_ARN, release_policy
from tests.support.notebook_cells import vault_pids
from tests.support.package_owner import PackageOwner, open_folder, write_package
from tests.support.process_ids import kernel_pid
from tests.support.vault_link import payload_pid

__all__ = ["HostileNotebook", "Shown", "hostile_notebook"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TIMEOUT_S = 90.0
_RESULT = "@@result@@"


@dataclass
class Shown:
    """What one cell showed.

    Attributes:
        text: All of it, as a person reads it: printed, displayed, tracebacks.
        error: Class of the exception; "" without one.
        message: Its text.
        mime_types: Of what was displayed.
    """

    text: str = ""
    error: str = ""
    message: str = ""
    mime_types: set[str] = field(default_factory=set)


@dataclass
class HostileNotebook:
    """A kernel with the marked package loaded as `m`.

    Attributes:
        seen: Every message that reached the user, whole.
        folder: The user's working directory, with `marked.encrypted` in it.
        started: When all this began, in seconds of the epoch.
    """

    home: EnclaveHome
    client: BlockingKernelClient
    marked: MarkedPackage
    folder: Path
    started: float
    old_kernel: bool = False
    seen: list[str] = field(default_factory=list)
    pid: int = 0
    vault_pid: int = 0

    def cell(self, code: str) -> Shown:
        """Execute a cell and return what it showed."""
        request = self.client.execute(code, stop_on_error=False)
        shown = Shown()
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            self._keep(message)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                shown.text += content["text"]
            elif kind in ("display_data", "execute_result", "update_display_data"):
                shown.mime_types |= set(content["data"])
                shown.text += "\n".join(map(str, content["data"].values()))
            elif kind == "error":
                shown.error, shown.message = content["ename"], content["evalue"]
                shown.text += _ANSI.sub("", "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            self._keep(reply)
            if reply["parent_header"].get("msg_id") == request:
                return shown

    def ask(self, request: str) -> dict[str, Any]:
        """Return the content of the reply to a request that was sent already."""
        while True:
            reply = self.client.get_shell_msg(timeout=_TIMEOUT_S)
            self._keep(reply)
            if reply["parent_header"].get("msg_id") == request:
                content: dict[str, Any] = reply["content"]
                return content

    def value(self, expression: str) -> Any:
        """Return what an expression is in the notebook: plain data."""
        shown = self.cell(f"print({_RESULT!r} + repr({expression}))")
        assert not shown.error, shown.text
        return ast.literal_eval(shown.text.partition(_RESULT)[2])

    def run(self, attack: Callable[..., Any], *arguments: Any) -> Any:
        """Run an attack in the notebook's process, as a `Place`."""
        source = payload(attack, *arguments)
        run = f"_scope = {{'__name__': 'attack'}}\nexec({source!r}, _scope)"
        shown = self.cell(run)
        assert not shown.error, shown.text
        return self.value("_scope['result']")

    def clean(self, shown: Shown) -> bool:
        """Whether nothing of the package is in what was shown."""
        return not self.marked.found_in_bytes(shown.text + shown.message)

    def _keep(self, message: dict[str, Any]) -> None:
        self.seen.append(json.dumps(message["content"], default=str, ensure_ascii=False))


def _publish(owner: PackageOwner, pcr0: str, marked: MarkedPackage, output: Path) -> bytes:
    """Encrypt the package as its owner does; return its data key, which a real owner never sees."""
    policy = json.loads(release_policy(pcr0))
    policy["Statement"].append(
        {
            "Effect": "Allow",
            "Principal": {"AWS": OWNER_ROLE_ARN},
            "Action": "kms:Decrypt",
            "Resource": "*",
        }
    )
    arn = owner.kms.create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
    with tempfile.TemporaryDirectory(prefix="pytest-of-owner-") as folder:
        files = {"enclave.toml": MANIFEST, **marked.files}
        owner.encrypt(write_package(Path(folder) / "marked", files), arn, output)
    header = decode_header(output.read_bytes())
    answer = owner.kms.decrypt(
        CiphertextBlob=header.wrapped_key, KeyId=arn, EncryptionContext=header.encryption_context
    )
    return answer["Plaintext"]


@contextmanager
def hostile_notebook(home: EnclaveHome) -> Iterator[HostileNotebook]:
    """Return a notebook in this enclave; it is shut down afterwards."""
    started = time.time()
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    marked = marked_package()
    with open_folder() as folder:
        key = _publish(owner, status["pcrs"]["0"], marked, folder / "marked.encrypted")
        marked = MarkedPackage(marked.files, marked.markers, marked.prefix, key)
        before = vault_pids(home)
        with kernel(cwd=str(folder)) as (_, client):
            made = HostileNotebook(home, client, marked, folder, started)
            shown = made.cell("import os, numpy as np\n%load_encrypted marked.encrypted as m")
            assert not shown.error, shown.text
            made.pid = kernel_pid(client)
            uid = made.value("m.vault_number()")
            made.vault_pid = _vault(home, before, uid)
            yield made


def _vault(home: EnclaveHome, before: set[int], uid: int) -> int:
    """Return the pid of the process that runs the package, by our number."""
    for pid in vault_pids(home):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("Uid:")]
        if line.split()[1] == str(uid) and (uid or pid not in before):
            return payload_pid(pid)
    raise AssertionError(f"no vault of user {uid} runs")
