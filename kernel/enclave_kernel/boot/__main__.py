"""An image's init: `/init`, or the command of a container that nitro-cli made an image of."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

from enclave_kernel.boot.development import stand_in
from enclave_kernel.boot.file_systems import (
    close_root,
    cover_root,
    mount_control_groups,
    mount_kernel_file_systems,
)
from enclave_kernel.boot.first_process import end_enclave, run_supervisor
from enclave_kernel.boot.hardening import close_devices, close_kernel, forbid_modules
from enclave_kernel.boot.heartbeat import HeartbeatError, send_heartbeat
from enclave_kernel.boot.kernel_modules import load_modules, parent_cid
from enclave_kernel.boot.nsm_seed import is_signed_by_aws, seed_entropy, set_clock
from enclave_kernel.boot.settings import BootSettings, read_settings
from enclave_kernel.isolation.notebook_network import raise_loopback
from enclave_kernel.nsm import NsmClient
from enclave_protocol.errors import EnclaveError
from enclave_protocol.vsock_ports import SUPERVISOR_PORT

__all__ = ["main"]

_log = logging.getLogger("enclave_kernel.boot")
_NSM: Final = Path("/dev/nsm")
_CONSOLE: Final = "/dev/console"
_RUNTIME: Final = Path("/run/enclave")


def main() -> int:
    """Boot; return only where this is not process 1."""
    began_s = _began_s()
    os.umask(0o077)
    first = os.getpid() == 1
    code = 1
    try:
        code = _boot(began_s)
    except (EnclaveError, OSError) as error:
        print(f"enclave: boot failed: {error}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        if first:
            end_enclave()
    return code


def _began_s() -> float:
    """Return when this program began, in seconds since the machine's start.

    Of process 1 the kernel tells only when it became a process, long before it became this one;
    what it spent in user mode it spent as this one, and until now it waited for nothing else.
    """
    return time.monotonic() - os.times().user


def _boot(began_s: float) -> int:
    """Follow THREATS section C, "Boot, before anything else"; return the supervisor's exit code."""
    # 1. What the next steps need: /proc, /dev, /sys; then the root becomes a mount of its own.
    mount_kernel_file_systems()
    _use_console()
    cover_root()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = read_settings()
    _log.info("%s boots; init began %.2f s after this machine's start", settings.name, began_s)
    # 2. Drivers, of the measured image only, and then no module ever again.
    _log.info("modules: %s", " ".join(load_modules()) or "none")
    forbid_modules()
    # 3. Devices and kernel interfaces, before anything is started.
    close_devices()
    close_kernel()
    mount_control_groups()
    close_root()
    raise_loopback()
    # 4. The parent learns that the image runs; it is not told anything else. Where another init
    # is process 1 (nitro-cli's), it did that.
    if os.getpid() == 1:
        try:
            send_heartbeat(parent_cid())
        except HeartbeatError as error:
            # Started by hand, nobody waits; nitro-cli ends an enclave that it did not hear from.
            _log.warning("%s", error)
    # 5. Entropy and time, then the supervisor.
    return run_supervisor(_arguments(settings))


def _arguments(settings: BootSettings) -> list[str]:
    _RUNTIME.mkdir(mode=0o700, exist_ok=True)
    arguments = ["--listen", f"vsock:{SUPERVISOR_PORT}", "--runtime-dir", str(_RUNTIME)]
    if settings.development:
        arguments.append("--development")
    if _NSM.exists() and _take_from_nsm(settings):
        return arguments
    if settings.software_nsm:
        stand = stand_in(settings.software_nsm)
        _log.warning("NOT CONFIDENTIAL: a software NSM of this development image")
        arguments += ["--nsm", stand.nsm]
        if stand.kms_endpoint_url is not None:
            arguments += ["--kms-endpoint-url", stand.kms_endpoint_url]
    # Without any NSM the supervisor says so and ends: a production image releases no keys here.
    return arguments


def _take_from_nsm(settings: BootSettings) -> bool:
    """Take entropy and time; return whether the NSM's documents are to be used.

    Those of QEMU's NSM are signed by nobody: a development image has its own beside it.
    """
    with NsmClient.open(str(_NSM)) as nsm:
        seed_entropy(nsm)
        if settings.software_nsm and not is_signed_by_aws(nsm.attest()):
            _log.warning("entropy from an NSM whose documents AWS has not signed")
            return False
        moved_s = set_clock(nsm)
    _log.info("entropy from the NSM; clock moved by %.0f s", moved_s)
    return True


def _use_console() -> None:
    """Write to the console from now on: the kernel's first one may lack /dev/console."""
    try:
        descriptor = os.open(_CONSOLE, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    if descriptor > 2:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
