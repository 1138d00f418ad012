"""Entropy and time from the NSM, before the first key is made and the first log line is dated.

Source: THREATS A-16; random(4); FACTS, "Nitro Secure Module".
"""

import ctypes
import fcntl
import struct
import time
from pathlib import Path
from typing import Final

from enclave_kernel.nsm import NsmClient
from enclave_protocol.attestation_document import decode_signed_document

__all__ = ["seed_entropy", "set_clock"]

_RNDADDENTROPY: Final = 0x40085203
_SEED_BYTES: Final = 512
_MAX_DRIFT_S: Final = 1.0


def seed_entropy(nsm: NsmClient, device: Path = Path("/dev/random")) -> None:
    """Mix bytes of the NSM into the kernel's generator, and credit them.

    Raises:
        NsmError: The NSM gives none.
        OSError: The kernel refuses.
    """
    seed = nsm.random(_SEED_BYTES)
    request = struct.pack("ii", 8 * len(seed), len(seed)) + seed
    buffer = ctypes.create_string_buffer(request, len(request))
    with device.open("wb", buffering=0) as file:
        fcntl.ioctl(file, _RNDADDENTROPY, buffer)


def set_clock(nsm: NsmClient) -> float:
    """Set the wall clock to the hypervisor's time where it is more than a second off.

    Only notebooks and log lines read that clock: what depends on the time asks the NSM again.

    Returns:
        Seconds that the clock was moved by; 0 if it was right.

    Raises:
        EnclaveError: The NSM gives no time.
        OSError: The kernel refuses.
    """
    now_s = decode_signed_document(nsm.attest()).document.timestamp / 1000
    drift_s = now_s - time.time()
    if abs(drift_s) <= _MAX_DRIFT_S:
        return 0.0
    time.clock_settime(time.CLOCK_REALTIME, now_s)
    return drift_s
