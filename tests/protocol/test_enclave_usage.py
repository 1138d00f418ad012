from typing import Any

import msgspec
import pytest

from enclave_protocol.enclave_usage import (
    MAX_LISTED_VAULTS,
    EnclaveCounts,
    ReleaseTimes,
    VaultInfo,
)
from enclave_protocol.messages import (
    MAX_CONTROL_BYTES,
    EnclaveStatus,
    Envelope,
    KernelInfo,
    MessageError,
    decode_envelope,
    encode,
)

_KINDS = [letter * size for letter in "EF" for size in range(1, 34)]
_VAULT = VaultInfo("x" * 64, "9" * 64, True, 2**53, 2**40, 25600)


def _status(**changes: Any) -> EnclaveStatus:
    fields: dict[str, Any] = {
        "version": "1",
        "module_id": "i-1",
        "debug": False,
        "uptime_s": 1.0,
        "pcrs": {},
        "isolation": (),
        "kernels": (),
    }
    return EnclaveStatus(**{**fields, **changes})


def test_the_largest_status_fits_into_a_frame() -> None:
    """256 kernels, as many vaults as are listed, all names at their longest, all error kinds."""
    per_kernel = 32
    full = MAX_LISTED_VAULTS // per_kernel
    kernels = [
        KernelInfo(
            kernel_id="a" * 64,
            pid=2**31,
            uptime_s=1e9,
            vaults=(_VAULT,) * (per_kernel if number < full else 0),
            memory_bytes=2**53,
            cpu_percent=2**40,
            cpu_s=1e9,
        )
        for number in range(256)
    ]
    counts = EnclaveCounts(
        2**53, {f"{'A' * 62}{chr(65 + n // 8)}{chr(65 + n % 8)}": 2**53 for n in range(61)}
    )
    status = _status(kernels=tuple(kernels), vaults=2**20, counts=counts)
    payload = encode(Envelope(status))
    assert len(payload) < MAX_CONTROL_BYTES * 3 // 4
    assert decode_envelope(payload).body == status


@pytest.mark.parametrize(
    "changes",
    [
        {"vaults": -1},
        {"counts": EnclaveCounts(loads=-1)},
        {"counts": EnclaveCounts(refusals=dict.fromkeys(_KINDS, 1))},
        {"counts": EnclaveCounts(refusals={"a b": 1})},
        {"counts": EnclaveCounts(refusals={"X" * 65: 1})},
        {"counts": EnclaveCounts(releases=ReleaseTimes((0,) * 10))},
        {"counts": EnclaveCounts(releases=ReleaseTimes((2**60,) * 11))},
        {"counts": EnclaveCounts(releases=ReleaseTimes(sum_s=-1.0))},
        {"kernels": (KernelInfo("aa", 1, 1.0, (_VAULT,) * 65),)},
        {"kernels": (KernelInfo("aa", 1, 1.0, (), -1),)},
        {"kernels": (KernelInfo("aa", 1, 1.0, ()),) * 513},
        *(
            {"kernels": (KernelInfo("aa", 1, 1.0, (msgspec.structs.replace(_VAULT, **wrong),)),)}
            for wrong in ({"package": "x" * 65}, {"version": "x" * 65}, {"memory_bytes": -1})
        ),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_no_status(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        decode_envelope(encode(Envelope(_status(**changes))))
