"""What stands in for nitro-cli: its arguments, its rules, its JSON, its error codes.

Where nitro-cli starts a virtual machine, this starts our supervisor, with a software NSM, behind
Unix sockets `CID_PORT` in place of vsock; everything else of an enclave's life is as documented:
a process that holds the enclave and ends with it, memory and CPUs from the allocator, a console
in debug mode only. `NitroHome` makes an executable of it.
Source: FACTS, "EIF version 4"; aws-nitro-enclaves-cli 1.5, src/lib.rs (arguments), src/main.rs,
src/common/document_errors.rs (codes), src/enclave_proc/resource_manager.rs (rules).
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import yaml

from enclave_parent_gateway.process_identity import ProcessIdentity
from enclave_protocol.eif import Eif, EifError, read_eif
from tests.support.nitro_machine import StandInMachine

__all__ = ["main"]

_MIB = 2**20
_RATIO = 4
_UNITS = {"": 1, "m": 1, "M": 1, "g": 1024, "G": 1024, "t": 1024**2, "T": 1024**2}
_PARENT_CID = 3
_HELP = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"


class _Failure(Exception):  # noqa: N818 (it is what nitro-cli calls a failure)
    """Ends the command with an error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _directory() -> Path:
    return Path(os.environ["ENCLAVE_NITRO_STAND_IN"])


