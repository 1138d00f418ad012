"""C2SP chunked-encryption@v1 with AEAD_AES_256_GCM and SHA-512 (Cobblestone-256), streaming.

Only this construction lives here: it knows neither headers nor archives. Memory is constant;
with `update_into` nothing is copied but the pieces of chunks that straddle two calls.

Source: https://c2sp.org/chunked-encryption; docs/spec/encrypted_package.md, "Body".
"""

import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)

__all__ = [
    "CHUNK_BYTES",
    "KEY_BYTES",
    "MAX_CHUNKS",
    "PREFIX_BYTES",
    "SEALED_CHUNK_BYTES",
    "TAG_BYTES",
    "BytesLike",
    "Decryptor",
    "Encryptor",
    "sealed_size",
]

BytesLike = bytes | bytearray | memoryview

KEY_BYTES: Final = 32
SALT_BYTES: Final = 24
COMMITMENT_BYTES: Final = 32
PREFIX_BYTES: Final = SALT_BYTES + COMMITMENT_BYTES
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
CHUNK_BYTES: Final = 16 * 1024
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES
MAX_CHUNKS: Final = 2**38
"""The construction's own limit: 4 PiB - 1 byte of message."""

_INFO: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


def sealed_size(plaintext_bytes: int) -> int:
    """Return how many bytes a message of `plaintext_bytes` bytes is when encrypted."""
    chunks = plaintext_bytes // CHUNK_BYTES + 1
    return PREFIX_BYTES + plaintext_bytes + chunks * TAG_BYTES


