"""One virtual machine and its vsock device: started together, watched, and ended together.

A process of its own, `python -m enclave_parent_gateway.backends.qemu_machine`, so that whatever
becomes of one of the two programs ends the other: vhost-device-vsock alone would keep the streams
of a machine that is gone open and silent. It prints one JSON line when the image gave its sign of
life.
Source: FACTS, "vsock"; qemu-system-x86_64(1), qemu-system-aarch64(1); vhost-device-vsock(1).
"""

import argparse
import asyncio
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from enclave_protocol.vsock_ports import HEARTBEAT_BYTE, HEARTBEAT_PORT

__all__ = [
    "ACCELERATORS",
    "NSM_DEVICE",
    "VSOCK_SOCKET",
    "machine_command",
    "main",
    "offers",
    "qemu_program",
]

log = logging.getLogger("enclave_parent_gateway.backends.qemu_machine")

VSOCK_SOCKET: Final = "vsock.sock"
"""In the machine's folder: where streams to the machine begin; `VSOCK_SOCKET_PORT` is where one
of the machine's own to that port would arrive."""
ACCELERATORS: Final = ("tcg", "kvm")
NSM_DEVICE: Final = "virtio-nsm-pci"
"""Since QEMU 9.2, where it is built with libcbor; Debian's is not."""
_HELP_S: Final = 30.0
_MACHINE: Final = {
    # q35 and not microvm: Linux calibrates its clocks with HPET and PM timer, which microvm
    # lacks; with the PIT alone it hangs at boot when an emulating host is busy.
    "x86_64": "q35",
    "aarch64": "virt,gic-version=3",
}
_EMULATED_CPU: Final = {
    # All that there is: numpy asks for x86-64-v2. One fault is known: Debian 12's QEMU 7.2 leaves
    # garbage in the flags after an emulated CMPXCHG16B, which Linux 6.12 does not survive; 6.1
    # does.
    "x86_64": "max",
    # Graviton2's. With `max` each call of a function would be signed, emulated.
    "aarch64": "neoverse-n1",
}
_DEVICE_SOCKET: Final = "device.sock"
_CID: Final = 16
"""Any from 4 on: each machine has a device of its own, so machines do not see each other."""
_DEVICE_START_S: Final = 10.0
_POLL_S: Final = 0.01
_GRACE_S: Final = 3.0
_HEARTBEAT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


class _MachineEndedError(Exception):
    """One of the two programs did not start, or ended; the text says which."""


def _die_with_parent() -> None:
    """Ask for SIGKILL when this program ends, in a child before its exec (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def device_command(folder: Path) -> list[str]:
    """Return the command line of the vsock device."""
    return [
        "vhost-device-vsock",
        *("--guest-cid", str(_CID), "--socket", str(folder / _DEVICE_SOCKET)),
        *("--uds-path", str(folder / VSOCK_SOCKET)),
    ]


def qemu_program(architecture: str) -> str:
    """Return the name of the QEMU for `x86_64` or `aarch64`."""
    return f"qemu-system-{architecture}"


def offers(device: str, architecture: str) -> bool:
    """Return whether this machine's QEMU was built with a device, by its name for `-device`.

    Args:
        device: A device's name.
        architecture: Of the QEMU, `x86_64` or `aarch64`.
    """
    # The one for aarch64 takes no machine by itself.
    machine = _MACHINE[architecture]
    command = [qemu_program(architecture), "-machine", machine, "-device", "help"]
    try:
        listed = subprocess.run(command, capture_output=True, timeout=_HELP_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # What is wrong with it shows when it is started.
        return False
    return f'name "{device}",'.encode() in listed.stdout


def machine_command(
    folder: Path,
    *,
    architecture: str,
    console: Path,
    memory_mib: int,
    cpus: int,
    cmdline: str,
    accelerator: str,
    nsm: bool = False,
) -> list[str]:
    """Return the command line of QEMU: a console, a vsock, entropy, and no other device but NSM.

    Args:
        folder: With kernel, initrd and the vsock device's socket.
        architecture: `x86_64` or `aarch64`.
        console: Log file that the console is appended to.
        memory_mib: Memory, in MiB.
        cpus: How many CPUs.
        cmdline: The kernel's command line.
        accelerator: One of `ACCELERATORS`.
        nsm: Add QEMU's Nitro Secure Module, whose documents nobody signs.
    """
    machine = f"{_MACHINE[architecture]},accel={accelerator},memory-backend=ram"
    cpu = "host" if accelerator == "kvm" else _EMULATED_CPU[architecture]
    return [
        qemu_program(architecture),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", machine, "-cpu", cpu),
        *("-smp", str(cpus), "-m", f"{memory_mib}M"),
        # Shared: the vsock device is another process, and reads the machine's memory.
        *("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
        *("-kernel", str(folder / "kernel"), "-initrd", str(folder / "initrd")),
        *("-append", cmdline),
        *("-chardev", f"file,id=console,path={_escaped(console)},append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=vsock,path={_escaped(folder / _DEVICE_SOCKET)}"),
        *("-device", "vhost-user-vsock-pci,chardev=vsock"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        *(("-device", NSM_DEVICE) if nsm else ()),
    ]


def _escaped(path: Path) -> str:
    """Return a path as the value of one of QEMU's options, where a comma ends it."""
    return str(path).replace(",", ",,")