def _arguments(argv: list[str]) -> argparse.Namespace:
    """Parse as the real one: what is missing or contradicts ends with code 2."""
    parser = argparse.ArgumentParser(prog="nitro-cli", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run-enclave", allow_abbrev=False)
    cpus = run.add_mutually_exclusive_group(required=True)
    cpus.add_argument("--cpu-count")
    cpus.add_argument("--cpu-ids", nargs="+")
    run.add_argument("--memory", required=True)
    run.add_argument("--eif-path", required=True)
    run.add_argument("--enclave-cid")
    run.add_argument("--enclave-name")
    run.add_argument("--debug-mode", action="store_true")
    end = commands.add_parser("terminate-enclave", allow_abbrev=False)
    which = end.add_mutually_exclusive_group(required=True)
    which.add_argument("--enclave-id")
    which.add_argument("--enclave-name")
    which.add_argument("--all", action="store_true")
    commands.add_parser("describe-enclaves", allow_abbrev=False).add_argument(
        "--metadata", action="store_true"
    )
    commands.add_parser("describe-eif").add_argument("--eif-path", required=True)
    console = commands.add_parser("console", allow_abbrev=False)
    which = console.add_mutually_exclusive_group(required=True)
    which.add_argument("--enclave-id")
    which.add_argument("--enclave-name")
    console.add_argument("--disconnect-timeout")
    return parser.parse_args(argv)


def _integer(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise _Failure(3, f"Invalid argument provided. The parameter `{name}` is `{text}`")
    return int(text)


def _memory_mib(text: str) -> int:
    digits = text.rstrip("MmGgTt")
    unit = text[len(digits) :]
    if unit not in _UNITS:
        raise _Failure(3, f"Invalid argument provided. The parameter `memory` is `{text}`")
    return _integer("memory", digits) * _UNITS[unit]


def _registered() -> list[dict[str, Any]]:
    """Return the enclaves whose processes live; stale entries are removed, as sockets are."""
    found = []
    for file in sorted((_directory() / "enclaves").glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            entry = json.loads(file.read_text())
            if ProcessIdentity(entry["ProcessID"], entry["ticks"]).is_running():
                found.append(entry)
            else:
                file.unlink()
    return found


def _allocator() -> tuple[int, int]:
    folder = os.environ.get("NITRO_CLI_INSTALL_DIR", "")
    settings = yaml.safe_load(Path(f"{folder}/etc/nitro_enclaves/allocator.yaml").read_text())
    return int(settings["memory_mib"]), int(settings["cpu_count"])


def _cid(text: str | None, used: set[int]) -> int:
    if text is None or _integer("enclave-cid", text) == 0:
        return next(cid for cid in range(16, 1000) if cid not in used)
    cid = int(text)
    if cid <= _PARENT_CID or cid >= 2**32 - 1:
        raise _Failure(3, f"CID {cid} is a well-known CID, not to be used for enclaves")
    if cid in used:
        raise _Failure(33, "Ioctl start enclave failure: the CID is already used")
    return cid


def _image(path: str) -> tuple[Eif, int]:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 (the path as given)
            size = os.fstat(stream.fileno()).st_size
            try:
                return read_eif(stream), size
            except EifError as error:
                raise _Failure(59, f"EIF signature checker error. {error}") from error
    except OSError as error:
        raise _Failure(19, f"File operation failure.\nFile: '{path}', 'Open'. {error}") from error


def _run(options: argparse.Namespace) -> None:
    memory = _memory_mib(options.memory)
    running = _registered()
    all_memory, all_cpus = _allocator()
    count = len(options.cpu_ids) if options.cpu_ids else _integer("cpu-count", options.cpu_count)
    cid = _cid(options.enclave_cid, {entry["EnclaveCID"] for entry in running})
    print("Start allocating memory...", file=sys.stderr)  # noqa: T201
    image, size = _image(options.eif_path)
    if count > all_cpus:
        raise _Failure(22, f"Insufficient CPUs available in the pool. `cpu-count` is {count}")
    needed = -(-size // _MIB) * _RATIO
    if _RATIO * size > memory * _MIB:
        raise _Failure(
            26,
            f"Insufficient memory requested. User provided `memory` is {memory} MB, but based on "
            f"the EIF file size, the minimum memory should be {needed} MB",
        )
    if memory > all_memory - sum(entry["MemoryMiB"] for entry in running):
        raise _Failure(27, f"Insufficient memory available. User provided `memory` is {memory} MB")
    if count > all_cpus - sum(entry["NumberOfCPUs"] for entry in running):
        raise _Failure(32, "Ioctl add vCPU failure: no CPUs are available in the pool")
    names = {entry["EnclaveName"] for entry in running}
    wanted = options.enclave_name or Path(options.eif_path).name.removesuffix(".eif")
    name = next(
        one for one in (wanted, *(f"{wanted}_{i}" for i in range(1, 9))) if one not in names
    )
    machine = StandInMachine(
        _directory(),
        name=name,
        cid=cid,
        memory_mib=memory,
        cpus=count,
        debug=options.debug_mode,
        measurements={f"PCR{index}": value.hex() for index, value in image.pcrs.items()},
    )
    entry = machine.start()
    if entry is None:
        raise _Failure(36, "Enclave boot failure. It gave no sign of life")
    print(  # noqa: T201
        f"Started enclave with enclave-cid: {cid}, memory: {memory} MiB, cpu-ids: "
        f"{entry['CPUIDs']}",
        file=sys.stderr,
    )
    shown = ("EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs")
    _print({key: entry[key] for key in (*shown, "MemoryMiB")})


def _print(value: object) -> None:
    print(json.dumps(value, indent=2))  # noqa: T201


def _describe() -> None:
    hidden = ("ticks", "console")
    _print([{k: v for k, v in entry.items() if k not in hidden} for entry in _registered()])


def _describe_eif(options: argparse.Namespace) -> None:
    image, _ = _image(options.eif_path)
    pcrs = {f"PCR{index}": value.hex() for index, value in image.pcrs.items()}
    measurements = {"HashAlgorithm": "Sha384 { ... }"} | pcrs
    _print(
        {"EifVersion": 4, "Measurements": measurements, "IsSigned": 8 in image.pcrs}
        | {"CheckCRC": True}
    )


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    for entry in _registered():
        if options.enclave_id == entry["EnclaveID"] or options.enclave_name == entry["EnclaveName"]:
            return entry
    if options.enclave_name is not None:
        raise _Failure(58, "Naming error. No enclave matched the given name.")
    raise _Failure(11, "Socket error. Failed to connect to specific enclave process")


def _terminate(options: argparse.Namespace) -> None:
    entries = _registered() if options.all else [_chosen(options)]
    for entry in entries:
        try:
            os.kill(entry["ProcessID"], signal.SIGTERM)
        except PermissionError as error:
            raise _Failure(38, "Enclave process command not executed error") from error
        identity = ProcessIdentity(entry["ProcessID"], entry["ticks"])
        while identity.is_running():
            time.sleep(0.01)
        print(f"Successfully terminated enclave {entry['EnclaveID']}.", file=sys.stderr)  # noqa: T201
        _print(
            {
                "EnclaveName": entry["EnclaveName"],
                "EnclaveID": entry["EnclaveID"],
                "Terminated": True,
            }
        )


def _console(options: argparse.Namespace) -> None:
    entry = _chosen(options)
    if entry["Flags"] != "DEBUG_MODE":
        raise _Failure(
            44,
            "Enclave console connection failure. The enclave was not started with the debug flag "
            "set, include '--debug-mode' in the run-enclave command",
        )
    out = sys.stdout.buffer
    out.write(f"Connecting to the console for enclave {entry['EnclaveCID']}...\n".encode())
    out.write(b"Successfully connected to the console.\n")
    timeout = float(options.disconnect_timeout or "inf")
    deadline = time.monotonic() + timeout
    identity = ProcessIdentity(entry["ProcessID"], entry["ticks"])
    with Path(entry["console"]).open("rb") as file:
        while True:
            alive = identity.is_running()
            out.write(file.read())
            out.flush()
            if not alive or time.monotonic() > deadline:
                return
            time.sleep(0.02)


def main() -> NoReturn:
    """Run the command line; exit with the code that nitro-cli would."""
    options = _arguments(sys.argv[1:])
    try:
        match options.command:
            case "run-enclave":
                _run(options)
            case "describe-enclaves":
                _describe()
            case "describe-eif":
                _describe_eif(options)
            case "terminate-enclave":
                _terminate(options)
            case "console":
                _console(options)
    except _Failure as failure:
        code = f"E{failure.code:02}"
        sys.stderr.write(f"[ {code} ] {failure}\n\nFor more details, please visit {_HELP}#{code}\n")
        sys.exit(failure.code)
    sys.exit(0)
