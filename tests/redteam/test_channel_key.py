"""THREATS section 14: the supervisor's TLS key is in the supervisor, and nowhere else."""

import base64
import os
import signal
import tempfile
import time
from pathlib import Path

from enclave_protocol.messages import KernelLaunched, SignalKernel
from tests.redteam.conftest import needs_root
from tests.support.process_memory import occurrences
from tests.support.supervisor_process import supervisor_process

_WATCHED = """
import os, sys
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
make = ec.generate_private_key
def watched(*arguments):
    key = make(*arguments)
    with open({note!r}, "ab") as file:
        encodings = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
        file.write(key.private_bytes(*encodings, serialization.NoEncryption()))
    return key
ec.generate_private_key = watched
from enclave_kernel.__main__ import main
sys.exit(main())
"""


def children_of(pid: int) -> set[int]:
    """Return every process below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:
                continue
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def forms(key: bytes) -> list[bytes]:
    """Return the private number as OpenSSL and PEM files have it."""
    # PKCS #8 of a P-256 key: the 32 bytes behind OCTET STRING 04 20 (RFC 5915).
    at = key.index(b"\x02\x01\x01\x04\x20") + 5
    number = key[at : at + 32]
    # It begins at byte 36 of the file: its first 12 bytes are 16 whole characters of a line.
    assert at == 36
    return [number, number[::-1], base64.b64encode(key)[48:64], number.hex().encode()]


@needs_root
def test_no_process_of_a_user_or_an_owner_has_the_tls_key() -> None:
    with tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory:
        note = Path(directory) / "key"
        program = ("-c", _WATCHED.format(note=str(note)))
        with (
            supervisor_process(Path(directory), program=program) as supervisor,
            supervisor.control() as control,
        ):
            request = supervisor.launch_request()
            launched = control.request(request)
            assert isinstance(launched, KernelLaunched)
            with supervisor.client(request) as client:
                client.execute_interactive("x = 1", timeout=20)
                key = note.read_bytes()
                assert len(key) == 138
                deadline = time.monotonic() + 10
                # Zygote, a kernel and its init, a vault's outer process, init and payload.
                while len(below := children_of(supervisor.pid)) < 6:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert launched.pid in below
                assert sum(occurrences(supervisor.pid, form) for form in forms(key)) > 0
                for pid in below:
                    assert [occurrences(pid, form) for form in forms(key)] == [0] * 4, pid
                    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
                        link = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
                        assert "channel-identity" not in link
            control.request(SignalKernel(request.kernel_id, signal.SIGKILL))
            note.unlink()
            for file in Path(directory).rglob("*"):
                if file.is_file():
                    assert not any(form in file.read_bytes() for form in forms(key))
