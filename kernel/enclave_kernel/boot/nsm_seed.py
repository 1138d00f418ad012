"""Entropy and time from the NSM, before the first key is made and the first log line is dated.

Source: THREATS A-16; random(4); FACTS, "Nitro Secure Module".
"""

import ctypes
import fcntl
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from enclave_kernel.nsm import NsmClient
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.attestation_errors import AttestationError
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.errors import EnclaveError
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER

__all__ = ["ForeignNsmError", "is_signed_by_aws", "seed_entropy", "set_clock"]

_RNDADDENTROPY: Final = 0x40085203
_SEED_BYTES: Final = 512
_MAX_DRIFT_S: Final = 1.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ForeignNsmError(EnclaveError):
    """The machine has an NSM whose documents are not like those of a Nitro enclave."""


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
        ForeignNsmError: The NSM's document is none of a Nitro enclave's.
        NsmError: The NSM gives no document.
        OSError: The kernel refuses.
    """
    try:
        now_s = decode_signed_document(nsm.attest()).document.timestamp / 1000
    except AttestationError as error:
        raise ForeignNsmError(
            f"this machine's NSM is not a Nitro enclave's, and no key can be released here: {error}"
        ) from error
    drift_s = now_s - time.time()
    if abs(drift_s) <= _MAX_DRIFT_S:
        return 0.0
    time.clock_settime(time.CLOCK_REALTIME, now_s)
    return drift_s


def is_signed_by_aws(document: bytes) -> bool:
    """Return whether a document of this machine's NSM was signed under AWS's root, at its own time.

    QEMU's `virtio-nsm` signs nothing. Whoever asks for a proof asks the gateway or KMS: this says
    only whether a development image needs a software NSM beside the machine's.
    """
    try:
        timestamp = decode_signed_document(document).document.timestamp
        now = _EPOCH + timedelta(milliseconds=timestamp)
        verify_attestation(document, root=AWS_NITRO_ROOT_DER, now=now, allow_debug=True)
    except (AttestationError, OverflowError):
        return False
    return True
