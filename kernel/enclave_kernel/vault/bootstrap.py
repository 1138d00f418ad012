"""First code of a vault process: `python -I -S bootstrap.py CONTROL_FD CALLS_FD`.

Only the standard library is importable here. Reads the specification (one frame of JSON, so that
nothing about the vault is in its argv or environment), makes the image's packages importable, and
hands over. Run by path; nothing imports it.
"""

import json
import socket
import sys

MAX_SPEC_BYTES = 256 * 1024


def read_spec(control: socket.socket) -> bytes:
    """Return the first frame's payload.

    Raises:
        EOFError: The supervisor is gone, or announces more than 256 KiB.
    """
    header = control.recv(4, socket.MSG_WAITALL)
    size = int.from_bytes(header, "big")
    if len(header) < 4 or size > MAX_SPEC_BYTES:
        raise EOFError("no specification came from the supervisor")
    payload = control.recv(size, socket.MSG_WAITALL)
    if len(payload) < size:
        raise EOFError("the specification was cut short")
    return payload


def main() -> int:
    """Run the vault; returns the exit code."""
    control = socket.socket(fileno=int(sys.argv[1]))
    calls = socket.socket(fileno=int(sys.argv[2]))
    spec = json.loads(read_spec(control))
    # After the standard library: nothing in these directories can shadow it.
    sys.path.extend(spec.pop("sys_path"))
    sys.dont_write_bytecode = True
    from enclave_kernel.vault.service import run

    return run(control, calls, spec)


if __name__ == "__main__":
    sys.exit(main())
