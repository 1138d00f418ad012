"""What stands in for AWS and its hardware on this machine: the local root, and the local cloud.

For the backends without Nitro's hardware; NOT CONFIDENTIAL.
"""

import socket
import ssl
import time
from pathlib import Path
from typing import Final

import msgspec

from enclave_parent_gateway.credentials import CredentialsError, default_credentials
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.errors import EnclaveStartError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.messages import Credentials

__all__ = [
    "cloud_arguments",
    "cloud_credentials",
    "free_port",
    "local_root",
    "read_certificate",
    "root_directory",
]

_CLOUD_TIMEOUT_S: Final = 10.0
"""The local cloud starts in 1 to 2 s, in parallel with the first kernel."""
_ROOT_CERTIFICATE: Final = "root.pem"
"""Written by the software NSM beside its root key."""
_MAX_PEM_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.05


class _Identity(msgspec.Struct, frozen=True):
    access_key_id: str
    secret_access_key: str


class _CloudReady(msgspec.Struct, frozen=True):
    """What of the local cloud's ready line is needed here: its identity for the parent."""

    host: _Identity


def root_directory(paths: EnclavePaths) -> Path:
    """Return where the software NSM's root is."""
    return paths.durable / "root"


def local_root(paths: EnclavePaths) -> bytes:
    """Return the certificate (DER) of this machine's own root.

    Raises:
        EnclaveStartError: It was not made yet, or cannot be read.
    """
    path = root_directory(paths) / _ROOT_CERTIFICATE
    try:
        return read_certificate(path)
    except (OSError, ValueError) as error:
        raise EnclaveStartError(
            f"the local root's certificate {path} cannot be read ({error}); type: "
            "enclave down && enclave up"
        ) from error


def read_certificate(path: Path) -> bytes:
    """Return the one certificate (DER) in a PEM file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds none.
    """
    with path.open("rb") as file:
        return ssl.PEM_cert_to_DER_cert(file.read(_MAX_PEM_BYTES).decode("ascii"))


def cloud_arguments(paths: EnclavePaths, port: int) -> tuple[str, ...]:
    """Return the local cloud's options; makes its directory.

    Args:
        paths: Of the enclave; its durable directory exists.
        port: Where it shall listen.
    """
    directory = paths.durable / "cloud"
    directory.mkdir(mode=0o700, exist_ok=True)
    certificate = root_directory(paths) / _ROOT_CERTIFICATE
    return (
        *("--root-cert", str(certificate)),
        *("--state-dir", str(directory), "--port", str(port)),
    )


def cloud_credentials(paths: EnclavePaths) -> Credentials:
    """Return the local cloud's identity for the parent; the default chain's without an enclave.

    In this order, unlike on AWS: the local cloud takes no identities but its own two, and a
    developer's real ones have no business there.

    Raises:
        CredentialsError: The local cloud has ended or does not come up, or there are none.
    """
    state = read_state(paths.state_file)
    cloud = state.processes.get("cloud") if state is not None else None
    if cloud is None:
        return default_credentials()
    deadline = time.monotonic() + _CLOUD_TIMEOUT_S
    while cloud.is_running() and time.monotonic() < deadline:
        line, newline, _ = (paths.runtime / "cloud.ready").read_bytes().partition(b"\n")
        if newline:
            identity = msgspec.json.decode(line, type=_CloudReady)
            return Credentials(identity.host.access_key_id, identity.host.secret_access_key)
        time.sleep(_POLL_S)
    raise CredentialsError(
        "the local cloud, which stands in for KMS, does not run; type: enclave down && enclave up"
    )


def free_port() -> int:
    """Return a TCP port that is free now, so that nobody need wait for the one who takes it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
