"""The gateway's key: by it an enclave knows the gateway it met first from others on this machine.

In the runtime directory, which ends with the boot, as enclaves do; only this user enters it.
"""

import os
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_parent_gateway.errors import GatewayError
from enclave_parent_gateway.runtime_dir import EnclavePaths

__all__ = ["gateway_key"]

_KEY_BYTES = 32


def gateway_key(paths: EnclavePaths) -> Ed25519PrivateKey:
    """Return the key, made when it is first needed; a gateway that starts again has the same.

    Raises:
        GatewayError: The file holds none, or cannot be read or made.
    """
    path = paths.gateway_key
    try:
        with suppress(FileExistsError):
            _make(paths)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_KEY_BYTES + 1)
    except OSError as error:
        raise GatewayError(f"{path} cannot be used: {error.strerror}") from error
    if len(data) != _KEY_BYTES:
        raise GatewayError(f"{path} holds no key; type: enclave down && rm {path} && enclave up")
    return Ed25519PrivateKey.from_private_bytes(data)


def _make(paths: EnclavePaths) -> None:
    """Make the file, whole or not at all; one that is there stays."""
    temporary = paths.gateway_key.with_suffix(f".{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(Ed25519PrivateKey.generate().private_bytes_raw())
    try:
        # Unlike a rename it replaces nothing.
        os.link(temporary, paths.gateway_key)
    finally:
        temporary.unlink()