class _MessageKeys:
    """Key, base nonce and commitment of one message, and its chunk counter."""

    def __init__(self, key: BytesLike, salt: bytes, context: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise PackageFormatError(f"the data key has {len(key)} bytes, expected {KEY_BYTES}")
        derived = bytearray(KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES)
        HKDFExpand(
            algorithm=SHA512(), length=len(derived), info=_INFO + salt + context
        ).derive_into(key, derived)
        message_key = derived[:KEY_BYTES]
        self.aead = AESGCM(message_key)
        self._base_nonce = int.from_bytes(derived[KEY_BYTES : KEY_BYTES + NONCE_BYTES], "big")
        self.commitment = bytes(derived[KEY_BYTES + NONCE_BYTES :])
        # What OpenSSL keeps of the key inside `aead` is beyond reach; our copies are not.
        derived[:] = bytes(len(derived))
        message_key[:] = bytes(KEY_BYTES)
        self._counter = 0

    def nonces(self, count: int) -> list[bytes]:
        """Return the nonces of the next `count` chunks.

        Raises:
            PackageFormatError: The message has more than 2**38 chunks.
        """
        first, self._counter = self._counter, self._counter + count
        if self._counter > MAX_CHUNKS:
            raise PackageFormatError(f"more than {MAX_CHUNKS} chunks: no message is this long")
        base, chunks = self._base_nonce, range(first, self._counter)
        return [(base ^ chunk).to_bytes(NONCE_BYTES, "big") for chunk in chunks]


class Encryptor:
    """Encrypts one message of any length.

    Args:
        key: The data key, 32 uniformly random bytes. The caller wipes it.
        context: What the message is bound to; for a package the header's SHA-512.
        salt: 24 bytes never used before under this key; None draws them at random.
            Only tests against vectors give one.
    """

    def __init__(self, key: BytesLike, context: bytes, salt: bytes | None = None) -> None:
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else bytes(salt)
        if len(salt) != SALT_BYTES:
            raise PackageFormatError(f"the salt has {len(salt)} bytes, expected {SALT_BYTES}")
        self._keys = _MessageKeys(key, salt, context)
        self._prefix = salt + self._keys.commitment
        self._pending = bytearray(CHUNK_BYTES)
        self._held = 0
        self._finished = False

    def update_size(self, data_bytes: int) -> int:
        """Return exactly how many bytes the next `update` of `data_bytes` bytes will yield."""
        chunks = (self._held + data_bytes) // CHUNK_BYTES
        return len(self._prefix) + chunks * SEALED_CHUNK_BYTES

    def update(self, data: BytesLike) -> bytearray:
        """Return the ciphertext that `data` completes, possibly nothing.

        Raises:
            PackageError: `finalize` was called before.
        """
        out = bytearray(self.update_size(len(memoryview(data).cast("B"))))
        self.update_into(data, out)
        return out

    def update_into(self, data: BytesLike, out: bytearray | memoryview) -> int:
        """Write the ciphertext that `data` completes into `out`; return its length in bytes.

        Args:
            data: Plaintext of any length, not overlapping `out`.
            out: At least `update_size(len(data))` bytes, for instance one buffer used again.

        Raises:
            PackageError: `finalize` was called before, or `out` is too small.
        """
        view = memoryview(data).cast("B")
        self._check_open()
        size = self.update_size(len(view))
        target = memoryview(out).cast("B")[:size]
        if len(target) < size:
            raise PackageError(f"the output buffer has {len(target)} bytes, expected {size}")
        encrypt, nonces = self._keys.aead.encrypt_into, self._keys.nonces
        written = len(self._prefix)
        target[:written] = self._prefix
        self._prefix = b""
        position = 0
        if self._held:
            position = min(CHUNK_BYTES - self._held, len(view))
            self._pending[self._held : self._held + position] = view[:position]
            self._held += position
            if self._held < CHUNK_BYTES:
                return written
            sealed = target[written : written + SEALED_CHUNK_BYTES]
            written += encrypt(nonces(1)[0], self._pending, None, sealed)
            self._held = 0
        for nonce in nonces((len(view) - position) // CHUNK_BYTES):
            chunk = view[position : position + CHUNK_BYTES]
            encrypt(nonce, chunk, None, target[written : written + SEALED_CHUNK_BYTES])
            position += CHUNK_BYTES
            written += SEALED_CHUNK_BYTES
        self._held = len(view) - position
        self._pending[: self._held] = view[position:]
        return written

    def finalize(self) -> bytes:
        """Return the last, short chunk and end the message; the plaintext held is wiped.

        Raises:
            PackageError: `finalize` was called before.
        """
        self._check_open()
        self._finished = True
        last = bytes(self._pending[: self._held])
        sealed = self._prefix + self._keys.aead.encrypt(self._keys.nonces(1)[0], last, None)
        self._pending[:] = bytes(CHUNK_BYTES)
        return sealed

    def _check_open(self) -> None:
        if self._finished:
            raise PackageError("this message is already complete: start another Encryptor")


class Decryptor:
    """Decrypts one message of any length; yields plaintext only of chunks that verified.

    What `update` yields is authentic, but the message is complete only when `finalize` returned:
    do not act on any of it before. After an error every further call raises it again.

    Args:
        key: The data key, 32 bytes. The caller wipes it.
        context: The one the message was encrypted with.
    """

    def __init__(self, key: BytesLike, context: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise PackageFormatError(f"the data key has {len(key)} bytes, expected {KEY_BYTES}")
        # Held until the salt, the message's first bytes, has arrived; then wiped.
        self._key = bytearray(key)
        self._context = bytes(context)
        self._keys: _MessageKeys | None = None
        self._pending = bytearray(SEALED_CHUNK_BYTES)
        self._held = 0
        self._failure: PackageError | None = None

    def update_size(self, data_bytes: int) -> int:
        """Return exactly how many bytes the next `update` of `data_bytes` bytes will yield."""
        available = self._held + data_bytes - (PREFIX_BYTES if self._keys is None else 0)
        return max(available, 0) // SEALED_CHUNK_BYTES * CHUNK_BYTES

    def input_size(self, chunks: int) -> int:
        """Return how many bytes of ciphertext complete the next `chunks` (1 or more) chunks."""
        missing = PREFIX_BYTES if self._keys is None else 0
        return missing + chunks * SEALED_CHUNK_BYTES - self._held

    def update(self, data: BytesLike) -> bytearray:
        """Return the plaintext of the chunks that `data` completes, possibly nothing.

        Raises:
            PackageTamperedError: Wrong key or context, or an altered chunk.
            PackageError: The message ended, or failed, before.
        """
        out = bytearray(self.update_size(len(memoryview(data).cast("B"))))
        self.update_into(data, out)
        return out

    def update_into(self, data: BytesLike, out: bytearray | memoryview) -> int:
        """Write the plaintext that `data` completes into `out`; return its length in bytes.

        On an error all that may have been written to `out` is zeroed.

        Args:
            data: Ciphertext of any length, not overlapping `out`.
            out: At least `update_size(len(data))` bytes, for instance one buffer used again.

        Raises:
            PackageTamperedError: Wrong key or context, or an altered chunk.
            PackageError: The message ended, or failed, before, or `out` is too small.
        """
        view = memoryview(data).cast("B")
        self._check_open()
        size = self.update_size(len(view))
        target = memoryview(out).cast("B")[:size]
        if len(target) < size:
            raise PackageError(f"the output buffer has {len(target)} bytes, expected {size}")
        try:
            return self._update(view, target)
        except InvalidTag:
            # OpenSSL writes before it verifies: leave nothing of it behind.
            target[:] = bytes(len(target))
            raise self._fail(
                PackageTamperedError(
                    "a chunk is not the one that was encrypted: the file was altered; "
                    "get it again from its publisher"
                )
            ) from None
        except PackageError as error:
            target[:] = bytes(len(target))
            raise self._fail(error) from None

    def finalize(self) -> bytes:
        """Verify that the message is complete and return the plaintext of its last chunk.

        Raises:
            PackageTruncatedError: The last chunk is missing.
            PackageTamperedError: The last chunk is altered or cut.
            PackageError: The message ended, or failed, before.
        """
        self._check_open()
        keys = self._keys
        # A message that ends after a full chunk is always followed by an empty one (its tag).
        if keys is None or self._held < TAG_BYTES:
            raise self._fail(PackageTruncatedError("the file ends too early: copy it again, whole"))
        try:
            last = keys.aead.decrypt(keys.nonces(1)[0], bytes(self._pending[: self._held]), None)
        except InvalidTag:
            raise self._fail(
                PackageTamperedError(
                    "the last chunk is not the one that was encrypted: the file was cut or "
                    "altered; get it again from its publisher"
                )
            ) from None
        self._failure = PackageError("this message is already complete: start another Decryptor")
        return last

    def _update(self, view: memoryview, target: memoryview) -> int:
        position = 0
        keys = self._keys
        if keys is None:
            position = self._take(view, 0, PREFIX_BYTES)
            if self._held < PREFIX_BYTES:
                return 0
            keys = self._keys = self._open_prefix()
            self._held = 0
        decrypt, nonces = keys.aead.decrypt_into, keys.nonces
        written = 0
        if self._held:
            position += self._take(view, position, SEALED_CHUNK_BYTES)
            if self._held < SEALED_CHUNK_BYTES:
                return 0
            written += decrypt(nonces(1)[0], self._pending, None, target[:CHUNK_BYTES])
            self._held = 0
        for nonce in nonces((len(view) - position) // SEALED_CHUNK_BYTES):
            sealed = view[position : position + SEALED_CHUNK_BYTES]
            decrypt(nonce, sealed, None, target[written : written + CHUNK_BYTES])
            position += SEALED_CHUNK_BYTES
            written += CHUNK_BYTES
        self._take(view, position, SEALED_CHUNK_BYTES)
        return written

    def _take(self, view: memoryview, position: int, until: int) -> int:
        """Move bytes of `view` into the pending ones until those are `until`; return how many."""
        count = min(until - self._held, len(view) - position)
        self._pending[self._held : self._held + count] = view[position : position + count]
        self._held += count
        return count

    def _open_prefix(self) -> _MessageKeys:
        salt = bytes(self._pending[:SALT_BYTES])
        keys = _MessageKeys(self._key, salt, self._context)
        self._wipe_key()
        if not hmac.compare_digest(keys.commitment, self._pending[SALT_BYTES:PREFIX_BYTES]):
            raise PackageTamperedError(
                "the data key does not fit: header or wrapped key were altered, or belong to "
                "another file; get it again from its publisher"
            )
        return keys

    def _wipe_key(self) -> None:
        self._key[:] = bytes(KEY_BYTES)

    def _fail(self, error: PackageError) -> PackageError:
        self._failure = error
        self._wipe_key()
        return error

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
