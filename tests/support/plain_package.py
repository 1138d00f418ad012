"""A second implementation of docs/spec/encrypted_package.md, written from its text alone.

Plain and slow on purpose: HMAC for HKDF-Expand, one AESGCM call per chunk, tarfile for the
archive, json for the label. It shares no code with enclave_protocol, so that an agreement of
the two means something.
"""

import hashlib
import hmac
import io
import json
import struct
import tarfile
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def hkdf_expand_sha512(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2.3."""
    okm, block, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([counter]), "sha512").digest()
        okm += block
        counter += 1
    return okm[:length]


def _derive(key: bytes, salt: bytes, context: bytes) -> tuple[AESGCM, bytes, bytes]:
    info = b"c2sp.org/chunked-encryption@v1+" + b"AEAD_AES_256_GCM" + b"\0" + salt + context
    okm = hkdf_expand_sha512(key, info, 76)
    return AESGCM(okm[:32]), okm[32:44], okm[44:76]


def _nonce(base: bytes, chunk: int) -> bytes:
    return bytes(a ^ b for a, b in zip(base, struct.pack(">IQ", 0, chunk), strict=True))


def seal(key: bytes, context: bytes, salt: bytes, message: bytes) -> bytes:
    aead, base, commitment = _derive(key, salt, context)
    sealed = salt + commitment
    for chunk in range(len(message) // 16384 + 1):
        piece = message[chunk * 16384 : (chunk + 1) * 16384]
        sealed += aead.encrypt(_nonce(base, chunk), piece, None)
    return sealed


def unseal(key: bytes, context: bytes, sealed: bytes) -> bytes:
    salt, commitment, rest = sealed[:24], sealed[24:56], sealed[56:]
    aead, base, expected = _derive(key, salt, context)
    if not hmac.compare_digest(commitment, expected):
        raise ValueError("commitment")
    message, chunk = b"", 0
    while len(rest) >= 16400:
        message += aead.decrypt(_nonce(base, chunk), rest[:16400], None)
        rest, chunk = rest[16400:], chunk + 1
    return message + aead.decrypt(_nonce(base, chunk), rest, None)


def pack_tar(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """The archive, as tarfile writes it: it agrees with the spec wherever no pax is needed."""
    out = b""
    for path in sorted(files, key=lambda name: name.encode()):
        data, executable = files[path]
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(data), 0o755 if executable else 0o644
        out += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out + bytes(1024)


def unpack_tar(archive: bytes) -> dict[str, tuple[bytes, bool]]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for info in tar:
            stream = tar.extractfile(info)
            if stream is None:
                raise ValueError(info.name)
            files[info.name] = stream.read(), info.mode == 0o755
    return files


def encode_label(label: dict[str, Any]) -> bytes:
    return json.dumps(label, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def make_header(label_bytes: bytes, arn: str, wrapped_key: bytes, signature: bytes = b"") -> bytes:
    slot = struct.pack(">H", len(arn)) + arn.encode() + wrapped_key
    lengths = struct.pack(">HHHI", 1, len(slot), len(signature), len(label_bytes))
    return b"\x89ENCPKG\n" + lengths + label_bytes + signature + slot


def context_of(label_bytes: bytes) -> bytes:
    bound = b"\x89ENCPKG\n" + struct.pack(">HI", 1, len(label_bytes)) + label_bytes
    return hashlib.sha512(bound).digest()


def data_key_commitment(key: bytes) -> str:
    return hkdf_expand_sha512(key, b"enclave-package/v1/data-key-commitment", 32).hex()


def body_digest(body: bytes) -> bytes:
    leaves = [body[i : i + 1048576] for i in range(0, len(body), 1048576)]
    hashes = b"".join(hashlib.sha256(leaf).digest() for leaf in leaves)
    return hashlib.sha256(b"enclave-kernel package body v1\0" + hashes).digest()


def signed_message(algorithm: str, label_bytes: bytes, digest: bytes) -> bytes:
    label_hash = hashlib.sha512(label_bytes).digest()
    domain = b"enclave-kernel package signature v1\0"
    return domain + algorithm.encode() + b"\0" + label_hash + digest


def make_package(
    label: dict[str, Any],
    files: dict[str, tuple[bytes, bool]],
    *,
    key: bytes,
    arn: str,
    wrapped_key: bytes,
    salt: bytes,
    private_key: Ed25519PrivateKey | None = None,
) -> bytes:
    archive = pack_tar(files)
    signer = None
    if private_key is not None:
        raw = private_key.public_key().public_bytes_raw()
        spki = bytes.fromhex("302a300506032b6570032100") + raw
        signer = {"algorithm": "ed25519", "public_key": spki.hex()}
    label = {**label, "archive_bytes": len(archive), "file_count": len(files), "signer": signer}
    label_bytes = encode_label({**label, "data_key_commitment": data_key_commitment(key)})
    body = seal(key, context_of(label_bytes), salt, archive)
    signature = b""
    if private_key is not None:
        digest = body_digest(body)
        signature = digest + private_key.sign(signed_message("ed25519", label_bytes, digest))
    return make_header(label_bytes, arn, wrapped_key, signature) + body


def open_package(data: bytes, key: bytes) -> tuple[dict[str, Any], dict[str, tuple[bytes, bool]]]:
    magic, version, slot_size, signature_size, label_size = struct.unpack_from(">8sHHHI", data)
    if magic != b"\x89ENCPKG\n" or version != 1:
        raise ValueError("magic")
    label_end = 18 + label_size
    end = label_end + signature_size + slot_size
    label_bytes, body = data[18:label_end], data[end:]
    signature = data[label_end : label_end + signature_size]
    label: dict[str, Any] = json.loads(label_bytes)
    if label["signer"] is not None:
        digest = body_digest(body)
        if digest != signature[:32] or label["signer"]["algorithm"] != "ed25519":
            raise ValueError("digest")
        public = Ed25519PublicKey.from_public_bytes(
            bytes.fromhex(label["signer"]["public_key"])[12:]
        )
        public.verify(signature[32:], signed_message("ed25519", label_bytes, digest))
    if not hmac.compare_digest(label["data_key_commitment"], data_key_commitment(key)):
        raise ValueError("data key")
    return label, unpack_tar(unseal(key, context_of(label_bytes), body))