class _Machine:
    """The two programs.

    Args:
        folder: With kernel and initrd; the sockets are made there.
        command: QEMU's command line.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder = folder
        self._command = command
        self._began = time.monotonic()
        self._programs: list[asyncio.subprocess.Process] = []
        self._told = False

    async def run(self) -> None:
        """Run until one of the programs ends, or cancelled.

        Raises:
            _MachineEndedError: One did not start, or ended.
        """
        heartbeat_path = self._folder / f"{VSOCK_SOCKET}_{HEARTBEAT_PORT}"
        try:
            device = await self._start(device_command(self._folder))
            await self._wait_for_device(device)
            server = await asyncio.start_unix_server(self._heartbeat, heartbeat_path)
            async with server:
                machine = await self._start(self._command)
                ends = {
                    asyncio.create_task(program.wait(), name=name)
                    for program, name in ((device, "the vsock device"), (machine, "the machine"))
                }
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            first = done.pop()
            raise _MachineEndedError(f"{first.get_name()} ended with code {first.result()}")
        finally:
            await self._end()

    async def _start(self, command: Sequence[str]) -> asyncio.subprocess.Process:
        if shutil.which(command[0]) is None:
            raise _MachineEndedError(f"{command[0]} is not installed")
        program = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            cwd="/",
            # No thread runs here yet that could hold a lock which the child then waits for.
            preexec_fn=_die_with_parent,
        )
        self._programs.append(program)
        return program

    async def _wait_for_device(self, device: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _DEVICE_START_S
        while not (self._folder / _DEVICE_SOCKET).exists():
            if device.returncode is not None or time.monotonic() > deadline:
                raise _MachineEndedError("the vsock device does not start")
            await asyncio.sleep(_POLL_S)

    async def _heartbeat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection of the image's; nothing else of the parent can be reached."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_HEARTBEAT_S):
                if await reader.read(1) == bytes([HEARTBEAT_BYTE]):
                    self._tell()
                    writer.write(bytes([HEARTBEAT_BYTE]))
                    await writer.drain()
                    # The image closes when it has read it.
                    await reader.read(1)
        writer.close()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            booted_s = round(time.monotonic() - self._began, 3)
            log.info("the image booted after %.1f s", booted_s)
            print(json.dumps({"booted_s": str(booted_s)}), flush=True)  # noqa: T201

    async def _end(self) -> None:
        for program in reversed(self._programs):
            with suppress(ProcessLookupError):
                program.terminate()
            try:
                async with asyncio.timeout(_GRACE_S):
                    await program.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    program.kill()
                await program.wait()
        for path in self._folder.glob("*.sock*"):
            path.unlink(missing_ok=True)


async def _run(machine: _Machine) -> int:
    running = asyncio.create_task(machine.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("ended as asked")
        return 0
    except (_MachineEndedError, OSError) as error:
        log.warning("%s", error)
    return 1


def main() -> int:
    """Run one machine until it ends or SIGTERM comes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m enclave_parent_gateway.backends.qemu_machine")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--architecture", choices=tuple(_MACHINE), required=True)
    parser.add_argument("--console", type=Path, required=True)
    parser.add_argument("--memory-mib", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--cmdline", required=True)
    parser.add_argument("--accelerator", choices=ACCELERATORS, default=ACCELERATORS[0])
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    os.umask(0o077)
    command = machine_command(
        options.folder,
        architecture=options.architecture,
        console=options.console,
        memory_mib=options.memory_mib,
        cpus=options.cpus,
        cmdline=options.cmdline,
        accelerator=options.accelerator,
        nsm=offers(NSM_DEVICE, options.architecture),
    )
    return asyncio.run(_run(_Machine(options.folder, command)))


if __name__ == "__main__":
    sys.exit(main())
