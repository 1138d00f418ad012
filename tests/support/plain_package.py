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


def make_header(
    label_bytes: bytes, wrapped_key: bytes, key_arn: bytes, signature: bytes = b""
) -> bytes:
    lengths = struct.pack(
        ">HIHHH", 2, len(label_bytes), len(signature), len(key_arn), len(wrapped_key)
    )
    return b"\x89ENCPKG\n" + lengths + label_bytes + signature + key_arn + wrapped_key


def body_context(label_bytes: bytes) -> bytes:
    return hashlib.sha512(b"\x89ENCPKG\n\x00\x02" + label_bytes).digest()


def body_digest(body: bytes) -> bytes:
    leaves = [body[i : i + 131072] for i in range(0, len(body), 131072)]
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
    wrapped_key: bytes,
    key_arn: bytes,
    salt: bytes,
    private_key: Ed25519PrivateKey | None = None,
) -> bytes:
    archive = pack_tar(files)
    signer = None
    if private_key is not None:
        raw = private_key.public_key().public_bytes_raw()
        spki = bytes.fromhex("302a300506032b6570032100") + raw
        signer = {"algorithm": "ed25519", "public_key": spki.hex()}
    label |= {"archive_bytes": len(archive), "file_count": len(files), "signer": signer}
    label_bytes = encode_label(label)
    body = seal(key, body_context(label_bytes), salt, archive)
    signature = b""
    if private_key is not None:
        digest = body_digest(body)
        signature = digest + private_key.sign(signed_message("ed25519", label_bytes, digest))
    return make_header(label_bytes, wrapped_key, key_arn, signature) + body


def open_package(data: bytes, key: bytes) -> tuple[dict[str, Any], dict[str, tuple[bytes, bool]]]:
    magic, version, *lengths = struct.unpack_from(">8sHIHHH", data)
    if magic != b"\x89ENCPKG\n" or version != 2:
        raise ValueError("magic")
    label_bytes = data[20 : 20 + lengths[0]]
    signature = data[20 + lengths[0] : 20 + lengths[0] + lengths[1]]
    body = data[20 + sum(lengths) :]
    label: dict[str, Any] = json.loads(label_bytes)
    if label["signer"] is not None:
        digest = body_digest(body)
        if digest != signature[:32] or label["signer"]["algorithm"] != "ed25519":
            raise ValueError("digest")
        public = Ed25519PublicKey.from_public_bytes(
            bytes.fromhex(label["signer"]["public_key"])[12:]
        )
        public.verify(signature[32:], signed_message("ed25519", label_bytes, digest))
    return label, unpack_tar(unseal(key, body_context(label_bytes), body))
