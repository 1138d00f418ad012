"""Runs nitro-cli and reads its JSON; an error code becomes one line that says what to do.

Source: FACTS, "EIF version 4" (nitro-cli 1.5); aws-nitro-enclaves-cli, src/main.rs,
src/common/json_output.rs and src/common/document_errors.rs.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from enclave_parent_gateway.errors import EnclaveStartError

__all__ = [
    "DescribedEnclave",
    "NitroCliError",
    "StartedEnclave",
    "describe_enclaves",
    "nitro_cli_path",
    "run_enclave",
    "terminate_enclave",
]

_RUN_TIMEOUT_S: Final = 300.0
"""nitro-cli itself waits for the enclave's sign of life: a minute for each 6 GiB of image and each
100 GiB of memory."""
_TIMEOUT_S: Final = 30.0
_MAX_ENCLAVES: Final = 64
"""An instance runs four at most."""
_CODE: Final = re.compile(r"\[ (E[0-9]{2}) \]")
_ADVICE: Final = {
    "E08": "type: enclave down && enclave up --backend nitro",
    "E19": "the image or /dev/nitro_enclaves cannot be opened: is this an instance with enclaves "
    "enabled, and are you in the group ne?",
    "E20": "--cpus must be whole cores; with Intel and AMD an even number",
    "E21": "set cpu_count in /etc/nitro_enclaves/allocator.yaml, then restart "
    "nitro-enclaves-allocator.service",
    "E22": "fewer CPUs are free than asked for; another enclave may have them: nitro-cli "
    "describe-enclaves",
    "E26": "give it more: enclave up --backend nitro --memory MIB",
    "E27": "less memory is free than asked for; another enclave may have it (nitro-cli "
    "describe-enclaves), or nitro-enclaves-allocator.service did not get it: restart it",
    "E29": "is nitro-enclaves-allocator.service active, and the instance made with enclaves "
    "enabled?",
    "E35": "the image is damaged; build or copy it again",
    "E36": "the image did not boot: has it the machine's architecture, and its kernel what Nitro "
    "needs? With --debug-mode, `enclave logs` shows its console",
    "E39": "an enclave's process does not answer; nitro-cli describe-enclaves says which",
    "E59": "the image's signature is not valid (any more); sign it again",
}

_Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")]
_Answer = TypeVar("_Answer")


class NitroCliError(EnclaveStartError):
    """nitro-cli failed. `code` is its own, such as E26; empty if it gave none."""

    def __init__(self, command: str, code: str, text: str) -> None:
        what = f"{code}, " if code else ""
        advice = _ADVICE.get(code) or f"see: nitro-cli explain --error-code {code or 'E00'}"
        super().__init__(f"nitro-cli {command} failed ({what}{text}); {advice}")
        self.code = code


class StartedEnclave(msgspec.Struct, frozen=True):
    """What `run-enclave` prints; fields we have no use for are not looked at."""

    enclave_id: Annotated[_Id, msgspec.Meta()] = msgspec.field(name="EnclaveID")
    process_id: Annotated[int, msgspec.Meta(gt=1)] = msgspec.field(name="ProcessID")
    cid: Annotated[int, msgspec.Meta(gt=3, lt=2**32 - 1)] = msgspec.field(name="EnclaveCID")
    cpus: int = msgspec.field(name="NumberOfCPUs")
    memory_mib: int = msgspec.field(name="MemoryMiB")


class DescribedEnclave(msgspec.Struct, frozen=True):
    """One element of what `describe-enclaves` prints."""

    enclave_id: str = msgspec.field(name="EnclaveID")
    process_id: int = msgspec.field(name="ProcessID")
    cid: int = msgspec.field(name="EnclaveCID")
    state: str = msgspec.field(name="State")
    flags: str = msgspec.field(name="Flags")
    name: str | None = msgspec.field(name="EnclaveName", default=None)
    measurements: dict[str, str] = msgspec.field(name="Measurements", default_factory=dict)

    @property
    def debug(self) -> bool:
        """Whether it runs in debug mode; whatever is not NONE counts as that."""
        return self.flags != "NONE"


def nitro_cli_path() -> str:
    """Return where nitro-cli is.

    Raises:
        EnclaveStartError: It is not installed.
    """
    found = shutil.which("nitro-cli")
    if found is None:
        raise EnclaveStartError(
            "nitro-cli is not installed; on the parent instance type: sudo dnf install "
            "aws-nitro-enclaves-cli"
        )
    return found


def run_enclave(
    image: Path, *, name: str, memory_mib: int, cpus: int, cid: int | None, debug: bool
) -> StartedEnclave:
    """Start an enclave; returns when it gave its sign of life (nitro-cli waits for it).

    Raises:
        NitroCliError: It did not start.
        EnclaveStartError: nitro-cli is missing, or printed something else.
    """
    arguments = ["--eif-path", str(image), "--memory", str(memory_mib), "--cpu-count", str(cpus)]
    arguments += ["--enclave-name", name]
    if cid is not None:
        arguments += ["--enclave-cid", str(cid)]
    if debug:
        arguments.append("--debug-mode")
    printed = _run("run-enclave", arguments, timeout_s=_RUN_TIMEOUT_S)
    return _decoded("run-enclave", printed, StartedEnclave)


def describe_enclaves() -> tuple[DescribedEnclave, ...]:
    """Return the enclaves of this machine.

    Raises:
        NitroCliError, EnclaveStartError: As `run_enclave`.
    """
    printed = _run("describe-enclaves", ())
    found = _decoded("describe-enclaves", printed, tuple[DescribedEnclave, ...])
    return found[:_MAX_ENCLAVES]


def terminate_enclave(enclave_id: str) -> None:
    """End an enclave.

    Raises:
        NitroCliError, EnclaveStartError: As `run_enclave`.
    """
    _run("terminate-enclave", ("--enclave-id", enclave_id))


def _run(command: str, arguments: Sequence[str], timeout_s: float = _TIMEOUT_S) -> str:
    try:
        done = subprocess.run(
            [nitro_cli_path(), command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            # Ctrl-C is for `enclave up`, which ends it in order; the enclave's own process, which
            # nitro-cli leaves behind, must not be this terminal's.
            start_new_session=True,
            check=False,
        )
    except OSError as error:
        raise EnclaveStartError(f"nitro-cli cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EnclaveStartError(
            f"nitro-cli {command} did not end within {timeout_s:g} s; see: nitro-cli "
            "describe-enclaves, and /var/log/nitro_enclaves/nitro_enclaves.log"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        match = _CODE.search(said)
        line = said[match.end() :] if match else said
        first = next((one.strip() for one in line.splitlines() if one.strip()), "no message")
        raise NitroCliError(command, match[1] if match else "", first[:300].rstrip("."))
    return done.stdout.decode(errors="replace")


def _decoded(command: str, printed: str, expected: type[_Answer]) -> _Answer:
    try:
        return msgspec.json.decode(printed, type=expected)
    except msgspec.MsgspecError as error:
        raise EnclaveStartError(
            f"nitro-cli {command} printed something else than expected ({error}); this version "
            "knows nitro-cli 1.2 and later"
        ) from error
