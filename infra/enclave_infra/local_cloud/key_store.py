"""The keys of the local KMS: moto's objects in memory, one JSON file on disk.

Only symmetric keys, aliases and policies are kept; S3 and tags end with the process.
"""

import base64
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.kms.models import Key, KmsBackend, kms_backends

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.identities import IDENTITIES
from enclave_protocol.errors import EnclaveError

__all__ = ["KeyStore", "StateError"]

_FILE_NAME = "kms.json"
_FORMAT = 2
_MATERIAL_BYTES = 32
_SAVED_FIELDS = (
    *("id", "account_id", "region", "policy", "description", "key_state", "enabled"),
    *("creation_date", "key_rotation_status"),
)


class StateError(EnclaveError):
    """The state directory cannot be used."""


class KeyStore:
    """Finds, loads and saves keys; the caller serialises access.

    Args:
        directory: Made with mode 0700; one process at a time.

    Raises:
        StateError: Open to others, in use, or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE_NAME
        self._retired: dict[str, tuple[bytes, ...]] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise StateError(
                    f"{directory} is open to other users; run: chmod 700 {directory}, as its owner"
                )
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._path.exists():
                self._load(json.loads(self._path.read_bytes()))
        except BlockingIOError as error:
            raise StateError(
                f"another local cloud uses {directory}; stop it, or choose another --state-dir"
            ) from error
        except OSError as error:
            raise StateError(f"cannot use {directory}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self._path} is damaged ({error!r}); remove it, and its keys are lost"
            ) from error

    def backend(self, account: str, region: str) -> KmsBackend:
        """Return moto's backend of one account and region."""
        return kms_backends[account][region]

    def find(self, name: str, *, account: str, region: str) -> Key:
        """Return the key that `name` means to a caller.

        Args:
            name: Key id, key ARN, alias (`alias/...`) or alias ARN.
            account: The caller's, for names that are no ARN.
            region: Of the request.

        Raises:
            AwsError: NotFoundException.
        """
        resource = name
        if name.startswith("arn:"):
            parts = name.split(":", 5)
            if len(parts) != 6 or parts[:3] != ["arn", "aws", "kms"]:
                raise AwsError("NotFoundException", f"Invalid arn {name:.200}")
            if parts[3] != region:
                raise AwsError("NotFoundException", f"Invalid arn {parts[3]:.40}")
            account, resource = parts[4], parts[5].removeprefix("key/")
        for key in self._keys():
            if (key.account_id, key.region) == (account, region) and (
                key.id == resource or resource in key.aliases
            ):
                return key
        kind = "Alias" if resource.startswith("alias/") else "Key"
        where = f"arn:aws:kms:{region}:{account}:{'' if kind == 'Alias' else 'key/'}{resource:.200}"
        raise AwsError("NotFoundException", f"{kind} '{where}' does not exist")

    def _keys(self) -> Iterator[Key]:
        for identity in IDENTITIES.values():
            for backend in list(kms_backends[identity.account].values()):
                yield from list(backend.keys.values())

    def materials(self, key: Key) -> tuple[bytes, ...]:
        """Return a key's material, 32 bytes each, the newest first."""
        return (key.key_material, *self._retired.get(key.arn, ()))

    def rotate(self, key: Key) -> None:
        """Give a key new material; the old one is kept for what it wrapped."""
        self._retired[key.arn] = self.materials(key)
        key.key_material = os.urandom(_MATERIAL_BYTES)

    def save(self) -> None:
        """Write all keys, whole or not at all."""
        state = {"format": _FORMAT, "keys": [self._encode(key) for key in self._keys()]}
        temporary = self._path.with_name(f".{_FILE_NAME}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def _load(self, state: dict[str, Any]) -> None:
        if state["format"] not in (1, _FORMAT):
            raise ValueError(f"format {state['format']!r}")
        for saved in state["keys"]:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Make a key in moto, then give it the identity and material it had."""
        deletion = saved["deletion_date"]
        deletion_date = datetime.fromisoformat(deletion) if deletion else None
        if deletion_date is not None and deletion_date <= _utc_now():
            return
        backend = self.backend(saved["account_id"], saved["region"])
        key = backend.create_key(
            saved["policy"], "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", saved["description"], None
        )
        backend.delete_key(key.id)
        for name in _SAVED_FIELDS:
            setattr(key, name, saved[name])
        key.arn = f"arn:aws:kms:{key.region}:{key.account_id}:key/{key.id}"
        key.key_material, *retired = (
            base64.b64decode(material, validate=True)
            for material in saved.get("materials") or [saved["material"]]  # format 1
        )
        if retired:
            self._retired[key.arn] = tuple(retired)
        key.deletion_date = deletion_date
        backend.keys[key.id] = key
        for alias in saved["aliases"]:
            backend.create_alias(key.id, alias)

    def _encode(self, key: Key) -> dict[str, Any]:
        saved: dict[str, Any] = {name: getattr(key, name) for name in _SAVED_FIELDS}
        saved["materials"] = [base64.b64encode(m).decode() for m in self.materials(key)]
        saved["aliases"] = sorted(key.aliases)
        saved["deletion_date"] = key.deletion_date.isoformat() if key.deletion_date else None
        return saved


def _utc_now() -> datetime:
    # moto's dates carry no time zone and are UTC.
    return datetime.now(UTC).replace(tzinfo=None)
